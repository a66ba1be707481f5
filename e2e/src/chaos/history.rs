//! What everybody asked, was answered and saw, in the order in which it happened; one JSON object per line.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file's name in the run's folder.
pub const FILE_NAME: &str = "history.jsonl";

/// A command that was killed has no exit code.
pub const KILLED: i32 = -1;

/// One message that was to be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// By its sender.
    pub message_id: String,
    /// What it says; nothing else says the same.
    pub text: String,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Asked {
    /// Messages, in this order.
    Send {
        /// `<domain>/<hex>`.
        group: String,
        /// What.
        messages: Vec<Wanted>,
    },
    /// A change of the group.
    Commit {
        /// `<domain>/<hex>`.
        group: String,
        /// As on the command line.
        operation: String,
    },
    /// A KeyPackage of a device.
    Claim {
        /// The same for a repeat.
        claim_id: String,
        /// Whose.
        target: String,
    },
    /// Everything there is, by a subscription.
    CatchUp {
        /// `<domain>/<hex>`.
        group: String,
    },
    /// Reading Welcomes and logs, and settling what was left open.
    Sync,
    /// Following everything.
    Listen,
}

/// An entry as the server gave it to a raw subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its place.
    pub seq: u64,
    /// By its maker.
    pub message_id: String,
    /// In hex.
    pub chain: String,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A process of a device begins; a repeat has the same `op`.
    Begin {
        /// The operation.
        op: u64,
        /// Who.
        device: String,
        /// What.
        asked: Asked,
    },
    /// It ended.
    End {
        /// The operation.
        op: u64,
        /// [`KILLED`] where a signal ended it.
        code: i32,
        /// Its JSON on stdout.
        answer: Value,
        /// Its JSON on stderr.
        error: Value,
    },
    /// A line of `listen`.
    Heard {
        /// The operation.
        op: u64,
        /// The line.
        line: Value,
    },
    /// A raw subscription opens after this seq.
    Opened {
        /// Which.
        stream: u64,
        /// `<domain>/<hex>`.
        group: String,
        /// The cursor.
        after: u64,
    },
    /// Entries of a raw subscription.
    Frame {
        /// Which.
        stream: u64,
        /// In the order in which they came.
        entries: Vec<Seen>,
    },
    /// A fault was done.
    Fault {
        /// Its kind.
        kind: String,
        /// To whom.
        target: String,
    },
    /// A server process ended that nobody had killed.
    Died {
        /// Which.
        process: String,
        /// How.
        status: String,
    },
    /// After the faults: whether a group is alive.
    Probe {
        /// `<domain>/<hex>`.
        group: String,
        /// What is wrong with it; nothing when it is alive.
        ailing: Option<String>,
    },
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Microseconds since the recording began; never smaller than in the line before.
    pub at: u64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Writes a history.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    file: Mutex<BufWriter<File>>,
    next: AtomicU64,
    /// Messages and Commits that were acknowledged so far; for people who watch.
    pub acknowledged: AtomicU64,
}

impl Recorder {
    /// In this folder.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let file = File::create(folder.join(FILE_NAME)).context("the history")?;
        Ok(Self {
            began: Instant::now(),
            file: Mutex::new(BufWriter::new(file)),
            next: AtomicU64::new(1),
            acknowledged: AtomicU64::new(0),
        })
    }

    /// A number that nothing else has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Writes an event down. A history with a hole proves nothing: it ends the run.
    pub fn note(&self, event: Event) {
        if let Event::End {
            code: 0, answer, ..
        } = &event
        {
            let sent = answer["sent"].as_array().map_or(0, Vec::len);
            let one = usize::from(answer["seq"].is_u64());
            let count = u64::try_from(sent.max(one)).unwrap_or(0);
            self.acknowledged.fetch_add(count, Ordering::Relaxed);
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let at = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let written = serde_json::to_writer(&mut *file, &Record { at, event })
            .map_err(std::io::Error::from)
            .and_then(|()| file.write_all(b"\n"));
        written.expect("the history can be written");
    }

    /// Everything reaches the file.
    ///
    /// # Errors
    /// It does not.
    pub fn flush(&self) -> anyhow::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(file.flush()?)
    }
}

/// Reads a history.
///
/// # Errors
/// It is missing or damaged.
pub fn read(folder: &Path) -> anyhow::Result<Vec<Record>> {
    lines(&folder.join(FILE_NAME))
}

/// Reads a file of JSON lines.
///
/// # Errors
/// It is missing or damaged.
pub fn lines<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    BufReader::new(file)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}
