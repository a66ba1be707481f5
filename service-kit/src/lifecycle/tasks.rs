//! Supervised tasks: the only place that spawns.
#![expect(
    clippy::disallowed_methods,
    reason = "everything that is spawned elsewhere goes through here"
)]

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use super::{DRAIN, Shutdown};

/// A task that was to live until the drain ended before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskEnded {
    /// The name that it was spawned with.
    pub name: &'static str,
    /// Whether it panicked, rather than returned.
    pub panicked: bool,
}

impl std::fmt::Display for TaskEnded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.panicked {
            "panicked"
        } else {
            "ended by itself"
        };
        write!(f, "the task {} {how}", self.name)
    }
}

impl std::error::Error for TaskEnded {}

/// What a task may return: nothing, or why it ended.
pub trait TaskOutput: Send + 'static {
    /// Why it ended, if it says so.
    fn failure(self) -> Option<anyhow::Error>;
}

impl TaskOutput for () {
    fn failure(self) -> Option<anyhow::Error> {
        None
    }
}

impl TaskOutput for anyhow::Result<()> {
    fn failure(self) -> Option<anyhow::Error> {
        self.err()
    }
}

/// The tasks of a process or of one service in a test.
#[derive(Debug, Clone, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many tasks of each name run.
    running: Mutex<BTreeMap<&'static str, usize>>,
    /// The first that ended too early.
    failed: OnceLock<TaskEnded>,
    #[cfg(feature = "test-support")]
    fault: tokio::sync::watch::Sender<Option<&'static str>>,
}

impl Shared {
    fn count(&self, name: &'static str, change: impl FnOnce(usize) -> usize) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let count = running.entry(name).or_default();
        *count = change(*count);
    }
}

/// Runs a task until it ends, or until a test asks for a panic in it.
#[cfg(feature = "test-support")]
async fn with_fault_point<T>(
    shared: Arc<Shared>,
    name: &'static str,
    task: impl Future<Output = T>,
) -> T {
    let mut fault = shared.fault.subscribe();
    tokio::select! {
        biased;
        _asked = fault.wait_for(|task| *task == Some(name)) => panic!("a test asked for it"),
        output = task => output,
    }
}

/// When a task may end without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    /// Once the drain has begun.
    WithTheDrain,
    /// Whenever it is done.
    WhenDone,
}

impl Shutdown {
    /// Spawns a task that lives until the drain. If it returns or panics before, that is logged, counted in
    /// `chancery_task_ended_total{task}`, and begins the drain; [`Shutdown::join`] then fails with its name.
    pub fn spawn<T: TaskOutput>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        let supervised = supervised(self.clone(), name, Ends::WithTheDrain, task);
        self.tasks.tracker.spawn(supervised);
    }

    /// Spawns a task that ends when its work is done, and that others rely on: a panic in it counts like that of
    /// [`Shutdown::spawn`], and the drain waits for it.
    pub fn spawn_job(&self, name: &'static str, job: impl Future<Output = ()> + Send + 'static) {
        let supervised = supervised(self.clone(), name, Ends::WhenDone, job);
        self.tasks.tracker.spawn(supervised);
    }

    /// As [`Shutdown::spawn`], but the drain does not wait for its end.
    pub fn spawn_unawaited<T: TaskOutput>(
        &self,
        name: &'static str,
        task: impl Future<Output = T> + Send + 'static,
    ) {
        tokio::spawn(supervised(self.clone(), name, Ends::WithTheDrain, task));
    }

    /// Runs `work` on a thread of its own, for work that blocks. If it returns or panics before the drain, that counts
    /// like the end of a task; whoever holds the handle waits for it.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<std::thread::Result<T>>> {
        let shutdown = self.clone();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let done = std::panic::catch_unwind(AssertUnwindSafe(work));
                shutdown.ended(name, Ends::WithTheDrain, done.is_err());
                done
            })
    }

    /// Waits until every task has ended, for as long as a drain may take. It begins with the drain: it is not called
    /// before.
    ///
    /// # Errors
    /// [`TaskEnded`] when a task ended before the drain.
    pub async fn join(&self) -> Result<(), TaskEnded> {
        self.tasks.tracker.close();
        tokio::select! {
            () = self.tasks.tracker.wait() => {}
            () = self.hard.cancelled() => self.log_running(),
            () = tokio::time::sleep(DRAIN) => self.log_running(),
        }
        match self.tasks.shared.failed.get() {
            Some(ended) => Err(*ended),
            None => Ok(()),
        }
    }

    /// Ends a service: begins the drain, waits for the tasks, and gives the failure that counts, the service's own or
    /// that of a task.
    ///
    /// # Errors
    /// As `served`, or [`TaskEnded`].
    pub async fn finish(&self, served: anyhow::Result<()>) -> anyhow::Result<()> {
        self.begin();
        let joined = self.join().await;
        served?;
        Ok(joined?)
    }

    /// How many tasks of each name run; a name stays when its tasks have ended.
    pub fn running(&self) -> BTreeMap<&'static str, usize> {
        let running = self.tasks.shared.running.lock();
        running.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes every task of this name panic, at its next wait.
    #[cfg(feature = "test-support")]
    pub fn panic_in(&self, name: &'static str) {
        self.tasks.shared.fault.send_replace(Some(name));
    }

    fn log_running(&self) {
        for (task, count) in self.running() {
            if count > 0 {
                tracing::warn!(task, count, "cut off: it did not end with the drain");
            }
        }
    }

    fn ended(&self, name: &'static str, ends: Ends, panicked: bool) {
        let drains = self.soft.is_cancelled();
        if !panicked && (drains || ends == Ends::WhenDone) {
            return;
        }
        tracing::error!(task = name, panicked, "a task ended; the process ends");
        metrics::counter!("chancery_task_ended_total", "task" => name).increment(1);
        // A later one is most likely a consequence.
        let _first = self.tasks.shared.failed.set(TaskEnded { name, panicked });
        self.begin();
    }
}

/// Runs a task and says how it ended.
fn supervised<T: TaskOutput>(
    shutdown: Shutdown,
    name: &'static str,
    ends: Ends,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    shutdown.tasks.shared.count(name, |count| count + 1);
    async move {
        #[cfg(feature = "test-support")]
        let task = with_fault_point(shutdown.tasks.shared.clone(), name, task);
        let ended = AssertUnwindSafe(task).catch_unwind().await;
        let panicked = ended.is_err();
        if let Some(error) = ended.ok().and_then(TaskOutput::failure) {
            tracing::error!(task = name, error = format!("{error:#}"), "a task failed");
        }
        let shared = &shutdown.tasks.shared;
        shared.count(name, |count| count.saturating_sub(1));
        shutdown.ended(name, ends, panicked);
    }
}

/// Spawns what belongs to one request or one connection and ends with it. A panic stays inside: whoever holds the
/// handle sees it.
pub fn spawn_short<T: Send + 'static>(
    task: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    tokio::spawn(task)
}
