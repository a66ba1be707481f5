//! The one volatile server that all test processes of this account share, and how it ends.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use anyhow::{Context as _, ensure};

use super::{APP_ROLE, OWNER_ROLE};
use crate::local_postgres::{self, Cluster, ClusterOptions, Profile, find_binaries, fnv1a};

/// Counts up when the server's settings below change: runs of different source trees may overlap on one machine.
const GENERATION: u32 = 1;
/// Enough for the pools of a few dozen concurrent tests.
const MAX_CONNECTIONS: u16 = 500;
/// `$1` is the server's home, `$2` the process to wait for where `flock` does not exist. The users' lock file is compared with what the
/// path names now, because a server that died may have been replaced, home and all, while this watchdog waited. The home goes in one step:
/// who comes while it is being emptied would otherwise put a new users' lock file and a new server into it.
const WATCHDOG: &str = r#"
home=$1 starter=$2
exec 9<"$home/users" || exit 0
if [ -n "$starter" ]; then
    while kill -0 "$starter" 2>/dev/null; do sleep 1; done
else
    idle=0
    while :; do
        if flock -n -x 9; then
            [ "$idle" -ge 3 ] && break
            idle=$((idle + 1))
            flock -u 9
        else
            idle=0
        fi
        sleep 1
    done
    [ "/proc/$$/fd/9" -ef "$home/users" ] || exit 0
fi
pid=$(head -n 1 "$home/cluster/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -QUIT "$pid" 2>/dev/null
    n=0
    while kill -0 "$pid" 2>/dev/null && [ "$n" -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
    kill -KILL "$pid" 2>/dev/null
fi
gone=$home.$$
mv "$home" "$gone" && rm -rf "$gone"
"#;

/// The shared server, as long as this process lives.
#[derive(Debug)]
pub(super) struct Server {
    socket_dir: PathBuf,
    /// The shared lock that keeps the watchdog waiting.
    _lease: File,
}

impl Server {
    pub(super) fn url(&self, database: &str, role: &str) -> String {
        local_postgres::url(&self.socket_dir, database, role)
    }

    pub(super) fn admin_url(&self) -> String {
        self.url("postgres", local_postgres::SUPERUSER)
    }
}

/// The server: joined or started at the first call of this process.
pub(super) fn server() -> anyhow::Result<&'static Server> {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    if let Some(server) = SERVER.get() {
        return Ok(server);
    }
    let _guard = ONE_AT_A_TIME
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    match SERVER.get() {
        Some(server) => Ok(server),
        None => {
            let server = join_or_start()?;
            Ok(SERVER.get_or_init(|| server))
        }
    }
}

fn join_or_start() -> anyhow::Result<Server> {
    let binaries = find_binaries(None)?;
    let base = base_dir()?;
    let shareable = has_flock();
    let mut key = format!("{GENERATION} {}", binaries.postgres.display());
    if !shareable {
        key.push_str(&format!(" {}", std::process::id()));
    }
    let home = base.join(format!("{:016x}", fnv1a(key.as_bytes())));
    let starting = open(&home.with_extension("lock"))?;
    starting
        .lock()
        .context("cannot lock the test server's start")?;

    let lease = lease(&home)?;
    let dir = home.join("cluster");
    let socket_dir = match local_postgres::running(&dir) {
        Some(socket_dir) => socket_dir,
        None => start(&home, &dir, !shareable)?,
    };
    Ok(Server {
        socket_dir,
        _lease: lease,
    })
}

/// Takes part in the use of `home`: a shared lock on a file that is still in place once we have it.
fn lease(home: &Path) -> anyhow::Result<File> {
    loop {
        make_dir(home)?;
        let path = home.join("users");
        let users = open(&path)?;
        users
            .lock_shared()
            .context("cannot lock the test server's users")?;
        // The watchdog may have removed the home while we waited for its lock.
        let held = users.metadata()?;
        if fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino())) {
            return Ok(users);
        }
    }
}

fn start(home: &Path, dir: &Path, private: bool) -> anyhow::Result<PathBuf> {
    local_postgres::allow_passage(home)?;
    let mut options = ClusterOptions::new(dir, Profile::Volatile);
    options.max_connections = MAX_CONNECTIONS;
    let cluster = Cluster::start(options)?;
    for role in [OWNER_ROLE, APP_ROLE] {
        cluster.ensure_role(role)?;
    }
    let starter = if private {
        std::process::id().to_string()
    } else {
        String::new()
    };
    let mut watchdog = Command::new("/bin/sh");
    watchdog
        .args(["-c", WATCHDOG, "chancery-test-db-watchdog"])
        .arg(home)
        .arg(starter)
        .current_dir("/")
        .process_group(0);
    watchdog
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the watchdog")?;
    let socket_dir = cluster.socket_dir().to_owned();
    cluster.detach();
    Ok(socket_dir)
}

/// A folder of this account's own in the temporary folder, which the unprivileged account may pass through.
fn base_dir() -> anyhow::Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let base = std::env::temp_dir().join(format!("chancery-test-{uid}"));
    make_dir(&base)?;
    let found = fs::symlink_metadata(&base)?;
    ensure!(
        found.is_dir() && found.uid() == uid && found.mode() & 0o022 == 0,
        "{} is not a folder that only this account may write",
        base.display()
    );
    local_postgres::allow_passage(&base)?;
    Ok(base)
}

fn make_dir(path: &Path) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .with_context(|| format!("cannot create {}", path.display()))
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

fn has_flock() -> bool {
    Command::new("flock")
        .arg("-V")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}
