//! The page and its files.

use axum::Router;

use crate::support::Host;

#[tokio::test]
async fn the_page_and_its_files_come_under_a_strict_policy() {
    let mut host = Host::new();
    host.router = Router::new().merge(vidgen_http::page_router("/v1/\"video\""));
    let page = host.get("/").await;
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert!(page.header("content-security-policy").starts_with("default-src 'none'; script-src 'self'"));
    let html = String::from_utf8(page.body.to_vec()).unwrap();
    assert!(html.contains(r#"data-api="/v1/&quot;video&quot;""#));
    for (path, content_type) in [
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        assert!(html.contains(path));
        let answer = host.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, content_type));
        assert!(!answer.body.is_empty());
    }
}
