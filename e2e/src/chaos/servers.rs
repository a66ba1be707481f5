//! The server side as separate processes: PostgreSQL, an Authentication Service, two nodes of the Delivery Service; and the lines between them.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use service_kit::local_postgres::{Cluster, ClusterOptions, Profile, SUPERUSER, in_directory, url};
use single_node::{AuthFile, NodeFile};

use super::{
    double::Double,
    history::{Event, Recorder},
    line::Line,
};
use crate::programs::{Programs, arg};

/// The one domain.
pub const DOMAIN: &str = "interior.example";
/// The disk that PostgreSQL gets, where one can be mounted, in MiB.
const DISK_MIB: u64 = 512;
const SOCKET: &str = ".s.PGSQL.5432";
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A server process that is started again whenever it ends.
#[derive(Debug)]
pub struct Service {
    /// For people.
    pub name: &'static str,
    command: Mutex<Command>,
    child: Mutex<Option<Child>>,
    /// Stays down until then.
    down_until: Mutex<Option<Instant>>,
}

impl Service {
    fn new(name: &'static str, command: Command) -> Self {
        Self {
            name,
            command: Mutex::new(command),
            child: Mutex::new(None),
            down_until: Mutex::new(None),
        }
    }

    /// Kills it with SIGKILL; it comes back after a while. False when it is down already.
    pub fn kill(&self, down: Duration) -> bool {
        let mut child = held(&self.child);
        let Some(mut running) = child.take() else {
            return false;
        };
        *held(&self.down_until) = Some(Instant::now() + down);
        // Its pid is ours until it is waited for.
        running.kill().is_ok() && running.wait().is_ok()
    }

    /// Sends a signal; false when it is down.
    pub fn signal(&self, signal: Signal) -> bool {
        let child = held(&self.child);
        let pid = child
            .as_ref()
            .and_then(|c| Pid::from_raw(c.id().cast_signed()));
        pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Starts it where it is down and may come back.
    fn look(&self, recorder: &Recorder) -> anyhow::Result<()> {
        let mut child = held(&self.child);
        if let Some(running) = child.as_mut() {
            let Some(status) = running.try_wait()? else {
                return Ok(());
            };
            recorder.note(Event::Died {
                process: self.name.to_owned(),
                status: status.to_string(),
            });
            *child = None;
            *held(&self.down_until) = Some(Instant::now() + Duration::from_millis(500));
        }
        let down_until = *held(&self.down_until);
        if down_until.is_none_or(|until| Instant::now() >= until) {
            *child = Some(held(&self.command).spawn().context(self.name)?);
        }
        Ok(())
    }
}

/// PostgreSQL with the disk that it stands on.
#[derive(Debug)]
pub struct Postgres {
    cluster: Mutex<Cluster>,
    data: PathBuf,
    /// Where a disk of its own could be mounted.
    disk: Option<Disk>,
}

/// A small disk, made of memory.
#[derive(Debug)]
struct Disk {
    folder: PathBuf,
}

impl Disk {
    fn mount(folder: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={DISK_MIB}m"), "tmpfs"]);
        let status = command.arg(folder).stderr(Stdio::null()).status();
        status.is_ok_and(|s| s.success()).then(|| Self {
            folder: folder.to_owned(),
        })
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        // What cannot be unmounted goes with the machine's next start.
        let _gone = command.arg("-l").arg(&self.folder).status();
    }
}

impl Postgres {
    /// A durable one is on a small disk, where one can be mounted.
    fn start(folder: &Path, profile: Profile) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut options = ClusterOptions::new(folder, profile);
        options.start_timeout = PATIENCE;
        let mut disk = None;
        if profile == Profile::Durable {
            disk = Disk::mount(folder);
            options.settings = [("max_wal_size", "64MB"), ("min_wal_size", "32MB")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
        }
        let cluster = Cluster::start(options)?;
        Ok(Self {
            data: cluster.data_dir().to_owned(),
            cluster: Mutex::new(cluster),
            disk,
        })
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        held(&self.cluster)
    }

    /// Asked without the lock: whoever holds it may be waiting for a process that is stopped.
    fn processes(&self) -> Vec<Pid> {
        let pids = in_directory(&self.data);
        pids.into_iter().filter_map(Pid::from_raw).collect()
    }

    /// Not while it is being started.
    fn postmaster(&self) -> Option<Pid> {
        let cluster = self.cluster.try_lock().ok()?;
        Pid::from_raw(cluster.pid()?.cast_signed())
    }

