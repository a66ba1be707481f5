//! Why a private PostgreSQL could not be had, and how a person gets it.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

/// Why a private PostgreSQL could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LocalPostgresError {
    /// No usable pair of `initdb` and `postgres` was found.
    #[error(
        "no PostgreSQL {} or newer found ({searched}). Install it (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; \
         Alpine: `apk add postgresql`; Arch: `pacman -S postgresql`; macOS: `brew install postgresql`), or name its directory with --pg-bin or CHANCERY_PG_BIN",
        super::OLDEST_MAJOR
    )]
    NotFound {
        /// The places that were looked at, in order.
        searched: String,
    },
    /// The data directory was made by another major version than any that was found.
    #[error(
        "{data} was made by PostgreSQL {wanted}, but only {found} was found: install PostgreSQL {wanted}, or dump there and restore into a new directory"
    )]
    WrongVersion {
        /// The data directory.
        data: PathBuf,
        /// Its major version.
        wanted: u32,
        /// The version that was found.
        found: u32,
    },
    /// Another live supervisor uses this directory.
    #[error("{dir} is in use by another process (lock file {dir}/lock)")]
    InUse {
        /// The cluster's directory.
        dir: PathBuf,
    },
    /// Root must hand the server to an unprivileged account, and that account cannot enter the folder.
    #[error(
        "PostgreSQL does not run as root, and the account `{account}`, which would run it, cannot enter {blocked}: choose a folder elsewhere, or allow it with `chmod o+x {blocked}`"
    )]
    Unreachable {
        /// The unprivileged account.
        account: String,
        /// The first folder it cannot enter.
        blocked: PathBuf,
    },
    /// Root found no unprivileged account to run the server.
    #[error(
        "PostgreSQL does not run as root, and neither an account `postgres` nor `nobody` exists: create one, or run this as another user"
    )]
    NoAccount,
    /// `initdb` failed.
    #[error("initdb failed: {said}")]
    Initdb {
        /// The end of what it said.
        said: String,
    },
    /// The server ended while it was starting.
    #[error("PostgreSQL ended while starting ({status}); the end of {log}:\n{tail}")]
    Exited {
        /// Its exit status.
        status: ExitStatus,
        /// Its log file.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// The server did not get ready, or did not end, in time.
    #[error("PostgreSQL (process {pid}) was not {what} after {waited_ms} ms; see {log}")]
    TimedOut {
        /// Its process id.
        pid: i32,
        /// What was waited for.
        what: &'static str,
        /// For how long, in milliseconds.
        waited_ms: u128,
        /// Its log file.
        log: PathBuf,
    },
    /// The server refused a statement of ours.
    #[error("PostgreSQL refused: {0}")]
    Sql(#[from] postgres::Error),
    /// A file or process operation failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with its path.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

pub(super) type Result<T, E = LocalPostgresError> = std::result::Result<T, E>;

/// Adds what was tried to an IO error.
pub(super) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> LocalPostgresError {
    let what = what.into();
    move |source| LocalPostgresError::Io { what, source }
}
