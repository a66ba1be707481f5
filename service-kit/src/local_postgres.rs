//! A private PostgreSQL for people and tests that have none: found, initialised, started, watched and stopped.
//!
//! The cluster listens on a unix socket only, in a directory that nobody else can enter. It is an ordinary PostgreSQL:
//! everything above it (pool, migrations, services) sees a URL and cannot tell the difference.
//!
//! | module | one line |
//! |---|---|
//! | `binaries` | where `initdb` and `postgres` are, and which version |
//! | `account` | which unprivileged account runs it when we are root, and whether it can enter the folder |
//! | `folder` | its lock, its socket, its names |
//! | `process` | what really runs in a data directory: orphans, leftovers, zombies |
//! | `settings` | the command line of the durable and the volatile profile |
//!
//! Everything here blocks (processes, files, the synchronous `postgres` client): call it from `spawn_blocking` in async code.

mod account;
mod binaries;
mod error;
mod folder;
mod process;
mod settings;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;

pub use account::allow_passage;
pub use binaries::{Binaries, find_binaries};
pub use error::LocalPostgresError;
pub use settings::Profile;

pub(crate) use folder::quoted;
#[cfg(feature = "test-support")]
pub(crate) use folder::{fnv1a, running};
pub use folder::{socket_folder, url};
pub use process::in_directory;

use account::Account;
use error::{Result, io_error};
use folder::{SOCKET_NAME, hand_over, lock, make_dir, run_dir};

/// The oldest major version that has every setting and statement we use.
const OLDEST_MAJOR: u32 = 14;

/// The superuser of a private cluster.
pub const SUPERUSER: &str = "postgres";

/// A server log above this size is set aside at the next start, in bytes.
const MAX_LOG_BYTES: u64 = 16 * 1024 * 1024;
/// How often a starting or stopping server is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What a private cluster should be like. [`ClusterOptions::new`] has usable values for everything.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The cluster's own folder: `data/`, `run/` (socket), `postgres.log` and `lock` are made in it.
    pub dir: PathBuf,
    /// Durable for people, volatile for tests.
    pub profile: Profile,
    /// Where `initdb` and `postgres` are; searched when `None`.
    pub pg_bin: Option<PathBuf>,
    /// `max_connections` of the server; a stock one keeps its own.
    pub max_connections: u16,
    /// More settings, which win over the profile's.
    pub settings: Vec<(String, String)>,
    /// Longest wait until the server accepts connections, crash recovery included.
    pub start_timeout: Duration,
    /// Longest wait for a fast shutdown before it becomes an immediate one.
    pub stop_timeout: Duration,
}

impl ClusterOptions {
    /// A cluster in `dir`: 200 connections, up to 120 s for a start (crash recovery), 20 s for a stop.
    pub fn new(dir: impl Into<PathBuf>, profile: Profile) -> Self {
        Self {
            dir: dir.into(),
            profile,
            pg_bin: None,
            max_connections: 200,
            settings: Vec::new(),
            start_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(20),
        }
    }
}

/// A private cluster whose server is a child of this process. Dropping it stops the server.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    binaries: Binaries,
    account: Option<Account>,
    data: PathBuf,
    run: PathBuf,
    child: Option<Child>,
    detached: bool,
    _lock: File,
}

