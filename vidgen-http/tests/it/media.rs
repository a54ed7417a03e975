//! Media under signed paths.

use std::time::Duration;

use axum::body::Body;
use axum::http::Method;
use vidgen_core::clock::later;
use vidgen_core::{Clock, MediaKey, MediaLinks, TenantId};

use crate::support::{Answer, Host, VIDEO, request, with};

/// A host with one completed job, and the signed path of its video.
async fn setup() -> (Host, String) {
    let host = Host::new();
    let id = host.job().await;
    host.complete(id).await;
    let status = host.get(&format!("/api/status/{id}")).await.json();
    let url = status["output"]["video_url"].as_str().unwrap();
    let path = url.strip_prefix("https://x.example").unwrap().to_owned();
    (host, path)
}

async fn ranged(host: &Host, path: &str, range: &str) -> Answer {
    host.send(with("range", range, request(Method::GET, path, Body::empty()))).await
}

#[tokio::test]
async fn a_link_fetches_the_whole_with_careful_headers() {
    let (host, path) = setup().await;
    let answer = host.get(&path).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, VIDEO));
    for (name, value) in [
        ("content-type", "video/mp4"),
        ("content-length", &VIDEO.len().to_string()),
        ("accept-ranges", "bytes"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "private, max-age=3600"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    // Without the origin, a browser that opens the link by itself shows a player and no video.
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("sandbox allow-same-origin; default-src 'none'; ") && !policy.contains("script"));
    let disposition = answer.header("content-disposition");
    assert!(disposition.starts_with("inline; filename=\"vid_") && disposition.ends_with("-compose-1.mp4\""));

    let head = host.send(request(Method::HEAD, &path, Body::empty())).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), VIDEO.len().to_string());
    assert_eq!(head.header("etag"), answer.header("etag"));
}

#[tokio::test]
async fn one_range_is_206_and_what_cannot_be_met_is_416() {
    let (host, path) = setup().await;
    let length = VIDEO.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=2-5", 2..6),
        ("bytes=5-", 5..length),
        ("bytes=-4", length - 4..length),
        ("bytes=0-", 0..length),
        ("bytes=20-99999", 20..length),
        ("bytes=-99999", 0..length),
    ] {
        let answer = ranged(&host, &path, range).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (206, &VIDEO[expected.clone()]), "{range}");
        let content_range = format!("bytes {}-{}/{length}", expected.start, expected.end - 1);
        assert_eq!(answer.header("content-range"), content_range);
        assert_eq!(answer.header("content-length"), expected.len().to_string());
    }
    for range in [&format!("bytes={length}-"), "bytes=99999-100000", "bytes=-0"] {
        let answer = ranged(&host, &path, range).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("content-range")),
            (416, &*format!("bytes */{length}")),
            "{range}"
        );
        assert_eq!(answer.json()["code"], "range_not_satisfiable");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    for whole in ["bytes=0-1,3-4", "items=0-1", "bytes=5-2", "nonsense", "bytes="] {
        let answer = ranged(&host, &path, whole).await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, VIDEO), "{whole}");
    }
}

#[tokio::test]
async fn tags_save_transfers() {
    let (host, path) = setup().await;
    let etag = host.get(&path).await.header("etag").to_owned();
    let get = || request(Method::GET, &path, Body::empty());
    let kept = host.send(with("if-none-match", &etag, get())).await;
    assert_eq!((kept.status.as_u16(), kept.body.len(), kept.header("etag")), (304, 0, &*etag));
    assert_eq!(host.send(with("if-none-match", "\"other\"", get())).await.status, 200);
    for (tag, status) in [(&*etag, 206), ("\"other\"", 200), ("Thu, 01 Jan 2026 00:00:00 GMT", 200)] {
        let answer = host.send(with("if-range", tag, with("range", "bytes=0-0", get()))).await;
        assert_eq!(answer.status, status, "{tag}");
    }
}

#[tokio::test]
async fn a_wrong_or_expired_link_is_403() {
    let (host, path) = setup().await;
    let (media, query) = path.split_once('?').unwrap();
    let without = |name: &str| {
        let rest: Vec<&str> = query.split('&').filter(|p| !p.starts_with(&format!("{name}="))).collect();
        format!("{media}?{}", rest.join("&"))
    };
    let mut wrong = vec![media.to_owned(), path.replace("compose-1", "compose-2"), path.replace("tenant=", "tenant=x")];
    wrong.extend(["tenant", "exp", "kid", "sig"].map(without));
    wrong.push(format!("{path}&sig=00"));
    wrong.push(path.replace("exp=", "exp=9"));
    for path in wrong {
        let answer = host.get(&path).await;
        assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (403, Some("link_invalid")), "{path}");
        // The answer must not repeat a signature.
        assert!(!answer.json().to_string().contains("sig="));
    }
    host.clock.advance(Duration::from_secs(3601));
    let answer = host.get(&path).await;
    assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str()), (403, Some("link_expired")));
}

#[tokio::test]
async fn nothing_but_a_media_key_reaches_the_store() {
    let (host, path) = setup().await;
    let (_, query) = path.split_once('?').unwrap();
    for bad in [
        "..",
        "../secret.mp4",
        "%2e%2e/secret.mp4",
        "%2e%2e%2fsecret.mp4",
        "jobs/../../etc/passwd",
        "jobs/%2e%2e/%2e%2e/etc/passwd",
        "jobs%2fvid_1%2fvideo.mp4",
        "jobs/vid_1/video.mp4%00.txt",
        "%00",
        "%ff",
        "jobs//vid_1.mp4",
        "/etc/passwd",
        "C:%5cwindows.mp4",
        "jobs/VID_1/video.mp4",
        "jobs/vid_1/video.mp4/",
        "%252e%252e%252fsecret.mp4",
    ] {
        let answer = host.get(&format!("/api/media/{bad}?{query}")).await;
        assert!(matches!(answer.status.as_u16(), 403 | 404), "{bad}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json", "{bad}");
    }
}

#[tokio::test]
async fn every_mutation_of_a_link_is_refused() {
    let (host, path) = setup().await;
    for position in "/api/media/".len()..path.len() {
        for replacement in ["0", "x", "/", ".", "%", "&", "%2f"] {
            let mut mutated = path.clone();
            mutated.replace_range(position..=position, replacement);
            let Ok(uri) = mutated.parse::<axum::http::Uri>() else { continue };
            if mutated == path || uri.path().trim_start_matches("/api/media/").is_empty() {
                continue;
            }
            let answer = host.send(request(Method::GET, &mutated, Body::empty())).await;
            assert_eq!(answer.status, 403, "{mutated}");
        }
    }
}

#[tokio::test]
async fn a_link_to_what_is_not_there_is_404() {
    let (host, _) = setup().await;
    let key = MediaKey::new("jobs/vid_0/video.mp4").unwrap();
    let url = host.links.link(&TenantId::single(), &key, later(host.clock.now(), Duration::from_secs(60)));
    let answer = host.get(url.as_str().strip_prefix("https://x.example").unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.json()["error"].as_str()), (404, Some("Not found")));
}
