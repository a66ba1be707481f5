//! Both services as processes on a PostgreSQL of their own: databases restored from backups, with and without a word about it, a feed that falls silent.
//! Whatever happened before, a device that is revoked is refused.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use e2e::{
    device::Device,
    programs::{Programs, arg, run},
};
use rustix::process::{Pid, Signal, kill_process};
use service_kit::local_postgres::{Cluster, ClusterOptions, Profile, find_binaries};
use single_node::{AuthFile, NodeFile};
use support::DOMAIN;

const PATIENCE: Duration = Duration::from_secs(60);
/// A revocation is here within a second; the rest is the time that a command takes on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// One service, and what its migrations belong to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Service {
    Auth,
    Delivery,
}

impl Service {
    fn program(self) -> &'static str {
        match self {
            Self::Auth => "auth-service",
            Self::Delivery => "delivery-service",
        }
    }

    fn database(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Delivery => "delivery",
        }
    }
}

const BOTH: &[Service] = &[Service::Auth, Service::Delivery];

struct Servers {
    folder: tempfile::TempDir,
    programs: Programs,
    cluster: Cluster,
    node: NodeFile,
    addresses: [String; 2],
    ops: String,
    auth: Option<Child>,
    delivery: Option<Child>,
    options: Vec<&'static str>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in [&mut self.auth, &mut self.delivery].into_iter().flatten() {
            // It may have ended.
            let _gone = child.kill();
            let _gone = child.wait();
        }
    }
}

impl Servers {
    fn start(options: &[&'static str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cluster = ClusterOptions::new(folder.path().join("postgres"), Profile::Volatile);
        let cluster = Cluster::start(cluster).unwrap();
        let [auth, delivery, ops] = [(); 3].map(|()| address());
        let node = NodeFile {
            pid: std::process::id(),
            postgres_pid: 0,
            delivery_domain: DOMAIN.to_owned(),
            delivery_url: format!("http://{delivery}"),
            auth: vec![AuthFile {
                domain: DOMAIN.to_owned(),
                url: format!("http://{auth}"),
                admin_socket: folder.path().join("admin.sock"),
                root_pem: folder.path().join("keys/root.pem"),
            }],
        };
        let mut servers = Self {
            programs: Programs::find().unwrap(),
            folder,
            cluster,
            node,
            addresses: [auth, delivery],
            ops,
            auth: None,
            delivery: None,
            options: options.to_vec(),
        };
        for service in BOTH {
            let (owner, app) = (servers.owner(*service), servers.app(*service));
            servers.cluster.ensure_role(&owner).unwrap();
            servers.cluster.ensure_role(&app).unwrap();
            let name = service.database();
            servers
                .cluster
                .ensure_database(name, &owner, &[&app])
                .unwrap();
            servers.migrate(*service, &[]);
        }
        servers.start_service(Service::Auth);
        servers.start_service(Service::Delivery);
        servers
    }

    fn owner(&self, service: Service) -> String {
        format!("{}_owner", service.database())
    }

    fn app(&self, service: Service) -> String {
        format!("{}_app", service.database())
    }

    fn migrate(&self, service: Service, words: &[&str]) {
        let url = self.cluster.url(service.database(), &self.owner(service));
        let mut command = self.programs.command(service.program());
        command.args([
            "migrate",
            "--database-url",
            &url,
            "--app-role",
            &self.app(service),
        ]);
        done(command.args(words));
    }

    fn start_service(&mut self, service: Service) {
        let path = self
            .folder
            .path()
            .join(format!("{}.log", service.program()));
        let log = OpenOptions::new().create(true).append(true).open(path);
        let url = self.cluster.url(service.database(), &self.app(service));
        let mut command = self.programs.command(service.program());
        command.args(["serve", "--database-url", &url, "--domain", DOMAIN]);
        let auth = &self.node.auth[0];
        match service {
            Service::Auth => {
                let admin = format!("unix:{}", auth.admin_socket.display());
                command.args(["--listen", &self.addresses[0], "--listen-admin", &admin]);
                let keys = self.folder.path().join("keys");
                command.args(["--delivery-domain", DOMAIN, "--keys", &arg(&keys)]);
                command.args(["--heartbeat-seconds", "1"]);
            }
            Service::Delivery => {
                let root = arg(&auth.root_pem);
                let trusted = format!("domain={DOMAIN},url={},root={root}", auth.url);
                command.args(["--listen", &self.addresses[1], "--listen-ops", &self.ops]);
                command.args(["--auth-service", &trusted]);
                command.args(&self.options);
            }
        }
        let child = command.stdout(Stdio::null()).stderr(log.unwrap()).spawn();
        match service {
            Service::Auth => {
                self.auth = Some(child.unwrap());
                let auth = &self.node.auth[0];
                // It listens before its first start has made the root that the other service pins.
                until("the Authentication Service does not start", || {
                    auth.root_pem.exists() && UnixStream::connect(&auth.admin_socket).is_ok()
                });
            }
            Service::Delivery => {
                self.delivery = Some(child.unwrap());
                until("the Delivery Service is not ready", || self.readyz().0);
            }
        }
    }

    fn stop_service(&mut self, service: Service) {
        let child = match service {
            Service::Auth => self.auth.take(),
            Service::Delivery => self.delivery.take(),
        };
        let mut child = child.unwrap();
        signal(&child, Signal::TERM);
        assert!(child.wait().unwrap().success(), "{service:?}");
    }

    fn operator(&self, words: &[&str]) {
        let mut command = self.programs.command("auth-service");
        command.args(words).arg("--admin");
        command.arg(format!("unix:{}", self.node.auth[0].admin_socket.display()));
        done(&mut command);
    }

    fn device(&self, name: &str) -> Device {
        let folder = self.folder.path();
        Device::enroll(&self.programs, &self.node, folder, 0, name, name).unwrap()
    }

    fn tool(&self, name: &str) -> Command {
        let postgres = find_binaries(None).unwrap().postgres;
        Command::new(postgres.parent().unwrap().join(name))
    }

    fn backup(&self, service: Service) -> PathBuf {
        let file = self
            .folder
            .path()
            .join(format!("{}.dump", service.database()));
        let url = self.cluster.url(service.database(), &self.owner(service));
        done(
            self.tool("pg_dump")
                .args(["-Fc", "-d", &url, "-f", &arg(&file)]),
        );
        file
    }

    fn restore(&self, service: Service, file: &Path) {
        let url = self.cluster.url(service.database(), &self.owner(service));
        let mut command = self.tool("pg_restore");
        done(command.args(["--clean", "--if-exists", "-d", &url, &arg(file)]));
    }

    fn ops(&self, path: &str) -> Option<(bool, String)> {
        let mut stream = TcpStream::connect(&self.ops).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.contains(" 200 "), body.to_owned()))
    }

    fn readyz(&self) -> (bool, String) {
        self.ops("/readyz").unwrap_or_default()
    }

    /// A metric's value; 0 where it is not there.
    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ops("/metrics").unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or(0.0)
    }
}

