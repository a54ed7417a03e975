//! What the text of a URL must be before anything is done with it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use url::{Host, Url};

use super::address::is_public;
use crate::error::{Error, Result};

/// Longer ones are refused by many servers, and by no sane one needed.
const MAX_LENGTH: usize = 2048;

/// Names that mean something only inside of a network (RFC 6761, 6762, 7686, 8375; ICANN's
/// `.internal` of 2024), whatever a resolver there says.
const INSIDE: [&str; 6] = ["localhost", "local", "internal", "localdomain", "home.arpa", "onion"];

/// Names of cloud metadata services that are not already [`INSIDE`]: Google's short alias, Tencent's,
/// Equinix Metal's.
const METADATA: [&str; 4] =
    ["metadata.goog", "metadata.tencentyun.com", "metadata.platformequinix.com", "metadata.packet.net"];

/// What is allowed beyond the rules: ports, and sockets for development.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) ports: Vec<u16>,
    pub(super) allowed: Vec<SocketAddr>,
}

/// A URL that a stranger wrote and a [`Guard`](super::Guard) found fit to be called. It says nothing
/// yet of the addresses behind its name: they are judged when it is.
#[derive(Clone, PartialEq, Eq)]
pub struct CheckedUrl(pub(super) Url);

impl CheckedUrl {
    /// The host, as it was understood: lower case, and an address in its usual spelling.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Debug for CheckedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Endpoints often carry a secret in their path or query.
        f.write_str("CheckedUrl(…)")
    }
}

impl Rules {
    /// Judges the text. No I/O, so its answers tell nothing of our network.
    pub(super) fn check(&self, text: &str) -> Result<CheckedUrl> {
        if text.chars().count() > MAX_LENGTH {
            return Err(not("should be at most 2048 characters long"));
        }
        plain(text)?;
        let url = Url::parse(text).map_err(|_| not("should be a URL such as https://example.com/hook"))?;
        self.judge(&url)?;
        Ok(CheckedUrl(url))
    }

    /// Where `location`, an answer's from `from`, leads: judged like a text of a stranger's, because
    /// it is one.
    pub(super) fn follow(&self, from: &CheckedUrl, location: &str) -> Result<CheckedUrl> {
        plain(location)?;
        let to = from.0.join(location).map_err(|_| not("should be a URL or a path"))?;
        // Not even to a socket that is allowed: what was asked for under TLS is not to come without.
        if from.0.scheme() == "https" && to.scheme() != "https" {
            return Err(not("should be an https URL"));
        }
        self.check(to.as_str())
    }

    /// Judges a parsed URL.
    pub(super) fn judge(&self, url: &Url) -> Result<()> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(not("should have no user name or password"));
        }
        let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
            return Err(not("should be a URL such as https://example.com/hook"));
        };
        let literal = match host {
            Host::Ipv4(address) => Some(IpAddr::V4(address)),
            Host::Ipv6(address) => Some(IpAddr::V6(address)),
            Host::Domain(_) => None,
        };
        let excepted = literal.is_some_and(|address| self.allowed.contains(&SocketAddr::new(address, port)));
        if excepted && matches!(url.scheme(), "https" | "http") {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(not("should be an https URL"));
        }
        if !self.ports.contains(&port) {
            let ports: Vec<String> = self.ports.iter().map(u16::to_string).collect();
            return Err(not(format!("should use port {}", ports.join(" or "))));
        }
        let public = match host {
            Host::Ipv4(address) => is_public(address.into()),
            Host::Ipv6(address) => is_public(address.into()),
            Host::Domain(name) => is_public_name(name),
        };
        if !public {
            return Err(not("should name a public host"));
        }
        Ok(())
    }

    /// Whether an answer may have come from `peer`.
    pub(super) fn is_peer(&self, peer: SocketAddr) -> bool {
        self.allowed.contains(&peer) || self.ports.contains(&peer.port()) && is_public(peer.ip())
    }
}

/// The parser drops tabs and line breaks, and takes a backslash for a slash; other readers of the
/// same text may not.
fn plain(text: &str) -> Result<()> {
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(not("should have no spaces, backslashes or control characters"));
    }
    Ok(())
}

