//! The node as an operator meets it: a process that starts, is killed in every way, starts again, and stops.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use chancery_proto::auth::v1 as auth;
use chancery_proto::auth::v1::auth_service_client::AuthServiceClient;
use chancery_proto::delivery::v1 as delivery;
use chancery_proto::delivery::v1::delivery_service_client::DeliveryServiceClient;
use rustix::process::{Pid, Signal, kill_process};
use single_node::NodeFile;

const DOMAINS: [&str; 2] = ["interior.example", "finance.example"];
const PATIENCE: Duration = Duration::from_secs(60);

/// A running node; killed with the value.
struct Node {
    dir: PathBuf,
    child: Child,
}

impl Node {
    fn spawn(dir: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_single-node"));
        command.arg("up").arg("--data").arg(dir);
        for domain in DOMAINS {
            command.args(["--domain", domain]);
        }
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join("node.log"))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            dir: dir.to_owned(),
            child,
        }
    }

    /// Starts a node and waits until it says that it is ready.
    fn start(dir: &Path) -> (Self, NodeFile) {
        let mut node = Self::spawn(dir);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Ok(file) = NodeFile::read(dir)
                && file.pid == node.child.id()
            {
                return (node, file);
            }
            assert!(node.child.try_wait().unwrap().is_none(), "{}", node.log());
            assert!(Instant::now() < until, "not ready: {}", node.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("node.log")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(signal, self.child.id());
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
            if let Ok(file) = NodeFile::read(&self.dir) {
                kill(Signal::KILL, file.postgres_pid);
            }
        }
    }
}

fn kill(signal: Signal, pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // A process that is gone already is what was wanted.
        let _gone = kill_process(pid, signal);
    }
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_for_death(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while is_alive(pid) {
        assert!(Instant::now() < until, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What both kinds of service say about themselves: (domain, incarnation) each, the Delivery Service's first.
async fn ask(file: &NodeFile) -> Vec<(String, Vec<u8>)> {
    let mut answers = vec![ask_delivery(&file.delivery_url).await.unwrap()];
    for entry in &file.auth {
        let mut client = AuthServiceClient::connect(entry.url.clone()).await.unwrap();
        let info = client
            .get_service_info(auth::GetServiceInfoRequest::default())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.domain, entry.domain);
        answers.push((info.domain, info.incarnation.to_vec()));
    }
    answers
}

async fn ask_delivery(url: &str) -> Result<(String, Vec<u8>), Box<dyn std::error::Error>> {
    let mut client = DeliveryServiceClient::connect(url.to_owned()).await?;
    let request = delivery::GetServiceInfoRequest::default();
    let info = client.get_service_info(request).await?.into_inner();
    Ok((info.domain, info.incarnation.to_vec()))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_stops_and_starts_again_with_the_same_state_and_addresses() {
    let folder = folder();
    let (mut node, first) = Node::start(folder.path());
    assert_eq!(first.delivery_domain, DOMAINS[0]);
    let domains: Vec<_> = first.auth.iter().map(|auth| auth.domain.as_str()).collect();
    assert_eq!(domains, DOMAINS);
    for entry in &first.auth {
        let pem = fs::read_to_string(&entry.root_pem).unwrap();
        assert!(pem.contains("BEGIN CERTIFICATE") && !pem.contains("PRIVATE"));
        assert!(entry.admin_socket.exists());
    }
    let before = ask(&first).await;
    assert_eq!(before[0].0, DOMAINS[0]);

    node.signal(Signal::TERM);
    assert!(node.wait().success(), "{}", node.log());
    assert!(
        !is_alive(first.postgres_pid),
        "PostgreSQL stops with the node"
    );
    let log = fs::read_to_string(folder.path().join("postgres/postgres.log")).unwrap();
    assert!(log.contains("fast shutdown") && log.contains("database system is shut down"));

    let began = Instant::now();
    let (_node, second) = Node::start(folder.path());
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "a later start took {:?}",
        began.elapsed()
    );
    assert_eq!(ask(&second).await, before, "nothing was made anew");
    assert_eq!(second.delivery_url, first.delivery_url);
    assert_eq!(second.auth, first.auth);
}

#[tokio::test(flavor = "multi_thread")]
async fn goes_on_after_everything_was_killed_at_once() {
    let folder = folder();
    let (mut node, first) = Node::start(folder.path());
    let before = ask(&first).await;
    node.signal(Signal::KILL);
    kill(Signal::KILL, first.postgres_pid);
    node.wait();
    wait_for_death(first.postgres_pid);
    let (_node, second) = Node::start(folder.path());
    assert_eq!(ask(&second).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn replaces_a_postgres_whose_node_was_killed() {
    let folder = folder();
    let (mut node, first) = Node::start(folder.path());
    let before = ask(&first).await;
    node.signal(Signal::KILL);
    node.wait();
    assert!(
        is_alive(first.postgres_pid),
        "orphaned, as after a crash of the node"
    );
    let (_node, second) = Node::start(folder.path());
    assert!(!is_alive(first.postgres_pid));
    assert_ne!(second.postgres_pid, first.postgres_pid);
    assert_eq!(ask(&second).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_postgres_again_when_it_dies_under_the_node() {
    let folder = folder();
    let (mut node, first) = Node::start(folder.path());
    let before = ask(&first).await;
    kill(Signal::KILL, first.postgres_pid);
    let until = Instant::now() + PATIENCE;
    let second = loop {
        let file = NodeFile::read(folder.path()).unwrap();
        if file.postgres_pid != first.postgres_pid {
            break file;
        }
        assert!(Instant::now() < until, "{}", node.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(second.pid, first.pid, "the node itself stayed");
    assert!(is_alive(second.postgres_pid));
    assert_eq!(ask(&second).await, before);
    node.signal(Signal::TERM);
    assert!(node.wait().success(), "{}", node.log());
    assert!(!is_alive(second.postgres_pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_on_the_same_folder_is_refused_and_harms_nothing() {
    let folder = folder();
    let (_node, first) = Node::start(folder.path());
    let mut intruder = Node::spawn(folder.path());
    assert!(!intruder.wait().success());
    assert!(
        intruder.log().contains("in use by another process"),
        "{}",
        intruder.log()
    );
    assert_eq!(NodeFile::read(folder.path()).unwrap(), first);
    assert_eq!(ask(&first).await[0].0, DOMAINS[0]);
}

#[test]
fn contradicting_options_are_refused_before_anything_is_made() {
    let folder = folder();
    let dir = folder.path().join("node");
    for arguments in [
        &["--domain", "a.example", "--domain", "a.example"][..],
        &[
            "--domain",
            "a.example",
            "--listen-auth",
            "127.0.0.1:0",
            "--listen-auth",
            "127.0.0.1:0",
        ],
        &["--listen-delivery", "nonsense"],
        &["--postgres-setting", "nonsense"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_single-node"));
        let output = command
            .arg("up")
            .arg("--data")
            .arg(&dir)
            .args(arguments)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!dir.exists(), "{arguments:?}");
    }
}