/// A loopback address below the ports that outgoing connections get, so that it is still free when its service binds it.
fn address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(37);
    loop {
        let port = 20_000 + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, signal).unwrap();
}

fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

fn until(what: &str, holds: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    began.elapsed()
}

/// What the Delivery Service says when this device reads a group's log.
fn read_log(device: &Device, group: &str) -> String {
    let answer = device
        .run(&["debug", "read-log", "--group", group])
        .unwrap();
    answer["reason"].as_str().unwrap_or("").to_owned()
}

fn until_refused(device: &Device, group: &str, why: &str) -> Duration {
    let what = format!("{}: not refused, {why}", device.name);
    until(&what, || read_log(device, group) == "DEVICE_REVOKED")
}

/// One way to come back from a backup.
#[derive(Debug)]
struct Case {
    restored: &'static [Service],
    /// `migrate --restored` is run.
    declared: bool,
    /// A device was revoked before the backup.
    items: bool,
    /// The Delivery Service runs all the time.
    up: bool,
}

fn play(case: &Case) {
    let why = format!("{case:?}");
    let mut servers = Servers::start(&[]);
    let [a, first, lost, later] = ["a", "first", "lost", "later"].map(|name| servers.device(name));
    let (_, group) = a.create_group([&first, &lost, &later]).unwrap();
    for device in [&first, &lost, &later] {
        device.run(&["sync"]).unwrap();
    }
    if case.items {
        servers.operator(&["devices", "revoke", &first.uri]);
        until_refused(&first, &group, &why);
    }
    let backups: Vec<_> = case
        .restored
        .iter()
        .map(|s| (*s, servers.backup(*s)))
        .collect();
    // After the backup: a restored Authentication Service knows nothing of it.
    servers.operator(&["devices", "revoke", &lost.uri]);
    until_refused(&lost, &group, &why);
    if !case.up {
        servers.stop_service(Service::Delivery);
    }
    servers.stop_service(Service::Auth);
    for (service, file) in &backups {
        servers.restore(*service, file);
        if case.declared {
            servers.migrate(*service, &["--restored"]);
        }
    }
    servers.start_service(Service::Auth);
    if !case.up {
        servers.start_service(Service::Delivery);
    }
    servers.operator(&["devices", "revoke", &later.uri]);
    let took = until_refused(&later, &group, &why);
    assert!(took < SOON, "{why}: {took:?}");
    if case.items {
        assert_eq!(read_log(&first, &group), "DEVICE_REVOKED", "{why}");
    }
    // Where one of the two remembers it, it stays revoked.
    if case.restored.len() == 1 {
        until_refused(&lost, &group, &why);
    }
    let (ready, text) = servers.readyz();
    assert!(ready, "{why}: {text}");
    let alarm = text.contains("past of the status feed");
    // With both restored to the same moment nothing contradicts what is remembered, unless somebody says so.
    let auth = case.restored.contains(&Service::Auth);
    let expected = auth && (case.declared || case.restored.len() == 1);
    assert_eq!(alarm, expected, "{why}: {text}");
    let alarms = servers.metric("chancery_ds_status_feed_other_past_total");
    assert_eq!(alarms > 0.0, alarm, "{why}");
}