    /// Kills the postmaster alone with SIGKILL; its children notice.
    pub fn kill_postmaster(&self) -> bool {
        let pid = self.postmaster();
        pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
    }

    /// Kills one of its children with SIGKILL: the postmaster then ends the others and recovers.
    pub fn kill_child(&self, choice: usize) -> bool {
        let Some(postmaster) = self.postmaster() else {
            return false;
        };
        let mut pids = self.processes();
        pids.retain(|pid| *pid != postmaster);
        let chosen = pids.get(choice % pids.len().max(1));
        chosen.is_some_and(|pid| kill_process(*pid, Signal::KILL).is_ok())
    }

    /// Sends a signal to all its processes.
    pub fn signal(&self, signal: Signal) -> bool {
        let mut sent = false;
        for pid in self.processes() {
            sent |= kill_process(pid, signal).is_ok();
        }
        sent
    }

    /// Whether there is a disk that can be filled.
    pub fn has_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Takes all the room that is left.
    pub fn fill_disk(&self) -> bool {
        use std::io::Write as _;
        let Some(disk) = &self.disk else { return false };
        let Ok(mut file) = std::fs::File::create(disk.ballast()) else {
            return false;
        };
        let piece = vec![0; 64 * 1024];
        // It ends with the room.
        while file.write_all(&piece).is_ok() {}
        true
    }

    /// Gives it back.
    pub fn free_disk(&self) {
        if let Some(disk) = &self.disk {
            // It may be free already.
            let _free = std::fs::remove_file(disk.ballast());
        }
    }

    fn look(&self) {
        let mut cluster = self.cluster();
        // On a full disk it does not start; it is tried again.
        if matches!(cluster.exited(), Ok(Some(_))) {
            let _later = cluster.restart();
        }
    }

    /// As the superuser.
    ///
    /// # Errors
    /// It cannot be reached.
    pub fn client(&self) -> anyhow::Result<postgres::Client> {
        let url = self.cluster().url("delivery", SUPERUSER);
        Ok(postgres::Client::connect(&url, postgres::NoTls)?)
    }
}

/// Everything of the server side.
#[derive(Debug)]
pub struct Servers {
    /// The database.
    pub postgres: Postgres,
    /// The Authentication Service.
    pub auth: Service,
    /// The Delivery Service's two nodes.
    pub nodes: [Service; 2],
    /// From clients to the Authentication Service.
    pub auth_line: Arc<Line>,
    /// From clients to either node.
    pub delivery_line: Arc<Line>,
    /// From each node to PostgreSQL.
    pub database_lines: [Arc<Line>; 2],
    /// Where clients find it all: through the lines.
    pub node: NodeFile,
    stopping: AtomicBool,
}

impl Servers {
    /// Starts everything in a folder. Lines run on the current tokio runtime.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(
        programs: &Programs,
        folder: &Path,
        profile: Profile,
        double: Option<&Arc<Double>>,
    ) -> anyhow::Result<Self> {
        let disk = folder.join("postgres");
        let starting = tokio::task::spawn_blocking(move || Postgres::start(&disk, profile));
        let postgres = starting.await??;
        let disarm = double.map(|double| double.disarm());
        let database = tokio::task::block_in_place(|| prepare(programs, &postgres, disarm))?;
        let far = database.join(SOCKET);

        let sockets = ["auth.sock", "node-1.sock", "node-2.sock"].map(|name| folder.join(name));
        let [auth_socket, ..] = sockets.clone();
        let (auth_line, auth_url) = Line::tcp(vec![auth_socket.clone()]).await?;
        let (delivery_line, delivery_url) = Line::tcp(sockets[1..].to_vec()).await?;
        let mut lines = Vec::new();
        for name in ["database-1", "database-2"] {
            let near = folder.join(name);
            std::fs::create_dir_all(&near)?;
            lines.push(Line::unix(
                &near.join(SOCKET),
                far.clone(),
                double.cloned(),
            )?);
        }
        let keys = folder.join("keys");
        let admin_socket = folder.join("admin.sock");
        let mut auth = service(programs, folder, "auth-service")?;
        auth.args([
            "serve",
            "--database-url",
            &url(&database, "auth", "auth_app"),
        ]);
        auth.args([
            "--listen",
            &unix(&auth_socket),
            "--listen-admin",
            &unix(&admin_socket),
        ]);
        auth.args([
            "--domain",
            DOMAIN,
            "--delivery-domain",
            DOMAIN,
            "--keys",
            &arg(&keys),
        ]);
        let root_pem = keys.join(auth_service::keys::ROOT_PEM);
        let trusted = format!("domain={DOMAIN},url={auth_url},root={}", arg(&root_pem));
        let node = |index: usize| -> anyhow::Result<Command> {
            let mut node = service(programs, folder, "delivery-service")?;
            let database = folder.join(["database-1", "database-2"][index]);
            let database = url(&database, "delivery", "delivery_app");
            node.args(["serve", "--database-url", &database, "--domain", DOMAIN]);
            node.args([
                "--listen",
                &unix(&sockets[index + 1]),
                "--auth-service",
                &trusted,
            ]);
            // Claims are made by the hundred here; it is not the limits that are tried.
            node.args(["--claims-per-target-hour-items", "1000000"]);
            node.args(["--heartbeat-seconds", "2"]);
            node.args(double.map_or(&[][..], |double| double.options()));
            Ok(node)
        };
        Ok(Self {
            auth: Service::new("auth-service", auth),
            nodes: [
                Service::new("node-1", node(0)?),
                Service::new("node-2", node(1)?),
            ],
            auth_line,
            delivery_line,
            database_lines: lines.try_into().map_err(|_| anyhow::anyhow!("two lines"))?,
            node: NodeFile {
                pid: std::process::id(),
                postgres_pid: 0,
                delivery_domain: DOMAIN.to_owned(),
                delivery_url,
                auth: vec![AuthFile {
                    domain: DOMAIN.to_owned(),
                    url: auth_url,
                    admin_socket,
                    root_pem,
                }],
            },
            postgres,
            stopping: AtomicBool::new(false),
        })
    }

