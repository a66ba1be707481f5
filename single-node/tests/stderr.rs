//! A node whose stderr nobody reads, or that is full, does everything that it does otherwise.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs::{self, File};
use std::io::{ErrorKind, PipeReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use chancery_proto::auth::v1::{CreateInvitationRequest, SuspendUserRequest};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use service_kit::listen::ListenAddr;
use single_node::NodeFile;

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a drain may take.
const LAST_WAIT: Duration = Duration::from_secs(25);

/// What becomes of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stderr {
    /// They are written.
    File,
    /// The reader of the pipe is gone.
    ClosedPipe,
    /// The disk is full.
    Full,
    /// The pipe is full, and nobody reads it: a write waits.
    Unread,
    /// The same with a pipe that another process has made non-blocking: a write fails.
    UnreadNonBlocking,
}

const ALL: [Stderr; 5] = [
    Stderr::File,
    Stderr::ClosedPipe,
    Stderr::Full,
    Stderr::Unread,
    Stderr::UnreadNonBlocking,
];

impl Stderr {
    /// For the node, with the reader that must stay open meanwhile.
    fn make(self, dir: &Path) -> (Stdio, Option<PipeReader>) {
        match self {
            Self::File => (File::create(dir.join("node.log")).unwrap().into(), None),
            Self::Full => {
                let full = File::options().write(true).open("/dev/full").unwrap();
                (full.into(), None)
            }
            Self::ClosedPipe => (std::io::pipe().unwrap().1.into(), None),
            Self::Unread | Self::UnreadNonBlocking => {
                let (reader, mut writer) = std::io::pipe().unwrap();
                let flags = fcntl_getfl(writer.as_fd()).unwrap();
                fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
                let full = loop {
                    if let Err(error) = writer.write(&[b' '; 4_096]) {
                        break error;
                    }
                };
                assert_eq!(full.kind(), ErrorKind::WouldBlock);
                if self == Self::Unread {
                    fcntl_setfl(writer.as_fd(), flags).unwrap();
                }
                (writer.into(), Some(reader))
            }
        }
    }
}

struct Node {
    child: Child,
    ops: std::path::PathBuf,
}

impl Node {
    fn start(dir: &Path, stderr: Stdio, queue_items: &str) -> (Self, NodeFile) {
        let ops = dir.join("ops.sock");
        let child = Command::new(env!("CARGO_BIN_EXE_single-node"))
            .args([
                "up",
                "--domain",
                "a.example",
                "--log-queue-items",
                queue_items,
            ])
            .arg("--data")
            .arg(dir)
            .arg("--listen-ops")
            .arg(format!("unix:{}", ops.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut node = Self { child, ops };
        let pid = node.child.id();
        let file = node.until("ready", || {
            NodeFile::read(dir).ok().filter(|file| file.pid == pid)
        });
        (node, file)
    }

    fn until<T>(&mut self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "{what}: the node ended: {ended:?}");
            assert!(Instant::now() < deadline, "never {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            signal("TERM", self.child.id());
            let deadline = Instant::now() + LAST_WAIT;
            while let Ok(None) = self.child.try_wait() {
                if Instant::now() > deadline {
                    // A node that waits for a reader of its stderr ends in no other way, and the test is to fail.
                    drop(self.child.kill());
                    drop(self.child.wait());
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// The value of a metric at this socket; nothing while there is none.
fn metric(ops: &Path, name: &str) -> Option<f64> {
    let mut ops = UnixStream::connect(ops).ok()?;
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    ops.write_all(request).ok()?;
    let mut text = String::new();
    ops.read_to_string(&mut text).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn signal(name: &str, pid: u32) {
    let mut kill = Command::new("kill");
    kill.args([format!("-{name}"), pid.to_string()]);
    drop(kill.stderr(Stdio::null()).status());
}

/// Cuts a new person off: a status that the Delivery Service must apply.
async fn suspend_somebody(file: &NodeFile, name: String) {
    let admin = ListenAddr::Unix(file.auth[0].admin_socket.clone());
    let mut admin = auth_service::operator::connect(&admin).await.unwrap();
    let request = CreateInvitationRequest {
        display_name: name.clone(),
        handle: name,
        ..CreateInvitationRequest::default()
    };
    let invitation = admin.create_invitation(request).await.unwrap();
    let user = invitation.into_inner().user;
    let request = SuspendUserRequest { user };
    admin.suspend_user(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_works_whatever_becomes_of_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut statuses = 0.0;
    for case in ALL {
        let (stderr, reader) = case.make(folder.path());
        // A file takes every line; elsewhere the queue is full at once.
        let queue_items = if case == Stderr::File { "4096" } else { "1" };
        let (mut node, file) = Node::start(folder.path(), stderr, queue_items);
        for life in 0..2 {
            let name = format!("{case:?}{life}").to_lowercase();
            suspend_somebody(&file, name).await;
            statuses += 1.0;
            let ops = node.ops.clone();
            node.until("applied", || {
                let seq = metric(&ops, "chancery_ds_status_feed_seq")?;
                (seq >= statuses).then_some(())
            });
            if life == 0 {
                signal("KILL", file.postgres_pid);
                node.until("back", || {
                    let now = NodeFile::read(folder.path()).ok()?;
                    (now.postgres_pid != file.postgres_pid).then_some(())
                });
            }
        }
        let dropped = metric(&node.ops, "chancery_log_lines_dropped_total").unwrap();
        assert_eq!(dropped > 0.0, case != Stderr::File, "{case:?}: {dropped}");
        signal("TERM", node.child.id());
        assert!(node.wait().success(), "{case:?}");
        drop(reader);
    }
    let log = fs::read_to_string(folder.path().join("node.log")).unwrap();
    assert!(log.contains("PostgreSQL ended"), "{log}");
    assert!(!log.contains('\u{1b}'), "colours in a file");
}
