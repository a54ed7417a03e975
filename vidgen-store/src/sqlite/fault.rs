//! What can go wrong inside a statement, and what it means outside.

use std::sync::Arc;

use vidgen_core::{Error, ErrorKind};

/// The name that our errors carry.
pub(super) const ORIGIN: &str = "sqlite";

/// An error on its way out of an operation: ours, or the database's.
#[derive(Debug)]
pub(super) enum Fault {
    Ours(Error),
    Database(sqlx::Error),
}

/// The result of an operation inside the writer.
pub(super) type Outcome<T> = Result<T, Fault>;

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl Fault {
    /// Whether the transaction around it is lost, too.
    pub(super) fn spoils_the_batch(&self) -> bool {
        matches!(self, Self::Database(error) if kind_of(error).0 == ErrorKind::Unavailable)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Ours(error) => error,
            Fault::Database(error) => database(error),
        }
    }
}

/// What the database's error means to the caller. SQLite's own messages name tables and columns,
/// never a path or a value; they are kept as the cause.
pub(super) fn database(error: sqlx::Error) -> Error {
    let (kind, message) = kind_of(&error);
    Error::new(kind, ORIGIN, message).with_source(error)
}

/// One failure of a whole batch, told to each of its callers.
pub(super) fn shared(error: &Arc<sqlx::Error>) -> Error {
    let (kind, message) = kind_of(error);
    Error::new(kind, ORIGIN, message).with_source(Arc::clone(error))
}

/// A row that is not what this library wrote.
pub(super) fn corrupt(what: impl std::fmt::Display, cause: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::internal(ORIGIN, format!("{what} cannot be read back")).with_source(cause)
}

fn kind_of(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    // The low byte is the primary result code; the rest says more of the same.
    let primary = code.and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff);
    match primary {
        Some(5 | 6) => (ErrorKind::Unavailable, "the database is busy"),
        Some(7) => (ErrorKind::Unavailable, "the database is out of memory"),
        Some(8) => (ErrorKind::Unavailable, "the database is read-only"),
        Some(10) => (ErrorKind::Unavailable, "the disk failed"),
        Some(13) => (ErrorKind::Unavailable, "the disk is full"),
        Some(14) => (ErrorKind::Unavailable, "the database cannot be opened"),
        Some(11 | 26) => (ErrorKind::Internal, "the database is damaged"),
        Some(_) => (ErrorKind::Internal, "a statement failed"),
        None => match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                (ErrorKind::Unavailable, "the database is away")
            }
            _ => (ErrorKind::Internal, "a row is not what was expected"),
        },
    }
}
