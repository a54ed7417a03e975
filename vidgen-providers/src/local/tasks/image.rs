//! A picture, drawn from the words of its prompt.

use vidgen_core::{ContentInfo, Error, ErrorKind, ImageTask, MediaType, Result};

use super::super::draw::{self, Wish};
use super::super::scratch::RunDir;
use super::{Made, ORIGIN};

const NAME: &str = "image.png";

pub(super) async fn make(task: &ImageTask, dir: &RunDir) -> Result<Made> {
    let wish = Wish {
        prompt: task.prompt.clone(),
        avoided: task.negative_prompt.clone().unwrap_or_default(),
        style: task.style.clone().unwrap_or_default(),
        width: task.size.width,
        height: task.size.height,
        seed: task.seed,
    };
    // Drawing takes a core for some tenths of a second, which others on the runtime would feel.
    let drawn = tokio::task::spawn_blocking(move || draw::png(&wish)).await;
    let png = drawn.map_err(|e| Error::internal(ORIGIN, "drawing was cut short").with_source(e))??;
    let unwritten = |e| Error::new(ErrorKind::Unavailable, ORIGIN, "cannot write to scratch").with_source(e);
    tokio::fs::write(dir.file(NAME), png).await.map_err(unwritten)?;
    let content =
        ContentInfo { width: Some(task.size.width), height: Some(task.size.height), duration: None, audio: None };
    Ok(Made { name: NAME, media_type: MediaType::Png, content })
}
