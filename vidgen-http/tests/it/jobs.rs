//! `/jobs`: whose they are, what is shown of them, and what can be done.

use axum::body::Body;
use axum::http::Method;
use serde_json::{Value, json};
use vidgen_core::JobId;

use crate::support::{Host, by, request, with};

#[tokio::test]
async fn a_foreign_job_is_as_if_it_did_not_exist() {
    let (host, empty) = (Host::new(), Host::new());
    let id = host.job().await;
    let routes = [
        (Method::GET, format!("/api/status/{id}")),
        (Method::GET, format!("/api/jobs/{id}")),
        (Method::DELETE, format!("/api/jobs/{id}")),
        (Method::POST, format!("/api/jobs/{id}/retry")),
        (Method::GET, format!("/api/jobs/{id}/video")),
        (Method::GET, format!("/api/jobs/{id}/thumbnail")),
    ];
    for (method, path) in routes {
        let ask = || with("x-request-id", "same", by("eve", request(method.clone(), &path, Body::empty())));
        let (foreign, unknown) = (host.send(ask()).await, empty.send(ask()).await);
        assert_eq!((foreign.status.as_u16(), &foreign.body), (404, &unknown.body), "{method} {path}");
        assert_eq!(foreign.headers, unknown.headers, "{method} {path}");
        assert_eq!(foreign.json()["error"], "Job not found");
    }
    assert_eq!(
        host.send(by("eve", request(Method::GET, "/api/jobs", Body::empty()))).await.json(),
        json!({"jobs": []})
    );
    assert_eq!(host.get(&format!("/api/status/{id}")).await.json()["status"], "queued");
}

#[tokio::test]
async fn whatever_is_not_an_id_is_no_job() {
    let host = Host::new();
    for id in ["1234", "vid_", "%00", "%ff", "..%2f..%2fetc%2fpasswd", "vid_0190%0a", &JobId::new().to_string()] {
        for path in [format!("/api/status/{id}"), format!("/api/jobs/{id}")] {
            let answer = host.get(&path).await;
            assert_eq!(
                (answer.status.as_u16(), answer.json()["error"].as_str()),
                (404, Some("Job not found")),
                "{path}"
            );
        }
    }
}

#[tokio::test]
async fn pages_skip_and_repeat_nothing_while_jobs_come_in() {
    let host = Host::new();
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, host.job().await.to_string());
    }
    let (mut seen, mut path) = (Vec::new(), "/api/jobs?limit=2".to_owned());
    loop {
        let page = host.get(&path).await.json();
        seen.extend(page["jobs"].as_array().unwrap().iter().map(|j| j["job_id"].as_str().unwrap().to_owned()));
        host.job().await;
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/jobs?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(seen, made);
}

#[tokio::test]
async fn a_list_is_narrowed_by_state_and_bad_queries_are_named() {
    let host = Host::new();
    let done = host.job().await;
    host.complete(done).await;
    let queued = host.job().await;
    let of = |state: &str| {
        let path = format!("/api/jobs?state={state}");
        let host = &host;
        async move { host.get(&path).await.json()["jobs"].clone() }
    };
    assert_eq!(of("completed").await[0]["job_id"], done.to_string());
    assert_eq!(of("queued").await[0]["job_id"], queued.to_string());
    assert_eq!(of("queued").await[0]["prompt"], "a cat in space");
    assert_eq!(of("failed").await, json!([]));

    let answer = host.get("/api/jobs?state=done&limit=101&cursor=x").await;
    assert_eq!(answer.status, 400);
    let fields: Vec<_> = answer.details().iter().map(|d| d.split(' ').next().unwrap().to_owned()).collect();
    assert_eq!(fields, ["state", "limit", "cursor"]);
    assert_eq!(host.get("/api/jobs?limit=1&limit=2").await.status, 400);
}

