//! Which backends the settings mean.

use anyhow::Context;
use bytes::Bytes;
use vidgen_core::{MediaKey, Pipeline, Queue, Store, Vidgen};
use vidgen_http::{SignedLinks, Webhooks, WebhooksBuilder};
use vidgen_providers::local::LocalProvider;
use vidgen_store::ObjectStore;
use vidgen_store::sqlite::SqliteQueue;

use crate::settings::Settings;

/// Everything together: jobs in SQLite, media on disk, made on this machine.
pub(crate) async fn open(settings: &Settings, links: SignedLinks) -> anyhow::Result<Vidgen> {
    let local = LocalProvider::new().context("the local provider cannot start")?;
    for missing in local.missing() {
        tracing::warn!("{missing}");
    }
    let pipeline = Pipeline::named("default")
        .image(local.clone())
        .video(local.clone())
        .speech(local.clone())
        .optional()
        .compose(local);
    Ok(Vidgen::builder()
        .queue(queue(settings).await?)
        .store(store(settings)?)
        .notifier(webhooks(settings)?)
        .media_links(links)
        .pipeline(pipeline)
        .retention(settings.retention())
        .build()?)
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