impl Cluster {
    /// Initialises the directory if it is new, ends whatever an earlier supervisor left running in it, and starts the server.
    ///
    /// # Errors
    /// Every variant of [`LocalPostgresError`] but `Sql`.
    pub fn start(mut options: ClusterOptions) -> Result<Self> {
        make_dir(&options.dir, 0o711)?;
        options.dir = fs::canonicalize(&options.dir).map_err(io_error(format!(
            "cannot resolve {}",
            options.dir.display()
        )))?;
        let dir = options.dir.clone();
        let lock = lock(&dir)?;
        let data = dir.join("data");
        let account = Account::for_cluster(&data)?;
        if let Some(account) = &account {
            allow_passage(&dir)?;
            account.must_reach(&dir)?;
        }
        let binaries = Binaries::for_data(options.pg_bin.as_deref(), &data)?;
        let run = run_dir(&dir, account.as_ref())?;
        let mut cluster = Self {
            options,
            binaries,
            account,
            data,
            run,
            child: None,
            detached: false,
            _lock: lock,
        };
        cluster.end_orphans()?;
        if !cluster.data.join("PG_VERSION").exists() {
            cluster.initialise()?;
        }
        cluster.spawn()?;
        Ok(cluster)
    }

    /// Starts the server again after it ended, after [`Cluster::stop`] or [`Cluster::kill9`]. Does nothing while it runs.
    ///
    /// # Errors
    /// As [`Cluster::start`].
    pub fn restart(&mut self) -> Result<()> {
        if self.exited()?.is_none() {
            return Ok(());
        }
        self.end_orphans()?;
        self.spawn()
    }

