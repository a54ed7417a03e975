//! Everything that can be set, by environment or flag.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use secrecy::SecretString;
use url::Url;

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
    /// Where users reach this server, e.g. https://video.example; for links.
    #[arg(long, env = "PUBLIC_URL", value_name = "URL")]
    pub(crate) public_url: Option<Url>,
    /// Signs webhooks. If absent, one is made and kept beside the database.
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub(crate) webhook_secret: Option<SecretString>,
    /// Addresses that webhooks may reach though they are private, e.g. 127.0.0.1:9000; for development.
    #[arg(long, env = "WEBHOOK_ALLOW", value_delimiter = ',', value_name = "ADDRESS")]
    pub(crate) webhook_allow: Vec<SocketAddr>,
    /// Signs links to media. If absent, one is made and kept beside the database.
    #[arg(long, env = "LINK_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub(crate) link_secret: Option<SecretString>,
    /// How many jobs run at once; most of them only wait for a provider.
    #[arg(long, env = "CONCURRENCY", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) concurrency: u16,
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
        let Some(url) = &self.public_url else {
            let host = if self.host.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { self.host };
            return Ok(format!("http://{}", SocketAddr::new(host, port)));
        };
        if !matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some() {
            bail!("PUBLIC_URL must be an http or https URL without a query");
        }
        Ok(url.as_str().trim_end_matches('/').to_owned())
    }
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
    fn without_a_public_url_links_lead_to_the_address_listened_at() {
        assert_eq!(settings(&["--host", "0.0.0.0"]).public_base(3000).unwrap(), "http://127.0.0.1:3000");
        assert_eq!(settings(&["--host", "::1"]).public_base(80).unwrap(), "http://[::1]:80");
        let public = settings(&["--public-url", "https://x.example/video/"]);
        assert_eq!(public.public_base(3000).unwrap(), "https://x.example/video");
    }
}
