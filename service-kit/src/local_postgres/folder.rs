//! The cluster's folder: its lock, its socket, whose it is; and the names under which clients find it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};

use super::account::Account;
use super::error::{LocalPostgresError, Result, io_error};
#[cfg(feature = "test-support")]
use super::process;

/// Longest path of a unix socket that every Linux accepts, in bytes.
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The name PostgreSQL gives its socket; the port is only a part of that name.
pub(super) const SOCKET_NAME: &str = ".s.PGSQL.5432";

/// The socket folder of the cluster in `dir`, if a server runs there and accepts connections.
#[cfg(feature = "test-support")]
pub(crate) fn running(dir: &Path) -> Option<PathBuf> {
    let data = fs::canonicalize(dir.join("data")).ok()?;
    let pid = process::postmaster(&data)?;
    process::is_ready(&data, pid)
        .then(|| process::socket_dir(&data))
        .flatten()
}

/// A URL for a cluster whose socket, `.s.PGSQL.5432`, is in `socket_dir`.
pub fn url(socket_dir: &Path, database: &str, role: &str) -> String {
    let host = percent_encoded(&socket_dir.to_string_lossy());
    format!(
        "postgresql://{}@{host}/{}",
        percent_encoded(role),
        percent_encoded(database)
    )
}

/// An identifier, quoted for SQL.
pub(crate) fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// One supervisor per folder; the lock goes away with the process, however it ends.
pub(super) fn lock(dir: &Path) -> Result<File> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path);
    let file = file.map_err(io_error(format!("cannot open {}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(LocalPostgresError::InUse {
            dir: dir.to_owned(),
        }),
        Err(TryLockError::Error(source)) => Err(LocalPostgresError::Io {
            what: format!("cannot lock {}", path.display()),
            source,
        }),
    }
}

pub(super) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(io_error(format!("cannot create {}", path.display())))
}

pub(super) fn hand_over(path: &Path, account: Option<&Account>) -> Result<()> {
    let Some(account) = account else {
        return Ok(());
    };
    chown(path, Some(account.uid), Some(account.gid)).map_err(io_error(format!(
        "cannot give {} to {}",
        path.display(),
        account.name
    )))
}

/// The folder for sockets of things that keep their files in `dir`: `dir/run`, or a short one in `/tmp` where that path is too long for a socket whose
/// own name has up to 13 bytes. Only this account may enter it.
///
/// # Errors
/// `Io`, also when the folder belongs to somebody else.
pub fn socket_folder(dir: &Path) -> Result<PathBuf> {
    run_dir(dir, None)
}

/// The socket's folder: inside the cluster's, or, where that makes the path too long for a socket, a short one in `/tmp`.
pub(super) fn run_dir(dir: &Path, account: Option<&Account>) -> Result<PathBuf> {
    let inside = dir.join("run");
    let run = if inside.as_os_str().len() + 1 + SOCKET_NAME.len() <= MAX_SOCKET_PATH_BYTES {
        inside
    } else {
        PathBuf::from(format!(
            "/tmp/chancery-{:016x}",
            fnv1a(dir.as_os_str().as_encoded_bytes())
        ))
    };
    make_dir(&run, 0o700)?;
    let found =
        fs::symlink_metadata(&run).map_err(io_error(format!("cannot read {}", run.display())))?;
    let ours = rustix::process::geteuid().as_raw();
    let allowed = found.uid() == ours || account.is_some_and(|account| account.uid == found.uid());
    if !found.is_dir() || !allowed {
        return Err(io_error(format!(
            "{} belongs to somebody else",
            run.display()
        ))(io::ErrorKind::PermissionDenied.into()));
    }
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700))
        .map_err(io_error(format!("cannot protect {}", run.display())))?;
    hand_over(&run, account)?;
    Ok(run)
}

/// The 64-bit FNV-1a hash: stable names out of long ones, nothing secret.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_unusual_names_apart() {
        let url = url(Path::new("/tmp/a b/run"), "as_ministère", "own/er");
        assert_eq!(
            url,
            "postgresql://own%2Fer@%2Ftmp%2Fa%20b%2Frun/as_minist%C3%A8re"
        );
        let config: postgres::Config = url.parse().expect("a URL the client reads");
        assert_eq!(config.get_dbname(), Some("as_ministère"));
        assert_eq!(config.get_user(), Some("own/er"));
    }

    #[test]
    fn identifiers_cannot_break_out() {
        assert_eq!(
            quoted("a\"; DROP TABLE x; --"),
            "\"a\"\"; DROP TABLE x; --\""
        );
    }

    #[test]
    fn long_folders_get_a_short_socket() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let long = root.path().join("x".repeat(120));
        fs::create_dir(&long).expect("a folder");
        let run = run_dir(&long, None).expect("a socket folder");
        assert!(
            run.as_os_str().len() + 1 + SOCKET_NAME.len() <= MAX_SOCKET_PATH_BYTES,
            "{}",
            run.display()
        );
        assert_eq!(
            fs::metadata(&run).expect("made").permissions().mode() & 0o777,
            0o700
        );
        fs::remove_dir(&run).expect("empty");
    }
}
