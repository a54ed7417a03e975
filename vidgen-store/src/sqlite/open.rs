//! Opening the file: settings that keep money safe, checked; tables, migrated.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqlSafeStr, SqliteConnection};
use uuid::Uuid;
use vidgen_core::{Error, ErrorKind, Result};

use super::fault::{self, ORIGIN};

/// How long a statement waits for another process's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a file that another process is just creating is tried again, and how long apart:
/// the change to WAL fails at once where a transaction would wait.
const OPEN_ATTEMPTS: u32 = 100;
const OPEN_PAUSE: Duration = Duration::from_millis(50);
/// How large the log may stay on disk once its content is in the database.
const LOG_LIMIT: &str = "67108864";
/// Readers beside the writer. They never wait for it, so a few are enough.
const READERS: u32 = 4;
/// Every statement we have, prepared once for each connection.
const STATEMENTS: usize = 256;
/// File systems whose locks or shared memory cannot be relied upon between hosts.
const NETWORK: [&str; 11] =
    ["afs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"];

/// Opens connections to one file.
#[derive(Clone, Debug)]
pub(super) struct Opener {
    path: PathBuf,
}

impl Opener {
    /// Checks that a database can live at `path`.
    pub(super) fn new(path: &Path) -> Result<Self> {
        let bad = |message: &str| Error::new(ErrorKind::Unavailable, ORIGIN, message.to_owned());
        let name = path.file_name().ok_or_else(|| bad("the database needs the name of a file"))?;
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        // Two handles must agree on the names of the lock files, whichever way they came here.
        let directory = fs::canonicalize(directory)
            .map_err(|e| bad("the directory of the database does not exist").with_source(e))?;
        // SQLite writes its log beside the file, so a writable file alone is not enough.
        let probe = directory.join(format!(".vidgen-{}", Uuid::new_v4().simple()));
        fs::File::create_new(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|e| bad("the directory of the database cannot be written to").with_source(e))?;
        if let Some(kind) = network_file_system(&directory) {
            let message = format!("the database lies on a network file system ({kind}), where its locks do not hold");
            return Err(Error::new(ErrorKind::Unsupported, ORIGIN, message));
        }
        Ok(Self { path: directory.join(name) })
    }

    /// The file, by its one true name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .statement_cache_capacity(STATEMENTS)
            .disable_statement_logging()
    }

    /// A connection that may write, with its settings verified.
    pub(super) async fn writer(&self) -> Result<SqliteConnection> {
        let options = self
            .options()
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL loses the last commits at power loss, and a lost intent is a second payment.
            .synchronous(SqliteSynchronous::Full)
            .pragma("journal_size_limit", LOG_LIMIT);
        let mut attempts = 0;
        let mut conn = loop {
            match options.connect().await.map_err(fault::database) {
                Ok(conn) => break conn,
                Err(error) if error.kind() == ErrorKind::Unavailable && attempts < OPEN_ATTEMPTS => {
                    attempts += 1;
                    tokio::time::sleep(OPEN_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        };
        check(&mut conn).await?;
        Ok(conn)
    }

    /// Connections that cannot write.
    pub(super) fn readers(&self) -> SqlitePool {
        SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(self.options().create_if_missing(false).pragma("query_only", "on"))
    }

    /// A connection of its own for the one who looks for other processes' commits.
    pub(super) async fn reader(&self) -> Result<SqliteConnection> {
        self.options().create_if_missing(false).pragma("query_only", "on").connect().await.map_err(fault::database)
    }
}

/// Refuses a connection whose settings could lose what was acknowledged.
pub(super) async fn check(conn: &mut SqliteConnection) -> Result<()> {
    let journal: String =
        sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *conn).await.map_err(fault::database)?;
    let synchronous: i64 =
        sqlx::query_scalar("pragma synchronous").fetch_one(&mut *conn).await.map_err(fault::database)?;
    let foreign_keys: i64 =
        sqlx::query_scalar("pragma foreign_keys").fetch_one(&mut *conn).await.map_err(fault::database)?;
    let problem = if !journal.eq_ignore_ascii_case("wal") {
        "it has no write-ahead log"
    } else if synchronous < 2 {
        "its commits do not wait for the disk"
    } else if foreign_keys != 1 {
        "it does not enforce foreign keys"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Unsupported, ORIGIN, format!("the database cannot be used safely: {problem}")))
}

/// Creates or updates the tables.
pub(super) async fn migrate(conn: &mut SqliteConnection) -> Result<()> {
    let migration = |n, name: &'static str, sql: &'static str| {
        Migration::new(n, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(vec![
        migration(1, "queue", include_str!("migrations/1_queue.sql")),
        migration(2, "witness", include_str!("migrations/2_witness.sql")),
    ]);
    // The default name is the host application's own.
    migrator.dangerous_set_table_name("_vidgen_migrations");
    // A newer version of us may have been here: changes are additive, so its tables serve us, too.
    migrator.set_ignore_missing(true);
    // The migrator takes no lock, and two processes may come here at once.
    let mut tx = conn.begin_with("begin immediate").await.map_err(fault::database)?;
    migrator.run(&mut *tx).await.map_err(|e| match e {
        MigrateError::Execute(e) => fault::database(e),
        e => Error::internal(ORIGIN, "the tables cannot be brought up to date").with_source(e),
    })?;
    tx.commit().await.map_err(fault::database)
}

/// The kind of the file system that `directory` lies on, if it is a network's. Linux only; elsewhere nothing is known.
fn network_file_system(directory: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let (_, kind) = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            Some((words.next()?, words.next()?))
        })
        .filter(|(mount, _)| directory.starts_with(mount))
        // The last of equals hides the ones before it.
        .max_by_key(|(mount, _)| mount.len())?;
    NETWORK.contains(&kind).then(|| kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_does_not_wait_for_the_disk_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let opener = Opener::new(&directory.path().join("vidgen.db")).unwrap();
        drop(opener.writer().await.unwrap());
        let wal = opener.options().journal_mode(SqliteJournalMode::Wal);
        let mut normal = wal.clone().synchronous(SqliteSynchronous::Normal).connect().await.unwrap();
        let error = check(&mut normal).await.unwrap_err();
        assert!(error.message().contains("do not wait for the disk"), "{error}");
        let mut loose = wal.synchronous(SqliteSynchronous::Full).foreign_keys(false).connect().await.unwrap();
        assert!(check(&mut loose).await.unwrap_err().message().contains("foreign keys"));
    }

    #[tokio::test]
    async fn a_database_without_a_log_is_refused() {
        let mut memory = SqliteConnectOptions::new().in_memory(true).connect().await.unwrap();
        let error = check(&mut memory).await.unwrap_err();
        assert!(error.message().contains("write-ahead log"), "{error}");
    }
}
