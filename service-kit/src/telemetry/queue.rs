//! Lines on their way to stderr.

use std::{
    fs::File,
    io::{self, ErrorKind, Write},
    os::fd::AsFd as _,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

/// Pause before a write to a non-blocking stderr without room is tried again.
const NO_ROOM_PAUSE: Duration = Duration::from_millis(10);

/// Of this process: whatever the number of queues, there is one stderr.
static DROPPED: AtomicU64 = AtomicU64::new(0);

pub(super) fn dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// A bounded queue of log lines and the thread that writes them. Putting a line never waits, never fails and never
/// panics; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct LogQueue {
    lines: SyncSender<Vec<u8>>,
    waiting: Arc<Waiting>,
}

/// How many lines were put and not yet written or given up.
#[derive(Debug, Default)]
struct Waiting {
    lines: Mutex<u64>,
    none_left: Condvar,
}

impl Waiting {
    fn add(&self) {
        *self.lines.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn remove(&self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        *lines = lines.saturating_sub(1);
        if *lines == 0 {
            self.none_left.notify_all();
        }
    }
}

impl LogQueue {
    /// A queue of at most `most_lines` before this process' stderr. Where there is no stderr, every line is dropped.
    pub(super) fn to_stderr(most_lines: usize) -> Self {
        // A descriptor of its own: the standard library's handle has a lock that a blocked write would keep from
        // everybody else.
        let stderr = io::stderr().as_fd().try_clone_to_owned().map(File::from);
        match stderr {
            Ok(stderr) => Self::before(stderr, most_lines),
            Err(_) => Self {
                lines: mpsc::sync_channel(most_lines).0,
                waiting: Arc::default(),
            },
        }
    }

    /// A queue of at most `most_lines` before any output.
    #[expect(
        clippy::disallowed_methods,
        reason = "logging does not depend on what supervises, which logs"
    )]
    fn before(output: impl Write + Send + 'static, most_lines: usize) -> Self {
        let (lines, queued) = mpsc::sync_channel(most_lines);
        let waiting = Arc::new(Waiting::default());
        let shared = waiting.clone();
        // Without its thread the queue has no receiver, and each line is dropped where it is put.
        let _started = std::thread::Builder::new()
            .name("log-writer".to_owned())
            .spawn(move || write_all(output, &queued, &shared));
        Self { lines, waiting }
    }

    /// Puts one line, or several that belong together; dropped and counted when the queue is full.
    pub(super) fn put(&self, line: Vec<u8>) {
        self.waiting.add();
        if self.lines.try_send(line).is_err() {
            self.waiting.remove();
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until every line that was put has been written or dropped, or until `deadline`.
    pub(super) fn wait_until_written(&self, deadline: Instant) {
        let mut lines = self
            .waiting
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *lines > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.waiting.none_left.wait_timeout(lines, left);
            lines = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn write_all(mut output: impl Write, queued: &Receiver<Vec<u8>>, waiting: &Waiting) {
    while let Ok(line) = queued.recv() {
        if write_line(&mut output, &line).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        waiting.remove();
    }
}

/// Another process may have made the stderr that it shares with us non-blocking: such a write is repeated until a
/// reader has made room.
fn write_line(output: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match output.write(line) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(NO_ROOM_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl<'w> MakeWriter<'w> for LogQueue {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

impl Write for LogQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes nothing before it is told to.
    struct Gate {
        open: Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
        fails: Option<ErrorKind>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _closed = self.open.recv();
            if let Some(kind) = self.fails.take() {
                return Err(kind.into());
            }
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn gate(fails: Option<ErrorKind>) -> (Gate, SyncSender<()>, Arc<Mutex<Vec<u8>>>) {
        let (opener, open) = mpsc::sync_channel(64);
        let written = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate {
            open,
            written: written.clone(),
            fails,
        };
        (gate, opener, written)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_never_holds_up_whoever_logs() {
        let (output, opener, written) = gate(None);
        let queue = LogQueue::before(output, 4);
        let before = dropped();
        for n in 0..20u8 {
            queue.put(vec![n]);
        }
        queue.wait_until_written(Instant::now() + Duration::from_millis(20));
        assert!(written.lock().unwrap().is_empty());
        // One may be in the writer's hands, four wait.
        assert!(dropped() - before >= 15);
        drop(opener);
        queue.wait_until_written(soon());
        assert_eq!(written.lock().unwrap().first(), Some(&0));
        queue.put(vec![77]);
        queue.wait_until_written(soon());
        assert_eq!(written.lock().unwrap().last(), Some(&77));
    }

    #[test]
    fn a_write_that_fails_loses_its_line_only() {
        for (kind, kept) in [
            (ErrorKind::BrokenPipe, "b"),
            (ErrorKind::StorageFull, "b"),
            (ErrorKind::Interrupted, "ab"),
            (ErrorKind::WouldBlock, "ab"),
        ] {
            let (output, opener, written) = gate(Some(kind));
            drop(opener);
            let queue = LogQueue::before(output, 4);
            queue.put(b"a".to_vec());
            queue.put(b"b".to_vec());
            queue.wait_until_written(soon());
            assert_eq!(*written.lock().unwrap(), kept.as_bytes(), "{kind}");
        }
    }
}
