//! Secrets that are made once and kept beside the database, so that links and signatures survive
//! a restart and all processes have the same.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;
use uuid::Uuid;

/// The secret in `dir` under `name`; a new one if there is none.
pub(crate) fn kept(dir: &Path, name: &str) -> anyhow::Result<SecretString> {
    let path = dir.join(name);
    let cannot = |what: &str| format!("secret {} cannot be {what}", path.display());
    if !path.exists() {
        // Written under another name first and linked, so that of several processes that start
        // together one wins and none reads half a file.
        let draft = dir.join(format!(".{name}.{}", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)
            .with_context(|| cannot("made"))?;
        // Two random UUIDs: 244 bits from the operating system.
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        file.write_all(secret.as_bytes()).and_then(|()| file.sync_all()).with_context(|| cannot("written"))?;
        let linked = fs::hard_link(&draft, &path);
        fs::remove_file(&draft).with_context(|| cannot("made"))?;
        if !path.exists() {
            linked.with_context(|| cannot("made"))?;
        }
    }
    let secret = fs::read_to_string(&path).with_context(|| cannot("read"))?;
    anyhow::ensure!(!secret.trim().is_empty(), "secret {} is empty: delete it", path.display());
    Ok(secret.trim().into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_secret_is_made_once_for_its_owner_alone() {
        let dir = std::env::temp_dir().join(format!("vidgen-secrets-{}", Uuid::new_v4().simple()));
        fs::create_dir(&dir).unwrap();
        let first = kept(&dir, "link-secret").unwrap();
        let second = kept(&dir, "link-secret").unwrap();
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(first.expose_secret().len(), 64);
        let mode = fs::metadata(dir.join("link-secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_dir_all(&dir).unwrap();
    }
}