/// As the operator's page says it, with what the feed held at the time of the backup.
#[test]
fn after_both_were_restored_a_revocation_is_applied() {
    for (declared, items) in [(true, true), (true, false), (false, true), (false, false)] {
        play(&Case {
            restored: BOTH,
            declared,
            items,
            up: false,
        });
    }
}

#[test]
fn after_one_was_restored_a_revocation_is_applied() {
    for (restored, declared, items, up) in [
        (&BOTH[..1], true, true, true),
        (&BOTH[..1], false, true, true),
        (&BOTH[..1], false, true, false),
        (&BOTH[..1], false, false, false),
        (&BOTH[1..], true, true, false),
        (&BOTH[1..], false, false, false),
    ] {
        play(&Case {
            restored,
            declared,
            items,
            up,
        });
    }
}

/// The Authentication Service is stopped in the middle of everything: connections live on, and nothing comes.
#[test]
fn a_feed_that_falls_silent_is_seen_and_at_last_nobody_writes() {
    let servers = Servers::start(&[
        "--feed-heartbeat-seconds",
        "1",
        "--clock-leeway-seconds",
        "1",
        "--feed-max-age-seconds",
        "5",
    ]);
    let [a, b] = ["a", "b"].map(|name| servers.device(name));
    let (_, group) = a.create_group([&b]).unwrap();
    b.run(&["sync"]).unwrap();
    a.run(&["send", "--group", &group, "before"]).unwrap();
    b.run(&["sync"]).unwrap();
    let auth = servers.auth.as_ref().unwrap();
    signal(auth, Signal::STOP);
    until("its age is not shown", || {
        servers.metric("chancery_ds_status_feed_age_seconds") > 6.0
    });
    let a_moment = a.with_patience(Duration::from_secs(2));
    let said = run(&mut a_moment.command(&["send", "--group", &group, "meanwhile"])).unwrap();
    assert_eq!(
        said.error["error"]["reason"], "STATUS_FEED_STALE",
        "{said:?}"
    );
    assert_eq!(said.code, 4, "{said:?}");
    assert_eq!(read_log(&b, &group), "");
    let (ready, text) = servers.readyz();
    assert!(ready && text.contains("is refused"), "{text}");
    let log = std::fs::read_to_string(servers.folder.path().join("delivery-service.log")).unwrap();
    let error =
        |line: &str| line.contains("ERROR") && line.contains("the status feed is not heard");
    assert!(log.lines().any(error), "{log}");
    signal(auth, Signal::CONT);
    until("it is not heard again", || servers.readyz().1 == "ready");
    // What was kept is said once.
    a.run(&["sync"]).unwrap();
    a.run(&["send", "--group", &group, "after"]).unwrap();
    assert_eq!(support::texts(&b, &group), ["before", "meanwhile", "after"]);
}
