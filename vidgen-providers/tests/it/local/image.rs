use vidgen_core::{ErrorKind, MediaType, Provider, ProviderExt, Submission, SubmissionId, Usd};
use vidgen_providers::local::LocalProvider;

use super::kit::*;

#[tokio::test]
async fn a_picture_has_the_size_asked_for_and_follows_from_its_words() {
    let local = local();
    for (width, height) in [(640, 360), (360, 640), (360, 360), (101, 63)] {
        let (output, bytes) = made(&local, &image("a lighthouse", size(width, height), 1)).await;
        assert_eq!(output.media_type, Some(MediaType::Png));
        assert_eq!((output.content.width, output.content.height), (Some(width), Some(height)));
        let said = probe(&bytes, "stream=width,height");
        assert_eq!(said, format!("width={width}\nheight={height}\n"));
    }
    let picture = async |prompt: &str, seed| made(&local, &image(prompt, size(320, 180), seed)).await.1;
    let one = picture("a cat", 1).await;
    assert_eq!(one, picture("a cat", 1).await);
    assert_ne!(one, picture("a cat", 2).await);
    assert_ne!(one, picture("a dog", 1).await);
}

#[tokio::test]
async fn pictures_need_no_tool_and_what_does_says_which() {
    let local = LocalProvider::builder().without_voice().build().unwrap();
    assert_eq!(local.missing().len(), 1);
    made(&local, &image("a city", size(320, 180), 1)).await;
    let error = submit(&local, &speech("hello", None)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("install espeak-ng"), "{error}");
}

#[tokio::test]
async fn text_that_means_something_to_tools_is_only_text() {
    let local = local();
    for text in [
        "it's \"quoted\" \\ %{pts} %d :;,[x]='",
        "line\none\r\n\ttwo",
        "🎬🔥 日本語 العربية עברית हिन्दी",
        "$(touch /tmp/x) `id` ; rm -rf /",
        "-i /etc/passwd",
        "\u{202e}\u{200d}\u{feff}",
    ] {
        made(&local, &image(text, size(160, 90), 1)).await;
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_task_is_named_at_once() {
    let local = local();
    let error = submit(&local, &image("x", size(5000, 8), 1)).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.fields()[0].field == "size");
    let mut unknown = image("x", size(64, 64), 1);
    unknown.model = "local/telepathy".into();
    assert_eq!(submit(&local, &unknown).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let mut crossed = image("x", size(64, 64), 1);
    crossed.model = "local/video".into();
    assert_eq!(submit(&local, &crossed).await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_is_not_declared_is_unsupported_and_what_is_unknown_not_found() {
    let local = local();
    let submission = Submission {
        id: SubmissionId::from_remote("sub_x"),
        ordinal: 1,
        provider: local.id(),
        model: "local/image".into(),
        task_hash: String::new(),
        hold: Usd::ZERO,
        intent_at: None,
    };
    assert_eq!(local.find(&submission).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let stranger = vidgen_core::Handle::new(local.id(), "run_of_another_process");
    assert_eq!(local.poll(&stranger).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(local.cancel(&stranger).await.unwrap_err().kind(), ErrorKind::NotFound);
    let output = vidgen_core::Output::new("run_x/../../../../etc/passwd");
    assert_eq!(local.open(&output).await.unwrap_err().kind(), ErrorKind::NotFound);
    let _route = local.model("local/image");
}

#[tokio::test]
async fn a_handle_survives_json_and_works_from_another_provider() {
    let first = local();
    let handle = submit(&first, &image("a city", size(160, 90), 1)).await.unwrap();
    let handle = serde_json::from_str(&serde_json::to_string(&handle).unwrap()).unwrap();
    assert!(matches!(finish(&local(), &handle).await, vidgen_core::RunState::Succeeded(_)));
}
