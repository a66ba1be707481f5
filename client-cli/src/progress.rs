//! How far something long has come. On a terminal it is a bar, elsewhere a line from time to time; both go to stderr, and what is quick says nothing.

use std::{
    fmt,
    io::{IsTerminal as _, Write as _},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes long is told of after this time, and then as often.
const LINES: Duration = Duration::from_secs(5);
/// A bar comes sooner.
const BAR: Duration = Duration::from_millis(500);

/// What is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Devices that get a leaf.
    Adding,
    /// Nodes of the tree of a group that is joined.
    Joining,
    /// Entries of a log.
    CatchingUp,
    /// Messages.
    Sending,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adding => "adding devices",
            Self::Joining => "fetching the tree",
            Self::CatchingUp => "catching up",
            Self::Sending => "sending messages",
        })
    }
}

/// Is told how far things have come.
pub trait Progress: fmt::Debug + Send + Sync {
    /// So much of so much is done; the task is over when nothing is left.
    fn at(&self, task: Task, done: u64, of: u64);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn at(&self, _: Task, _: u64, _: u64) {}
}

/// Tells whoever reads stderr.
#[derive(Debug, Default)]
pub struct Stderr(Mutex<Option<Shown>>);

#[derive(Debug)]
struct Shown {
    task: Task,
    since: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Shown {
    fn new(task: Task) -> Self {
        let now = Instant::now();
        Self {
            task,
            since: now,
            told: now,
            bar: None,
        }
    }

    fn tell(&mut self, done: u64, of: u64) {
        if std::io::stderr().is_terminal() {
            if self.since.elapsed() >= BAR {
                let bar = self.bar.get_or_insert_with(|| bar(self.task));
                bar.set_length(of);
                bar.set_position(done);
            }
        } else if self.told.elapsed() >= LINES {
            self.told = Instant::now();
            // Who does not listen misses nothing.
            let _gone = writeln!(std::io::stderr(), "{}: {done} of {of}", self.task);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(task: Task) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos} of {human_len}, {eta}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(task.to_string());
    bar
}

impl Progress for Stderr {
    fn at(&self, task: Task, done: u64, of: u64) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if done >= of {
            held.take_if(|shown| shown.task == task);
            return;
        }
        if held.as_ref().is_none_or(|shown| shown.task != task) {
            *held = Some(Shown::new(task));
        }
        if let Some(shown) = held.as_mut() {
            shown.tell(done, of);
        }
    }
}
