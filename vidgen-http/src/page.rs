//! The web page to try it: static files, nothing from elsewhere, under a strict policy.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;
use url::Url;
use vidgen_core::{Error, Result};

const HTML: &str = include_str!("page/index.html");
const SCRIPT: &str = include_str!("page/app.js");
const STYLE: &str = include_str!("page/style.css");
const ICON: &str = include_str!("page/icon.svg");

/// The page, for an API that is mounted at `api_base` (e.g. `/api`) of the same server. Merge it
/// at the root of the server. [`Page`] has options.
pub fn page_router<S: Clone + Send + Sync + 'static>(api_base: &str) -> Router<S> {
    Page::new(api_base).router()
}

/// The page and where it finds what it needs.
#[derive(Clone, Debug)]
pub struct Page {
    api_base: String,
    media_origins: Vec<String>,
}

impl Page {
    /// A page for an API that is mounted at `api_base` of the same server.
    pub fn new(api_base: &str) -> Self {
        Self { api_base: api_base.trim_end_matches('/').to_owned(), media_origins: Vec::new() }
    }

    /// Lets the page show media from another server, too: the bucket's, or the public name of
    /// this one.
    ///
    /// # Errors
    /// `Internal` if it is not an http or https URL.
    pub fn with_media_origin(mut self, url: &str) -> Result<Self> {
        let origin = Url::parse(url).ok().filter(|u| matches!(u.scheme(), "http" | "https"));
        let origin = origin.ok_or_else(|| Error::internal("page", "a media origin must be an http or https URL"))?;
        self.media_origins.push(origin.origin().ascii_serialization());
        Ok(self)
    }

    /// The routes: `/`, `/app.js`, `/style.css` and `/icon.svg`.
    pub fn router<S: Clone + Send + Sync + 'static>(self) -> Router<S> {
        let html = HTML.replace("{{api}}", &escaped(&self.api_base));
        let policy = self.policy();
        Router::new()
            .route(
                "/",
                get(move || async move {
                    let policy =
                        HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
                    ([(header::CONTENT_SECURITY_POLICY, policy)], file("text/html; charset=utf-8", html.clone()))
                }),
            )
            .route("/app.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
            .route("/style.css", get(async || file("text/css; charset=utf-8", STYLE)))
            .route("/icon.svg", get(async || file("image/svg+xml", ICON)))
    }

    fn policy(&self) -> String {
        let media = self.media_origins.iter().fold("'self'".to_owned(), |list, origin| format!("{list} {origin}"));
        format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src {media}; media-src {media}; \
             connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
        )
    }
}

/// `no-cache` means: ask again, so that an update of the server reaches every open page.
fn file(content_type: &'static str, text: impl IntoResponse) -> impl IntoResponse {
    const HEADERS: [(HeaderName, &str); 3] = [
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (HEADERS, [(header::CONTENT_TYPE, content_type)], text)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_asks_nobody_else_and_has_no_inline_code() {
        for text in [HTML, SCRIPT, STYLE] {
            for foreign in ["http://", "https://", "url(", "@import", "eval("] {
                assert!(!text.contains(foreign), "{foreign}");
            }
        }
        for inline in ["<style", "style=", "onclick", "onload", "<script>"] {
            assert!(!HTML.contains(inline), "{inline}");
        }
    }

    #[test]
    fn a_media_origin_is_let_in_without_its_path() {
        let page = Page::new("/api/").with_media_origin("https://bucket.example:8443/videos?x").unwrap();
        assert_eq!(page.api_base, "/api");
        assert!(page.policy().contains("media-src 'self' https://bucket.example:8443;"));
        assert!(Page::new("/api").with_media_origin("javascript:alert(1)").is_err());
    }
}
