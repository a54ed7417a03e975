//! Everything that can be set, by environment or flag.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::{ExposeSecret, SecretString};
use url::Url;
use vidgen_core::{Callbacks, Retention};

use crate::providers::ProviderSettings;

#[derive(Args, Clone, Debug)]
pub(crate) struct Settings {
    /// The address to listen at; 0.0.0.0 for everybody who can reach this machine.
    #[arg(long, env = "HOST", default_value = "127.0.0.1", value_parser = host)]
    pub(crate) host: IpAddr,
    /// The port to listen at; 0 takes a free one.
    #[arg(long, env = "PORT", default_value_t = 3000)]
    pub(crate) port: u16,
    /// Where jobs are kept: `sqlite:` and a path.
    #[arg(long, env = "DATABASE_URL", default_value = "sqlite:data/vidgen.db", value_name = "URL")]
    pub(crate) database_url: String,
    /// Where media are kept.
    #[arg(long, env = "MEDIA_DIR", default_value = "data/media", value_name = "DIR")]
    pub(crate) media_dir: PathBuf,
    /// Where users reach this server, such as <https://video.example>; for links.
    #[arg(long, env = "PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<String>,
    /// Signs webhooks. If absent, one is made and kept beside the database.
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRET")]
    webhook_secret: Option<SecretString>,
    /// Addresses that webhooks may reach though they are private, e.g. 127.0.0.1:9000; for development.
    #[arg(long, env = "WEBHOOK_ALLOW", default_value = "", hide_default_value = true, value_name = "ADDRESS,…")]
    webhook_allow: String,
    /// Signs links to media. If absent, one is made and kept beside the database.
    #[arg(long, env = "LINK_SECRET", hide_env_values = true, value_name = "SECRET")]
    link_secret: Option<SecretString>,
    /// How many jobs run at once; most of them only wait for a provider.
    #[arg(long, env = "CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) concurrency: u16,
    /// How long completed jobs and their media are kept, in hours.
    #[arg(long, env = "KEEP_COMPLETED_HOURS", default_value_t = 24, value_name = "HOURS")]
    pub(crate) keep_completed_hours: u32,
    /// How long failed and canceled jobs are kept, in hours.
    #[arg(long, env = "KEEP_FAILED_HOURS", default_value_t = 168, value_name = "HOURS")]
    pub(crate) keep_failed_hours: u32,
    /// Keep at most so many completed jobs of each tenant; no such limit if absent.
    #[arg(long, env = "MAX_COMPLETED", value_name = "JOBS")]
    pub(crate) max_completed: Option<u32>,
    /// Keep at most so many failed and canceled jobs of each tenant; no such limit if absent.
    #[arg(long, env = "MAX_FAILED", value_name = "JOBS")]
    pub(crate) max_failed: Option<u32>,
    /// Where providers reach this server to call back, such as <https://video.example>; PUBLIC_URL if that
    /// is https. `auto` is the address that it listens at, for a provider on this machine. Without
    /// any, providers are only polled.
    #[arg(long, env = "CALLBACK_URL", value_name = "URL")]
    callback_url: Option<String>,
    /// Who makes images, videos and speech.
    #[command(flatten)]
    pub(crate) providers: ProviderSettings,
    /// What to log, e.g. `info` or `vidgen_core=debug`.
    #[arg(long, env = "LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

/// An address, or the one name that means one.
fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        _ => text.parse().map_err(|_| "is not an IP address".into()),
    }
}

impl Settings {
    /// The same for a server that nobody else shall reach.
    pub(crate) fn private(&self) -> Self {
        Self { port: 0, host: Ipv4Addr::LOCALHOST.into(), public_url: None, ..self.clone() }
    }

    /// The SQLite file.
    pub(crate) fn database(&self) -> anyhow::Result<PathBuf> {
        let Some(path) = self.database_url.strip_prefix("sqlite:") else {
            // Never print it: other databases have passwords in there.
            bail!("DATABASE_URL must be `sqlite:` and a path");
        };
        let path = path.strip_prefix("//").unwrap_or(path);
        if path.is_empty() || path.contains(":memory:") || path.contains('?') {
            bail!("DATABASE_URL must be `sqlite:` and the path of a file, since jobs have to survive a restart");
        }
        Ok(path.into())
    }

    /// How long ended jobs are kept.
    pub(crate) fn retention(&self) -> Retention {
        let hours = |hours: u32| Duration::from_secs(u64::from(hours) * 3600);
        Retention {
            completed: hours(self.keep_completed_hours),
            failed: hours(self.keep_failed_hours),
            max_completed: self.max_completed,
            max_failed: self.max_failed,
        }
    }