/// `name` is lower case and in ASCII, since the parser made it so.
fn is_public_name(name: &str) -> bool {
    // A final dot makes a name absolute, but not another one.
    let name = name.strip_suffix('.').unwrap_or(name);
    let within = |zone: &&str| name.strip_suffix(*zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let labels = name.split('.');
    labels.clone().count() >= 2
        && labels.into_iter().all(|label| !label.is_empty())
        && !INSIDE.iter().any(within)
        && !METADATA.iter().any(within)
}

fn not(should: impl Into<String>) -> Error {
    Error::invalid_field("url", should)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rules() -> Rules {
        Rules { ports: vec![443, 8443], allowed: vec!["127.0.0.1:8080".parse().unwrap()] }
    }

    #[test]
    fn a_public_https_url_is_fine() {
        for fine in [
            "https://example.com",
            "https://example.com:443/hook?a=b#c",
            "https://example.com:8443/",
            "HTTPS://EXAMPLE.COM./hook",
            "https://xn--bcher-kva.example/",
            "https://bücher.example/ä",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]:8443/",
            "https://notlocalhost.com/",
            "https://local.example.com/",
            "https://home.arpa.example/",
        ] {
            assert!(rules().check(fine).is_ok(), "{fine}: {:?}", rules().check(fine));
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = format!("https://example.com/{}", "a".repeat(2048));
        for bad in [
            "",
            "example.com",
            "/hook",
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "gopher://example.com/",
            "javascript:alert(1)",
            "https:///",
            "https://user@example.com/",
            "https://user:secret@example.com/",
            "https://:secret@example.com/",
            "https://example.com:80/",
            "https://example.com:22/",
            "https://example.com:0/",
            "https://example.com:99999/",
            " https://example.com/",
            "https://example.com/\n",
            "https://exam\tple.com/",
            "https://example.com/a\r\nHost: b",
            "https://example.com/\0",
            "https://example.com/\u{85}",
            "https://example.com\\@127.0.0.1/",
            "https:\\\\example.com/",
            "https://localhost/",
            "https://LOCALHOST/",
            "https://localhost./",
            "https://a.localhost/",
            "https://printer.local/",
            "https://metadata.google.internal/computeMetadata/v1/",
            "https://instance-data.ec2.internal/",
            "https://host.localdomain/",
            "https://router.home.arpa./",
            "https://abc.onion/",
            "https://metadata.goog/",
            "https://metadata.tencentyun.com/",
            "https://intranet/",
            "https://com./",
            "https://a..example.com/",
            "https://%6c%6f%63%61%6c%68%6f%73%74/",
            // Every spelling of 127.0.0.1 and 169.254.169.254 the parser knows.
            "https://127.0.0.1/",
            "https://127.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0x7f000001/",
            "https://0177.0.0.1/",
            "https://017700000001/",
            "https://127.0.0.1./",
            "https://%31%32%37.0.0.1/",
            "https://127。0。0。1/",
            "https://①②⑦.0.0.1/",
            "https://１２７.0.0.1/",
            "https://169.254.169.254/latest/meta-data/",
            "https://0xa9fea9fe/",
            "https://[::1]/",
            "https://[::]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://[0:0:0:0:0:ffff:a9fe:a9fe]/",
            "https://[fd00:ec2::254]/",
            "https://[64:ff9b::127.0.0.1]/",
            "https://[fe80::1]/",
            "https://[fe80::1%25eth0]/",
            // Beside the one socket that is allowed.
            "http://127.0.0.1:8081/",
            "http://127.0.0.2:8080/",
            "http://127.0.0.1/",
            "http://localhost:8080/",
            "http://[::ffff:127.0.0.1]:8080/",
            "ftp://127.0.0.1:8080/",
            "http://user@127.0.0.1:8080/",
            &long,
        ] {
            match rules().check(bad) {
                Ok(_) => panic!("{bad:?} was accepted"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Invalid, "{bad:?}: {error}");
                    assert!(error.fields()[0].message.starts_with("should "), "{bad:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_development_escape_is_exact() {
        for fine in ["http://127.0.0.1:8080/hook", "https://127.0.0.1:8080/", "http://0x7f.1:8080/"] {
            assert!(rules().check(fine).is_ok(), "{fine}");
        }
    }

    #[test]
    fn a_redirect_is_resolved_and_then_judged() {
        let public = "https://example.com/a/b?c#d";
        let allowed = "http://127.0.0.1:8080/a/b";
        for (from, location, to) in [
            (public, "e", "https://example.com/a/e"),
            (public, "/e?f", "https://example.com/e?f"),
            (public, "../../..", "https://example.com/"),
            (public, "?e", "https://example.com/a/b?e"),
            (public, "", "https://example.com/a/b?c"),
            (public, "//example.org:8443/e", "https://example.org:8443/e"),
            (public, "HTTPS://EXAMPLE.ORG", "https://example.org/"),
            (public, "https://127.0.0.1:8080/", "https://127.0.0.1:8080/"),
            (allowed, "/e", "http://127.0.0.1:8080/e"),
            (allowed, "http://127.0.0.1:8080/e", "http://127.0.0.1:8080/e"),
            (allowed, "https://example.com/e", "https://example.com/e"),
        ] {
            let followed = rules().follow(&rules().check(from).unwrap(), location);
            assert_eq!(followed.unwrap().0.as_str(), to, "{location:?} at {from}");
        }
        for (from, location) in [
            // Down from TLS, even to what is allowed.
            (public, "http://example.com/"),
            (public, "http://127.0.0.1:8080/"),
            (allowed, "http://example.com/"),
            (allowed, "//example.com/"),
            (allowed, "http://127.0.0.1:8081/"),
            (public, "//127.0.0.1/"),
            (public, "https://10.0.0.1/"),
            (public, "https://0xa9fea9fe/latest/meta-data/"),
            (public, "https://[::ffff:10.0.0.1]/"),
            (public, "https://metadata.google.internal/"),
            (public, "https://localhost/"),
            (public, "//intranet/"),
            (public, "https://user:secret@example.com/"),
            (public, "https://example.com:22/"),
            (public, "file:///etc/passwd"),
            (public, "data:,hello"),
            (public, "https://"),
            (public, "\\\\127.0.0.1/"),
            (public, "/\\127.0.0.1/"),
            (public, "/a b"),
            (public, "/a\tb"),
            (public, &format!("/{}", "a".repeat(2048))),
        ] {
            let followed = rules().follow(&rules().check(from).unwrap(), location);
            assert_eq!(followed.map_err(|e| e.kind()), Err(ErrorKind::Invalid), "{location:?} at {from}");
        }
    }

    #[test]
    fn a_checked_url_is_not_printed() {
        assert!(!format!("{:?}", rules().check("https://example.com/secret").unwrap()).contains("example"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn no_spelling_of_an_address_is_judged_otherwise(bits in any::<u32>(), private in any::<bool>()) {
            let bits = if private { 10 << 24 | bits >> 8 } else { bits };
            let address = Ipv4Addr::from_bits(bits);
            let [a, b, c, d] = address.octets();
            let low = bits & 0xff_ffff;
            let spellings = [
                format!("{address}"),
                format!("{address}."),
                format!("{bits}"),
                format!("{bits:#x}"),
                format!("{bits:#X}").to_lowercase(),
                format!("0{bits:o}"),
                format!("{a:#x}.{b:#x}.{c:#x}.{d:#x}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("{a}.{low}"),
                format!("{a}.{b}.{}", u16::from_be_bytes([c, d])),
                format!("{a:#x}.{b}.0{:o}", u16::from_be_bytes([c, d])),
                format!("[::ffff:{address}]"),
                format!("[{}]", Ipv6Addr::from_bits(0xffff_0000_0000 | u128::from(bits))),
            ];
            for spelling in spellings {
                let accepted = rules().check(&format!("https://{spelling}/")).is_ok();
                prop_assert_eq!(accepted, is_public(address.into()), "{} for {}", spelling, address);
            }
        }

        #[test]
        fn no_text_is_accepted_whose_host_is_not_public(text in "(https?://)?[a-z0-9.:@/\\\\\\[\\]%#?x-]{0,40}") {
            if let Ok(CheckedUrl(url)) = rules().check(&text) {
                match url.host() {
                    Some(Host::Domain(name)) => prop_assert!(name.contains('.')),
                    Some(Host::Ipv4(address)) => prop_assert!(is_public(address.into())),
                    Some(Host::Ipv6(address)) => prop_assert!(is_public(address.into())),
                    None => prop_assert!(false, "{} has no host", text),
                }
                prop_assert_eq!(url.scheme(), "https");
            }
        }
    }
}
