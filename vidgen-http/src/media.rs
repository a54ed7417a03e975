//! `GET /media/{key}`: stored media under the signed paths that [`SignedLinks`] makes.

use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use http_range_header::{EndPosition, StartPosition, parse_range_header};
use vidgen_core::{ByteRange, ErrorKind, MediaHead, MediaKey};

use crate::error::Problem;
use crate::links::{LinkQuery, Refusal, SignedLinks};
use crate::options::Api;

/// Media come from models and users: a browser shows them and runs nothing in them. A video that
/// is opened by itself is a page with a player in it, which fetches the same link once more: that
/// needs `media-src` and its own origin, and still no script.
const CSP: HeaderValue = HeaderValue::from_static(
    "sandbox allow-same-origin; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'",
);

/// Serves media, whole or a range of it.
pub(crate) async fn media(
    State(api): State<Api>,
    method: Method,
    uri: Uri,
    key: Result<Path<String>, PathRejection>,
    query: Result<Query<LinkQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let links = api.options.links.as_ref().ok_or_else(Problem::not_found)?;
    // Whatever is wrong with the path or the query, it is not a link of ours. No key needs an
    // escape, so one is an attempt at something.
    let plain = !uri.path().contains('%');
    let key = key.ok().filter(|_| plain).and_then(|Path(key)| MediaKey::new(key).ok());
    let (Some(key), Ok(Query(query))) = (key, query) else { return Err(refused(Refusal::Invalid)) };
    let left = verified(links, &key, &query)?;

    let store = api.vidgen.store();
    let absent = |e: vidgen_core::Error| match e.kind() {
        ErrorKind::NotFound => Problem::not_found(),
        _ => e.into(),
    };
    let head = store.head(&key).await.map_err(absent)?;
    let etag = format!("\"{}\"", head.tag);
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers_of(&key, &head, &etag, left);

    if lists(&headers, &etag) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(header::CONTENT_TYPE);
        return Ok(response);
    }
    let range = if method == Method::GET && still_current(&headers, &etag) { one_range(&headers) } else { None };
    let bytes = match range {
        None => 0..head.length,
        Some(range) => match range.of(head.length) {
            Some(bytes) => bytes,
            None => {
                let mut response = Problem::of_status(StatusCode::RANGE_NOT_SATISFIABLE).into_response();
                insert(response.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{}", head.length));
                return Ok(response);
            }
        },
    };
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes.end - bytes.start));
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let content_range = format!("bytes {}-{}/{}", bytes.start, bytes.end - 1, head.length);
        insert(response.headers_mut(), header::CONTENT_RANGE, &content_range);
    }
    if method == Method::GET && !bytes.is_empty() {
        let part = range.map(|_| ByteRange::Between(bytes.start, bytes.end));
        let media = store.get(&key, part).await.map_err(absent)?;
        if media.head.tag != head.tag {
            // It was replaced between the two calls: the headers would be those of other bytes.
            return Err(Problem::of_status(StatusCode::SERVICE_UNAVAILABLE));
        }
        *response.body_mut() = Body::from_stream(media.body);
    }
    Ok(response)
}

fn verified(links: &SignedLinks, key: &MediaKey, query: &LinkQuery) -> Result<Duration, Problem> {
    links.verify(key, query).map_err(refused)
}

fn refused(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Invalid => Problem::link("link_invalid", "this link was not made here, or was changed"),
        Refusal::Expired => Problem::link("link_expired", "this link has expired; ask for the job's status again"),
    }
}

fn headers_of(key: &MediaKey, head: &MediaHead, etag: &str, left: Duration) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(head.media_type.mime()));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, CSP);
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    insert(&mut headers, header::ETAG, etag);
    // No longer than the link itself works; not in shared caches, which do not check it.
    insert(&mut headers, header::CACHE_CONTROL, &format!("private, max-age={}", left.as_secs()));
    // The key's own characters need no quoting.
    let name = key.as_str().trim_start_matches("jobs/").replace('/', "-");
    insert(&mut headers, header::CONTENT_DISPOSITION, &format!("inline; filename=\"{name}\""));
    headers
}

fn insert(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Whether `If-None-Match` lists the tag.
fn lists(headers: &HeaderMap, etag: &str) -> bool {
    let weak = |tag: &str| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*";
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(weak)
}

/// Whether `If-Range`, if there is one, still holds. A date never does: media have none.
fn still_current(headers: &HeaderMap, etag: &str) -> bool {
    headers.get(header::IF_RANGE).is_none_or(|tag| tag.as_bytes() == etag.as_bytes())
}

/// The one range that is asked for. Of several ones, of another unit and of what cannot be
/// read, the whole is the right answer.
fn one_range(headers: &HeaderMap) -> Option<ByteRange> {
    let mut values = headers.get_all(header::RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let value = value.to_str().ok()?;
    if value == "bytes=-0" {
        // Well formed, and no file can meet it; the parser calls it malformed.
        return Some(ByteRange::Last(0));
    }
    let parsed = parse_range_header(value).ok()?;
    let [range] = parsed.ranges.as_slice() else { return None };
    match (range.start, range.end) {
        (StartPosition::Index(start), EndPosition::LastByte) => Some(ByteRange::From(start)),
        (StartPosition::Index(start), EndPosition::Index(end)) if start <= end => {
            Some(ByteRange::Between(start, end.saturating_add(1)))
        }
        (StartPosition::FromLast(count), _) => Some(ByteRange::Last(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(value: &str) -> Option<ByteRange> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RANGE, HeaderValue::from_str(value).unwrap());
        one_range(&headers)
    }

    #[test]
    fn one_range_is_read_and_everything_else_is_the_whole() {
        assert_eq!(range("bytes=0-0"), Some(ByteRange::Between(0, 1)));
        assert_eq!(range("bytes=5-"), Some(ByteRange::From(5)));
        assert_eq!(range("bytes=-5"), Some(ByteRange::Last(5)));
        assert_eq!(range("bytes=-0"), Some(ByteRange::Last(0)));
        assert_eq!(range("bytes=0-18446744073709551615"), Some(ByteRange::Between(0, u64::MAX)));
        for whole in ["bytes=0-1,3-4", "bytes=5-4", "items=0-1", "bytes=", "bytes=a-b", "bytes=-", "0-1", "bytes=1"] {
            assert_eq!(range(whole), None, "{whole}");
        }
    }

    #[test]
    fn a_tag_is_found_in_a_list_weak_or_strong() {
        let listed = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(value));
            lists(&headers, "\"a\"")
        };
        assert!(listed("\"a\"") && listed("\"b\", W/\"a\"") && listed("*"));
        assert!(!listed("\"b\"") && !listed("a"));
    }
}
