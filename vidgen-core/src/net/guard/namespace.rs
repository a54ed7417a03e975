//! The guard in a network of its own, whose loopback carries private and public addresses alike:
//! whatever it connects to is seen, and nothing leaves the machine.

use super::*;
use crate::net::DownloadLimits;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const NAME: &str = "net::guard::namespace::nothing_private_is_ever_connected_to";

const PUBLIC: [&str; 2] = ["8.8.8.8", "2606:4700:4700::1111"];

/// One of every block that a network card takes.
const PRIVATE: [&str; 24] = [
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.31.196.1",
    "192.52.193.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.175.48.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "::1",
    "fd00:ec2::254",
    "fe80::1",
    "64:ff9b::a00:1",
    "2001:db8::1",
    "2002:a00:1::1",
    "2620:4f:8000::1",
    "3fff::1",
];

/// Redirects to whatever is asked for. The one socket that is allowed, and no canary.
const REDIRECTOR: &str = "127.0.0.1:9000";

/// How a stranger makes us connect to something.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Post,
    Get,
    Redirect,
}

const WAYS: [Way; 3] = [Way::Post, Way::Get, Way::Redirect];

/// Answers from a list, in turn.
#[derive(Debug)]
struct InTurn(Vec<Vec<IpAddr>>, AtomicUsize);

#[async_trait]
impl Resolve for InTurn {
    async fn resolve(&self, _name: &str) -> std::io::Result<Vec<IpAddr>> {
        let turn = self.1.fetch_add(1, Ordering::SeqCst) % self.0.len();
        Ok(self.0[turn].clone())
    }
}

/// The child does the work; the parent only puts it into a network that has nothing but loopback.
#[test]
fn nothing_private_is_ever_connected_to() {
    if std::env::var_os("VIDGEN_TEST_NAMESPACE").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(in_namespace());
        return;
    }
    let mut setup = String::from("set -e; ip link set lo up; ");
    for address in PUBLIC.iter().chain(&PRIVATE).filter(|a| !["127.0.0.1", "::1"].contains(a)) {
        let (bits, flags) = if address.contains(':') { (128, "nodad") } else { (32, "") };
        setup += &format!("ip addr add {address}/{bits} dev lo {flags}; ");
    }
    let probe = Command::new("unshare").args(["-rn", "sh", "-c", &setup]).output();
    if !probe.is_ok_and(|o| o.status.success()) {
        assert!(std::env::var_os("VIDGEN_REQUIRE_SERVICES").is_none(), "no network namespace to be had");
        println!("skipped: no network namespace to be had");
        return;
    }
    let output = Command::new("unshare")
        .args(["-rn", "sh", "-c", &format!("{setup} exec \"$0\" --exact {NAME} --nocapture")])
        .arg(std::env::current_exe().unwrap())
        .env("VIDGEN_TEST_NAMESPACE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn in_namespace() {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    let others = devices.lines().skip(2).filter(|line| !line.trim_start().starts_with("lo:")).count();
    assert_eq!(others, 0, "there is more than loopback here: {devices}");

    let reached: Arc<Mutex<BTreeMap<IpAddr, usize>>> = Arc::default();
    for port in [80, 443, 8443] {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await.unwrap();
        let reached = Arc::clone(&reached);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let address = stream.local_addr().unwrap().ip().to_canonical();
                *reached.lock().unwrap().entry(address).or_default() += 1;
            }
        });
    }

    let redirects = redirector().await;

    let mut redirected = 0;
    let public = PUBLIC.map(|a| a.parse::<IpAddr>().unwrap());
    for private in PRIVATE.map(|a| a.parse::<IpAddr>().unwrap()) {
        let mapped = match private {
            IpAddr::V4(address) => address.to_ipv6_mapped().into(),
            IpAddr::V6(_) => private,
        };
        let answers = [
            vec![private],
            vec![mapped],
            vec![public[0], private],
            vec![private, public[1]],
            vec![public[0], public[1], mapped],
        ];
        let host = if private.is_ipv6() { format!("[{private}]") } else { private.to_string() };
        let literals = [
            format!("https://{host}/"),
            format!("https://{host}:8443/"),
            format!("http://{host}/"),
            format!("https://[{}]/", if let IpAddr::V6(v6) = mapped { v6 } else { Ipv6Addr::LOCALHOST }),
        ];
        for way in WAYS {
            let guard = guard(answers.to_vec());
            for _ in &answers {
                call(&guard, way, "https://rebind.example/hook").await.unwrap_err();
            }
            for url in &literals {
                call(&guard, way, url).await.unwrap_err();
            }
        }
        redirected += answers.len() + literals.len();
    }
    assert_eq!(*reached.lock().unwrap(), BTreeMap::new());
    assert_eq!(redirects.load(Ordering::SeqCst), redirected, "a redirect was not even asked for");

    // Good and bad answers in turn: only the good ones lead anywhere.
    for way in WAYS {
        let guard = guard(vec![vec![public[0]], vec![PRIVATE[4].parse().unwrap()], vec![public[1]]]);
        for _ in 0..30 {
            call(&guard, way, "https://rebind.example/hook").await.unwrap_err();
        }
        call(&guard, way, "https://8.8.8.8:8443/").await.unwrap_err();
        let reached = std::mem::take(&mut *reached.lock().unwrap());
        assert_eq!(reached, BTreeMap::from([(public[0], 11), (public[1], 10)]), "{way:?}");
        assert_eq!(guard.ssrf_guard_breaches(), 0);
    }
}

/// How often it has redirected.
async fn redirector() -> Arc<AtomicUsize> {
    let listener = TcpListener::bind(REDIRECTOR).await.unwrap();
    let redirects = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&redirects);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let request = String::from_utf8(request).unwrap();
            let location = request.split([' ', '?']).nth(2).unwrap();
            let answer = format!("HTTP/1.1 302 X\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    redirects
}

fn guard(answers: Vec<Vec<IpAddr>>) -> Guard {
    let resolver = Arc::new(InTurn(answers, AtomicUsize::new(0)));
    let builder = Guard::builder().with_port(8443).with_allowed(REDIRECTOR.parse().unwrap());
    builder.with_resolver(resolver).build().unwrap()
}

/// Always fails: the canaries speak no TLS. What matters is whom it reached.
async fn call(guard: &Guard, way: Way, url: &str) -> Result<()> {
    let total = Duration::from_secs(2);
    match way {
        Way::Post => {
            let limits = CallLimits::WEBHOOK.with_total(total);
            guard.post(&guard.check(url)?, HeaderMap::new(), Bytes::new(), limits).await.map(drop)
        }
        Way::Get => guard.get(&guard.check(url)?, DownloadLimits::IMAGE.with_total(total)).await.map(drop),
        Way::Redirect => {
            let start = guard.check(&format!("http://{REDIRECTOR}/?{url}"))?;
            guard.get(&start, DownloadLimits::IMAGE.with_total(total)).await.map(drop)
        }
    }
}