    /// The directory of the database, made if it is not there.
    pub(crate) fn data_dir(&self) -> anyhow::Result<PathBuf> {
        let dir = match self.database()?.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
            _ => ".".into(),
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("directory {} cannot be made", dir.display()))?;
        Ok(dir)
    }

    /// Where users reach the server that listens at `port`, without a slash at the end.
    pub(crate) fn public_base(&self, port: u16) -> anyhow::Result<String> {
        let Some(url) = self.public_url.as_deref().filter(|url| !url.is_empty()) else {
            return Ok(self.listening_base(port));
        };
        let url = Url::parse(url).context("PUBLIC_URL must be a URL")?;
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            bail!("PUBLIC_URL must be an http or https URL without a query");
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }

    /// Where providers call back the server that listens at `port`, and what signs their URLs.
    pub(crate) fn callbacks(&self, port: u16) -> anyhow::Result<Option<Callbacks>> {
        let named = self.callback_url.as_deref().map(str::trim).filter(|url| !url.is_empty());
        let base = match (named, self.public_url.as_deref()) {
            (Some("auto"), _) => self.listening_base(port),
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(url)) if url.starts_with("https://") => self.public_base(port)?,
            _ => return Ok(None),
        };
        let secret = crate::secrets::kept(&self.data_dir()?, "callback-secret")?;
        let callbacks = Callbacks::new(&format!("{base}/api"), &secret).context("CALLBACK_URL cannot be used")?;
        Ok(Some(callbacks))
    }

    /// What signs links; the same for all processes on this database.
    pub(crate) fn link_secret(&self) -> anyhow::Result<SecretString> {
        match set(&self.link_secret) {
            Some(secret) => Ok(secret),
            None => crate::secrets::kept(&self.data_dir()?, "link-secret"),
        }
    }

    fn listening_base(&self, port: u16) -> String {
        let host = if self.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.host };
        format!("http://{}", SocketAddr::new(host, port))
    }

    /// What signs webhooks; the same for all processes on this database.
    pub(crate) fn webhook_secret(&self) -> anyhow::Result<SecretString> {
        if let Some(secret) = set(&self.webhook_secret) {
            return Ok(secret);
        }
        // The prefix says that the rest is base64, which hex digits are, too.
        let kept = crate::secrets::kept(&self.data_dir()?, "webhook-secret")?;
        Ok(format!("whsec_{}", kept.expose_secret()).into())
    }

    /// Private addresses that webhooks may reach.
    pub(crate) fn webhook_allow(&self) -> anyhow::Result<Vec<SocketAddr>> {
        let entries = self.webhook_allow.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let parse = |entry: &str| {
            entry.parse().with_context(|| format!("WEBHOOK_ALLOW has {entry:?}, which is not an address and a port"))
        };
        entries.map(parse).collect()
    }
}

/// A variable that is set to nothing is as good as not set: compose files do that.
fn set(secret: &Option<SecretString>) -> Option<SecretString> {
    secret.clone().filter(|secret| !secret.expose_secret().is_empty())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        settings: Settings,
    }

    fn settings(args: &[&str]) -> Settings {
        Only::parse_from(std::iter::once(&"test").chain(args)).settings
    }

    #[test]
    fn a_database_is_a_file() {
        let path = |url: &str| settings(&["--database-url", url]).database().ok();
        assert_eq!(path("sqlite:data/v.db"), Some("data/v.db".into()));
        assert_eq!(path("sqlite:///var/v.db"), Some("/var/v.db".into()));
        for bad in ["postgres://user:secret@host/db", "sqlite:", "sqlite::memory:", "sqlite:v.db?mode=ro"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_tutorials_retention_can_be_had() {
        let kept = settings(&["--max-completed", "100", "--max-failed", "500"]).retention();
        assert_eq!((kept.max_completed, kept.max_failed), (Some(100), Some(500)));
        assert_eq!(settings(&[]).retention(), Retention::default());
    }

    #[test]
    fn without_a_public_url_links_lead_to_the_address_listened_at() {
        assert_eq!(settings(&["--host", "0.0.0.0"]).public_base(3000).unwrap(), "http://127.0.0.1:3000");
        assert_eq!(settings(&["--host", "::1"]).public_base(80).unwrap(), "http://[::1]:80");
        let public = settings(&["--public-url", "https://x.example/video/"]);
        assert_eq!(public.public_base(3000).unwrap(), "https://x.example/video");
        assert_eq!(settings(&["--public-url", ""]).public_base(80).unwrap(), "http://127.0.0.1:80");
        assert!(settings(&["--public-url", "ftp://x.example"]).public_base(80).is_err());
    }

    #[test]
    fn private_addresses_are_listed_exactly() {
        let allowed = |list: &str| settings(&["--webhook-allow", list]).webhook_allow();
        assert_eq!(allowed("").unwrap(), []);
        assert_eq!(allowed("127.0.0.1:9000, [::1]:9000,").unwrap().len(), 2);
        for bad in ["127.0.0.1", "localhost:9000", "10.0.0.0/8"] {
            assert!(allowed(bad).is_err(), "{bad}");
        }
    }
}