    /// The server's process id, while it has one that was not yet collected.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the server ended: `None` while it runs, its status (if it is known) otherwise. Never blocks.
    ///
    /// # Errors
    /// `Io` when the process cannot be asked.
    pub fn exited(&mut self) -> Result<Option<Option<ExitStatus>>> {
        let Some(child) = &mut self.child else {
            return Ok(Some(None));
        };
        let status = child
            .try_wait()
            .map_err(io_error("cannot ask for the server's status"))?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status.map(Some))
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data
    }

    /// The folder of the socket.
    pub fn socket_dir(&self) -> &Path {
        &self.run
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.options.dir.join("postgres.log")
    }

    /// A URL for `role` on `database`; no password is needed, since the socket's folder admits this account only.
    pub fn url(&self, database: &str, role: &str) -> String {
        url(&self.run, database, role)
    }

    /// The superuser's URL on the maintenance database.
    pub fn admin_url(&self) -> String {
        self.url("postgres", SUPERUSER)
    }

    /// Makes sure that a login role without further rights exists.
    ///
    /// # Errors
    /// `Sql`.
    pub fn ensure_role(&self, role: &str) -> Result<()> {
        let mut client = postgres::Client::connect(&self.admin_url(), postgres::NoTls)?;
        if client
            .query_opt(
                "/* local_postgres::ensure_role */ SELECT 1 FROM pg_roles WHERE rolname = $1",
                &[&role],
            )?
            .is_none()
        {
            client.batch_execute(&format!(
                "CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE",
                quoted(role)
            ))?;
        }
        Ok(())
    }

    /// Makes sure that a database exists which belongs to `owner` and which, besides the owner, only `guests` may connect to.
    ///
    /// # Errors
    /// `Sql`; the roles must exist.
    pub fn ensure_database(&self, database: &str, owner: &str, guests: &[&str]) -> Result<()> {
        let mut client = postgres::Client::connect(&self.admin_url(), postgres::NoTls)?;
        let (name, owner) = (quoted(database), quoted(owner));
        if client.query_opt("/* local_postgres::ensure_database */ SELECT 1 FROM pg_database WHERE datname = $1", &[&database])?.is_none() {
            client.batch_execute(&format!("CREATE DATABASE {name} OWNER {owner}"))?;
        }
        client.batch_execute(&format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"))?;
        for guest in guests {
            client.batch_execute(&format!(
                "GRANT CONNECT ON DATABASE {name} TO {}",
                quoted(guest)
            ))?;
        }
        Ok(())
    }

    /// Ends the server: sessions are closed and a checkpoint is written; without an end in time, at once.
    ///
    /// # Errors
    /// `TimedOut` when even SIGKILL did not help, `Io`.
    pub fn stop(&mut self) -> Result<()> {
        for (signal, patience) in [
            (Signal::INT, self.options.stop_timeout),
            (Signal::QUIT, Duration::from_secs(5)),
        ] {
            let Some(pid) = self.pid() else { return Ok(()) };
            process::signal(pid.cast_signed(), signal)?;
            let until = Instant::now() + patience;
            while Instant::now() < until {
                if self.exited()?.is_some() {
                    return Ok(());
                }
                sleep(POLL);
            }
        }
        self.kill9()
    }

    /// Kills the server and every process of it with SIGKILL, as a power cut of the machine would (the page cache survives).
    ///
    /// # Errors
    /// `Io`, and `TimedOut` when a process did not go away.
    pub fn kill9(&mut self) -> Result<()> {
        let members = process::in_directory(&self.data);
        if let Some(mut child) = self.child.take() {
            child.kill().map_err(io_error("cannot kill the server"))?;
            child
                .wait()
                .map_err(io_error("cannot collect the server"))?;
        }
        for pid in members {
            process::signal(pid, Signal::KILL)?;
        }
        self.wait_for_empty(Duration::from_secs(10))
    }

    /// Gives up the supervision: the server goes on without us and is found again by the next [`Cluster::start`] in its folder.
    pub fn detach(mut self) -> Option<u32> {
        self.detached = true;
        self.child.take().map(|child| child.id())
    }

    /// Ends what runs in the data directory although no supervisor holds the lock: an orphan of a killed one.
    fn end_orphans(&mut self) -> Result<()> {
        if let Some(pid) = process::postmaster(&self.data) {
            tracing::warn!(
                pid,
                "a PostgreSQL without a supervisor runs in this directory: stopping it"
            );
            for (signal, patience) in [
                (Signal::INT, self.options.stop_timeout),
                (Signal::QUIT, Duration::from_secs(5)),
            ] {
                process::signal(pid, signal)?;
                let until = Instant::now() + patience;
                while process::runs_in(pid, &self.data) && Instant::now() < until {
                    sleep(POLL);
                }
            }
        }
        // Backends of a killed postmaster end by themselves, but while one is busy the new server refuses to start.
        for directory in [&self.data, &self.new_data()] {
            for pid in process::in_directory(directory) {
                process::signal(pid, Signal::KILL)?;
            }
        }
        self.wait_for_empty(Duration::from_secs(10))?;
        // A zombie's number still counts as taken for PostgreSQL, which would refuse to start over these files.
        for stale in [
            self.data.join("postmaster.pid"),
            self.run.join(format!("{SOCKET_NAME}.lock")),
        ] {
            match fs::remove_file(&stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(io_error(format!("cannot remove {}", stale.display()))(
                        error,
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn wait_for_empty(&self, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        loop {
            let Some(pid) = process::in_directory(&self.data).into_iter().next() else {
                return Ok(());
            };
            if Instant::now() > until {
                return Err(LocalPostgresError::TimedOut {
                    pid,
                    what: "ended",
                    waited_ms: patience.as_millis(),
                    log: self.log_file(),
                });
            }
            sleep(POLL);
        }
    }

    fn new_data(&self) -> PathBuf {
        self.data.with_extension("new")
    }

    /// `initdb` into a folder beside, then a rename: a half-made data directory never has the real name.
    fn initialise(&self) -> Result<()> {
        let new = self.new_data();
        if new.exists() {
            fs::remove_dir_all(&new)
                .map_err(io_error(format!("cannot remove {}", new.display())))?;
        }
        make_dir(&new, 0o700)?;
        self.hand_over(&new)?;
        let mut command = self.command(&self.binaries.initdb);
        command.arg("-D").arg(&new).args([
            "-U",
            SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-instructions",
        ]);
        command.args(self.options.profile.initdb_arguments());
        let output = command
            .stdin(Stdio::null())
            .output()
            .map_err(io_error(format!(
                "cannot run {}",
                self.binaries.initdb.display()
            )))?;
        if !output.status.success() {
            let said = [output.stdout, output.stderr].concat();
            return Err(LocalPostgresError::Initdb {
                said: end_of(&String::from_utf8_lossy(&said), 2000),
            });
        }
        fs::rename(&new, &self.data)
            .map_err(io_error(format!("cannot rename {}", new.display())))?;
        File::open(&self.options.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io_error("cannot sync the cluster's folder"))
    }

    fn spawn(&mut self) -> Result<()> {
        let log = self.open_log()?;
        let offset = log
            .metadata()
            .map_err(io_error("cannot read the log's size"))?
            .len();
        let copy = log.try_clone().map_err(io_error("cannot share the log"))?;
        let mut command = self.command(&self.binaries.postgres);
        command.arg("-D").arg(&self.data);
        let lz4 = self.options.profile == Profile::Durable && self.takes(settings::LZ4);
        for (name, value) in settings::of(&self.options, &self.run, lz4) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        // A group of its own: Ctrl-C in a terminal must reach the services first, and PostgreSQL only through us.
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy);
        let child = command.spawn().map_err(io_error(format!(
            "cannot run {}",
            self.binaries.postgres.display()
        )))?;
        self.child = Some(child);
        self.wait_until_ready(offset)
    }

    /// Whether this PostgreSQL can be started with a setting.
    fn takes(&self, setting: &str) -> bool {
        let mut command = self.command(&self.binaries.postgres);
        command
            .arg("-D")
            .arg(&self.data)
            .args(["-C", "wal_level", "-c", setting]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn wait_until_ready(&mut self, log_offset: u64) -> Result<()> {
        let pid = self.pid().map_or(0, u32::cast_signed);
        let until = Instant::now() + self.options.start_timeout;
        while Instant::now() < until {
            if let Some(status) = self.exited()? {
                let log = self.log_file();
                let tail = log_from(&log, log_offset);
                return Err(LocalPostgresError::Exited {
                    status: status.unwrap_or_default(),
                    log,
                    tail,
                });
            }
            if process::is_ready(&self.data, pid) {
                return Ok(());
            }
            sleep(POLL);
        }
        let error = LocalPostgresError::TimedOut {
            pid,
            what: "ready",
            waited_ms: self.options.start_timeout.as_millis(),
            log: self.log_file(),
        };
        self.kill9()?;
        Err(error)
    }

    /// A command that runs as the unprivileged account, without the caller's PG* variables.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.options.dir)
            .env("LC_ALL", "C")
            .env("TZ", "UTC");
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG"))
        {
            command.env_remove(name);
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn hand_over(&self, path: &Path) -> Result<()> {
        hand_over(path, self.account.as_ref())
    }

    fn open_log(&self) -> Result<File> {
        let path = self.log_file();
        if fs::metadata(&path).is_ok_and(|log| log.len() > MAX_LOG_BYTES) {
            fs::rename(&path, path.with_extension("log.old"))
                .map_err(io_error(format!("cannot set {} aside", path.display())))?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error(format!("cannot open {}", path.display())))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.detached {
            return;
        }
        let ended = match self.options.profile {
            Profile::Durable | Profile::Stock => self.stop(),
            Profile::Volatile => self.kill9(),
        };
        if let Err(error) = ended {
            tracing::error!(%error, "PostgreSQL could not be stopped");
        }
    }
}

fn end_of(text: &str, max_chars: usize) -> String {
    let skip = text.chars().count().saturating_sub(max_chars);
    text.chars()
        .skip(skip)
        .collect::<String>()
        .trim()
        .to_owned()
}

fn log_from(path: &Path, offset: u64) -> String {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|mut log| {
        log.seek(SeekFrom::Start(offset))?;
        log.take(64 * 1024).read_to_end(&mut text)
    });
    match read {
        Ok(_) => end_of(&String::from_utf8_lossy(&text), 4000),
        Err(error) => format!("(unreadable: {error})"),
    }
}
