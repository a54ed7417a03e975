//! Which backends the settings mean.

use anyhow::Context;
use bytes::Bytes;
use vidgen_core::net::{Guard, GuardBuilder, UrlImages};
use vidgen_core::{MediaKey, Pipeline, Queue, Store, Vidgen};
use vidgen_http::{SignedLinks, Webhooks, WebhooksBuilder};
use vidgen_store::ObjectStore;
use vidgen_store::sqlite::SqliteQueue;

use crate::settings::Settings;

/// Everything together: jobs in SQLite, media on disk, made by whoever there are keys for, else on
/// this machine. `port` is the one that the server listens at.
pub(crate) async fn open(settings: &Settings, links: SignedLinks, port: u16) -> anyhow::Result<Vidgen> {
    // Pictures come from where webhooks may go: public addresses, and those that are listed.
    let allowed = settings.webhook_allow()?;
    let guard = allowed.into_iter().fold(Guard::builder(), GuardBuilder::with_allowed).build()?;
    let mut builder = Vidgen::builder()
        .queue(queue(settings).await?)
        .store(store(settings)?)
        .notifier(webhooks(settings)?)
        .media_links(links)
        .image_urls(UrlImages::new(guard))
        .retention(settings.retention());
    if let Some(callbacks) = settings.callbacks(port)? {
        builder = builder.callbacks(callbacks);
    }
    for pipeline in pipelines(settings)? {
        builder = builder.pipeline(pipeline);
    }
    Ok(builder.build()?)
}

/// What the settings mean, said in one line each when it starts.
fn pipelines(settings: &Settings) -> anyhow::Result<Vec<Pipeline>> {
    let providers = settings.providers.providers()?;
    let recipes = settings.providers.recipes()?;
    recipes.iter().map(|recipe| recipe.pipeline(&providers)).collect()
}

/// Who makes what; for people.
pub(crate) fn probe_pipelines(settings: &Settings) -> anyhow::Result<String> {
    let pipelines = pipelines(settings)?;
    Ok(pipelines.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

async fn queue(settings: &Settings) -> anyhow::Result<SqliteQueue> {
    settings.data_dir()?;
    let path = settings.database()?;
    SqliteQueue::open(&path).await.with_context(|| format!("database {} cannot be opened", path.display()))
}

fn store(settings: &Settings) -> anyhow::Result<ObjectStore> {
    let dir = &settings.media_dir;
    ObjectStore::local(dir).with_context(|| format!("media directory {} cannot be used", dir.display()))
}

fn webhooks(settings: &Settings) -> anyhow::Result<Webhooks> {
    let builder = Webhooks::builder(settings.webhook_secret()?);
    let allowed = settings.webhook_allow()?;
    let builder = allowed.into_iter().fold(builder, WebhooksBuilder::with_allowed);
    builder.build().context("WEBHOOK_SECRET cannot be used")
}

/// Whether media can be stored.
pub(crate) async fn probe_media(settings: &Settings) -> anyhow::Result<()> {
    let store = store(settings)?;
    let key = MediaKey::new(format!("doctor/probe-{}.bin", std::process::id()))?;
    store.put(&key, Bytes::from_static(b"probe").into()).await?;
    store.delete(&key).await?;
    Ok(())
}

/// Whether the database opens; answers how many jobs are live.
pub(crate) async fn probe_database(settings: &Settings) -> anyhow::Result<u64> {
    let stats = queue(settings).await?.stats().await?;
    Ok(stats.queued + stats.waiting + stats.processing)
}
