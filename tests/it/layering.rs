//! Arrows point to core only, and core by default knows no HTTP client, database, object store or
//! web framework. Asked of cargo, so that a stray feature cannot hide.

use std::process::Command;

/// The crates that a package brings into a host that asks for nothing else.
fn tree(package: &str, features: &[&str]) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--package", package])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(ToOwned::to_owned).collect()
}

#[test]
fn core_by_default_knows_no_client_database_store_or_framework() {
    let tree = tree("vidgen-core", &[]);
    assert!(tree.iter().any(|c| c == "tokio"), "the question was not understood: {tree:?}");
    for banned in ["reqwest", "hyper", "rustls", "sqlx", "sqlx-core", "redis", "object_store", "axum", "tower"] {
        assert!(!tree.iter().any(|c| c == banned), "vidgen-core depends on {banned}");
    }
}

#[test]
fn providers_stores_and_http_never_depend_on_one_another() {
    let packages = ["vidgen-providers", "vidgen-store", "vidgen-http"];
    for package in packages {
        let tree = tree(package, &["--all-features"]);
        assert!(tree.iter().any(|c| c == "vidgen-core"));
        for other in packages.iter().filter(|p| **p != package) {
            assert!(!tree.iter().any(|c| c == other), "{package} depends on {other}");
        }
    }
}

#[test]
fn there_is_one_tls_stack() {
    for package in ["vidgen-store", "vidgen-http", "standalone"] {
        let tree = tree(package, &["--all-features"]);
        for banned in ["openssl", "native-tls", "ring"] {
            assert!(!tree.iter().any(|c| c == banned), "{package} depends on {banned}");
        }
    }
}