    /// Every service.
    pub fn services(&self) -> [&Service; 3] {
        let [first, second] = &self.nodes;
        [&self.auth, first, second]
    }

    /// Every line.
    pub fn lines(&self) -> [&Arc<Line>; 4] {
        let [first, second] = &self.database_lines;
        [&self.auth_line, &self.delivery_line, first, second]
    }

    /// Starts again whatever ends, until [`Servers::stop`]. The first to start is the Authentication Service: it makes the root certificate.
    ///
    /// # Errors
    /// A program cannot be started at all.
    pub fn supervise(&self, recorder: &Recorder) -> anyhow::Result<()> {
        while !self.stopping.load(Ordering::Relaxed) {
            self.postgres.look();
            self.auth.look(recorder)?;
            let rooted = self.node.auth.first().is_some_and(|a| a.root_pem.exists());
            for node in self.nodes.iter().filter(|_| rooted) {
                node.look(recorder)?;
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until an operator and a client could begin.
    ///
    /// # Errors
    /// They cannot.
    pub fn wait(&self) -> anyhow::Result<()> {
        let until = Instant::now() + PATIENCE;
        let admin = self.node.auth.first().context("no domain")?;
        while std::os::unix::net::UnixStream::connect(&admin.admin_socket).is_err() {
            ensure!(
                Instant::now() < until,
                "the Authentication Service does not start"
            );
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Ends everything; nothing is started again.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        for service in self.services() {
            service.kill(Duration::ZERO);
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop();
        // On a disk that is going away.
        let _killed = self.postgres.cluster().kill9();
    }
}

pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

/// A service's program, with its log.
fn service(programs: &Programs, folder: &Path, name: &str) -> anyhow::Result<Command> {
    let log = folder.join(format!("{name}.log"));
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = programs.command(name);
    command.stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// Databases, roles and tables; the folder of PostgreSQL's socket.
fn prepare(
    programs: &Programs,
    postgres: &Postgres,
    disarm: Option<&str>,
) -> anyhow::Result<PathBuf> {
    let cluster = postgres.cluster();
    for (name, program) in [("auth", "auth-service"), ("delivery", "delivery-service")] {
        let (owner, app) = (format!("{name}_owner"), format!("{name}_app"));
        cluster.ensure_role(&owner)?;
        cluster.ensure_role(&app)?;
        cluster.ensure_database(name, &owner, &[&app])?;
        let mut migrate = programs.command(program);
        migrate.args([
            "migrate",
            "--database-url",
            &cluster.url(name, &owner),
            "--app-role",
            &app,
        ]);
        let output = migrate.output()?;
        if !output.status.success() {
            bail!(
                "{program} migrate: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    let folder = cluster.socket_dir().to_owned();
    drop(cluster);
    if let Some(disarm) = disarm {
        postgres.client()?.batch_execute(disarm)?;
    }
    Ok(folder)
}