#[tokio::test]
async fn the_record_shows_steps_and_the_request_and_nothing_of_ours() {
    let host = Host::new();
    let body = json!({ "prompt": "a cat", "duration_seconds": 2.5, "metadata": { "order": 7 } });
    let id = host.post("/api/generate", body.to_string()).await.json()["job_id"].as_str().unwrap().to_owned();
    let record = host.get(&format!("/api/jobs/{id}")).await.json();
    let request = json!({ "prompt": "a cat", "duration_seconds": 2.5, "metadata": { "order": 7 },
        "aspect_ratio": "16:9", "resolution": "720p" });
    assert_eq!(record["request"], request);
    assert_eq!(
        (&record["pipeline"], &record["width"], &record["height"]),
        (&json!("default"), &json!(1280), &json!(720))
    );
    let image = json!({ "step": "image", "state": "pending", "provider": "idle", "model": "idle/image", "cost": 0.0,
        "attempts": [] });
    assert_eq!(record["steps"][0], image);
    let steps: Vec<&Value> = record["steps"].as_array().unwrap().iter().map(|s| &s["step"]).collect();
    assert_eq!(steps, ["image", "video", "compose", "thumbnail"]);
    for ours in ["tenant", "handle", "epoch", "task_hash", "crashes", "held"] {
        assert!(record.get(ours).is_none(), "{ours}");
    }
}

#[tokio::test]
async fn deleting_a_queued_job_cancels_it_and_once_more_removes_it() {
    let host = Host::new();
    let id = host.job().await;
    let answer = host.delete(&format!("/api/jobs/{id}")).await;
    assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (202, Some("canceled")));
    let answer = host.delete(&format!("/api/jobs/{id}")).await;
    assert_eq!((answer.status.as_u16(), answer.body.len()), (204, 0));
    assert_eq!(host.get(&format!("/api/status/{id}")).await.status, 404);
}

#[tokio::test]
async fn deleting_a_completed_job_removes_its_media() {
    let host = Host::new();
    let id = host.job().await;
    host.complete(id).await;
    let link = host.get(&format!("/api/status/{id}")).await.json()["output"]["video_url"].as_str().unwrap().to_owned();
    let path = link.strip_prefix("https://x.example").unwrap();
    assert_eq!(host.get(path).await.status, 200);
    assert_eq!(host.delete(&format!("/api/jobs/{id}")).await.status, 204);
    let gone = host.get(path).await;
    assert_eq!((gone.status.as_u16(), gone.json()["error"].as_str()), (404, Some("Not found")));
    assert!(host.store.keys().is_empty());
}

#[tokio::test]
async fn a_failed_job_can_be_retried_and_a_live_one_cannot() {
    let host = Host::new();
    let id = host.job().await;
    let path = format!("/api/jobs/{id}/retry");
    let retry = || host.post(&path, Body::empty());
    let live = retry().await;
    assert_eq!((live.status.as_u16(), live.json()["code"].as_str()), (409, Some("conflict")));
    host.fail().await;
    let answer = retry().await;
    assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (202, Some("queued")));
}

#[tokio::test]
async fn video_and_thumbnail_redirect_to_links_that_work() {
    let host = Host::new();
    let id = host.job().await;
    let early = host.get(&format!("/api/jobs/{id}/video")).await;
    assert_eq!((early.status.as_u16(), early.json()["code"].as_str()), (409, Some("not_completed")));
    host.complete(id).await;
    for what in ["video", "thumbnail"] {
        let answer = host.get(&format!("/api/jobs/{id}/{what}")).await;
        assert_eq!((answer.status.as_u16(), answer.header("cache-control")), (302, "no-store"));
        let path = answer.header("location").strip_prefix("https://x.example").unwrap();
        assert_eq!(host.get(path).await.status, 200, "{what}");
    }
}

#[tokio::test]
async fn usage_is_added_up_in_dollars() {
    let host = Host::new();
    host.job().await;
    let usage = host.get("/api/usage").await.json();
    assert_eq!(usage, json!({ "cost": 0.0, "charged": 0.0, "held": 0.6, "rows": [] }));
    let bad = host.get("/api/usage?from=yesterday&to=now").await;
    assert_eq!((bad.status.as_u16(), bad.details().len()), (400, 2));
    assert_eq!(host.get("/api/usage?from=2026-01-01T00:00:00Z").await.status, 200);
}
