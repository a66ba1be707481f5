//! Group commit: messages that come at the same time become one transaction.
//!
//! A node has a few *lanes*, and a group always takes the same one, so its messages are appended in the order in which they were put. A lane takes
//! whatever has come by the time it is free: a lone message waits for nobody, and under load the batches grow by themselves, up to a number of
//! messages and of bytes. What happens in the transaction is in `write`. Where a node remembers enough of a group, it does not lock and ask before it writes (`foresee`,
//! after a `look` at what it does not know).
//!
//! A group whose head somebody else holds for long (a large Commit) is passed over and waits on a *siding* of its own, so that it holds up nobody.
//! A batch that fails for a reason that may lie in one of its messages is cut in two until that one stands alone.

mod locked;
mod lookups;
mod optimistic;
mod prefetch;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use chancery_proto::{common::v1::Reason, delivery::v1::SendMessageResponse};
use service_kit::{
    db::{Db, DbError},
    lifecycle::Shutdown,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    access::{caller::Caller, clock::Clock},
    config::BatchOptions,
    error::Error,
    hub::{Hub, head_cache::Remembered},
    log::message::PreparedSend,
    ordering::group::{DeviceKey, Rejection},
};
use locked::Written;
use optimistic::Foresight;

type Answer = Result<SendMessageResponse, Error>;

/// A message, and who sends it.
#[derive(Debug)]
struct Message {
    sender: DeviceKey,
    user: uuid::Uuid,
    send: PreparedSend,
}

/// One message on its way into the log.
#[derive(Debug)]
struct Job {
    message: Arc<Message>,
    answer: oneshot::Sender<Answer>,
    /// Its place among those that may wait.
    _place: OwnedSemaphorePermit,
}

impl Job {
    fn group(&self) -> &[u8] {
        &self.message.send.group
    }

    fn answer(self, answer: Answer) {
        // Whoever asked may have gone; it is in the log all the same.
        let _gone = self.answer.send(answer);
    }
}

/// Whoever put a message holds this until it is answered. Dropping it does not take the message back.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Answer>);

impl Ticket {
    /// What became of it.
    ///
    /// # Errors
    /// Every refusal of [`crate::ordering::group::Group::decide`], how the device stands, or the database.
    pub async fn answer(self) -> Answer {
        // A lane ends with its node only.
        self.0.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn ended() -> Error {
    Error::refused(Reason::ShuttingDown, "the node is shutting down")
}

/// The lanes of one node; cheap to clone.
#[derive(Debug, Clone)]
pub struct Batcher {
    lanes: Arc<[mpsc::UnboundedSender<Job>]>,
    places: Arc<Semaphore>,
}

impl Batcher {
    /// Starts the lanes. They end when the last handle is gone.
    pub fn start(
        db: &Db,
        hub: &Hub,
        clock: &Clock,
        remembered: &Remembered,
        options: &BatchOptions,
        shutdown: &Shutdown,
    ) -> Self {
        let writer = Writer {
            db: db.clone(),
            hub: hub.clone(),
            clock: clock.clone(),
            remembered: remembered.clone(),
            lock_millis: options.append_lock_millis,
        };
        let lanes = (0..options.append_lanes_items)
            .map(|_| {
                let (sender, jobs) = mpsc::unbounded_channel();
                let (finished, cleared) = mpsc::unbounded_channel();
                let lane = Lane {
                    writer: writer.clone(),
                    limits: options.clone(),
                    sidings: HashMap::new(),
                    finished,
                    shutdown: shutdown.clone(),
                };
                shutdown.spawn("append_lane", lane.run(jobs, cleared));
                sender
            })
            .collect();
        Self {
            lanes,
            places: Arc::new(Semaphore::new(options.append_waiting_items as usize)),
        }
    }

    /// Puts a message in its group's lane; waits only while too many wait already. Messages of one group are appended in the order of these calls.
    ///
    /// # Errors
    /// The node is shutting down.
    pub async fn put(&self, caller: &Caller, send: PreparedSend) -> Result<Ticket, Error> {
        let place = self.places.clone().acquire_owned().await;
        let (answer, ticket) = oneshot::channel();
        let lane = lane_of(&send.group, self.lanes.len());
        let message = Message {
            sender: caller.key,
            user: caller.user,
            send,
        };
        let job = Job {
            message: Arc::new(message),
            answer,
            _place: place.map_err(|_| ended())?,
        };
        self.lanes[lane].send(job).map_err(|_| ended())?;
        Ok(Ticket(ticket))
    }
}

/// Group ids are random: their first bytes spread well.
fn lane_of(group: &[u8], lanes: usize) -> usize {
    let spread = group
        .iter()
        .take(8)
        .fold(0usize, |sum, byte| (sum << 8) | usize::from(*byte));
    spread % lanes.max(1)
}

/// What to do about a head that somebody else holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Wait for so many milliseconds: another batch, on another node, is soon done with it.
    Briefly(u32),
    /// Leave its messages for later.
    PassOver,
    /// Wait for it as long as for any lock.
    ForLock,
}

/// What came of one message.
enum Outcome {
    Answer(Answer),
    /// Somebody else holds the head, or there is no such group.
    PassedOver,
}

impl Outcome {
    /// Whether the message's id was taken before.
    fn is_repeat(&self) -> bool {
        match self {
            Self::Answer(Ok(accepted)) => accepted.replayed,
            Self::Answer(Err(error)) => {
                matches!(error, Error::Rejected(Rejection::MessageIdReused))
            }
            Self::PassedOver => false,
        }
    }
}

struct Lane {
    writer: Writer,
    limits: BatchOptions,
    /// Groups whose messages are on a siding, with what came for them since.
    sidings: HashMap<Vec<u8>, Vec<Job>>,
    finished: mpsc::UnboundedSender<Vec<u8>>,
    shutdown: Shutdown,
}

impl Lane {
    async fn run(
        mut self,
        mut jobs: mpsc::UnboundedReceiver<Job>,
        mut cleared: mpsc::UnboundedReceiver<Vec<u8>>,
    ) {
        let (mut waiting, mut come) = (VecDeque::new(), Vec::new());
        let most = self.limits.append_batch_items.into();
        loop {
            tokio::select! {
                biased;
                Some(group) = cleared.recv() => self.clear(group),
                count = jobs.recv_many(&mut come, most), if waiting.is_empty() => {
                    if count == 0 {
                        return;
                    }
                }
                () = std::future::ready(()), if !waiting.is_empty() => {}
            }
            waiting.extend(come.drain(..).filter_map(|job| self.sidetrack(job)));
            let batch = take_batch(&mut waiting, &self.limits);
            if batch.is_empty() {
                continue;
            }
            let passed_over = self.writer.write(batch).await;
            for (group, jobs) in by_group(passed_over) {
                self.sidings.insert(group.clone(), Vec::new());
                self.begin_siding(group, jobs);
            }
            // What waits behind a message that was passed over goes with it.
            let behind = std::mem::take(&mut waiting);
            waiting.extend(behind.into_iter().filter_map(|job| self.sidetrack(job)));
        }
    }

    /// Gives a job back unless its group is on a siding.
    fn sidetrack(&mut self, job: Job) -> Option<Job> {
        match self.sidings.get_mut(job.group()) {
            Some(siding) => {
                siding.push(job);
                None
            }
            None => Some(job),
        }
    }

    /// A siding is done with what it had: goes on with what came since, or back to the lane.
    fn clear(&mut self, group: Vec<u8>) {
        match self.sidings.get_mut(&group).map(std::mem::take) {
            Some(jobs) if !jobs.is_empty() => self.begin_siding(group, jobs),
            _ => {
                self.sidings.remove(&group);
            }
        }
    }

    fn begin_siding(&self, group: Vec<u8>, jobs: Vec<Job>) {
        metrics::counter!("chancery_ds_append_sidings_total").increment(1);
        let (writer, limits) = (self.writer.clone(), self.limits.clone());
        let finished = self.finished.clone();
        self.shutdown.spawn_job("append_siding", async move {
            let mut jobs = VecDeque::from(jobs);
            while !jobs.is_empty() {
                let batch = take_batch(&mut jobs, &limits);
                writer.write_locked(batch, Wait::ForLock).await;
            }
            // The lane is gone only with its node.
            let _gone = finished.send(group);
        });
    }
}

/// The next messages in order, as many as fit one batch; one always fits.
fn take_batch(waiting: &mut VecDeque<Job>, limits: &BatchOptions) -> Vec<Job> {
    let (mut bytes, mut batch) = (0, Vec::new());
    while let Some(job) = waiting.front() {
        bytes += job.message.send.message.len();
        let full = batch.len() >= limits.append_batch_items.into()
            || bytes > limits.append_batch_bytes as usize;
        if full && !batch.is_empty() {
            break;
        }
        batch.extend(waiting.pop_front());
    }
    batch
}

fn by_group(jobs: Vec<Job>) -> HashMap<Vec<u8>, Vec<Job>> {
    let mut groups: HashMap<Vec<u8>, Vec<Job>> = HashMap::new();
    for job in jobs {
        groups.entry(job.group().to_vec()).or_default().push(job);
    }
    groups
}

/// A failure that lies in none of the messages: each of them gets it, and none is tried alone.
fn shared_failure(error: &Error) -> Option<&DbError> {
    match error {
        Error::Db(error) if error.is_shared() => Some(error),
        // Whoever waited for a lock as long as it may be waited for does not wait for it again, message by message.
        Error::Db(error @ (DbError::Busy | DbError::Conflict)) => Some(error),
        _ => None,
    }
}

fn answer_all(jobs: Vec<Job>, failure: &DbError) {
    for job in jobs {
        job.answer(Err(failure.clone().into()));
    }
}

/// What writes batches, for lanes and sidings alike.
#[derive(Debug, Clone)]
struct Writer {
    db: Db,
    hub: Hub,
    clock: Clock,
    remembered: Remembered,
    lock_millis: u32,
}

impl Writer {
    /// Writes a batch and answers it, by the short way what is foreseen and the rest by the other; gives back what was passed over.
    async fn write(&self, batch: Vec<Job>) -> Vec<Job> {
        let wait = Wait::Briefly(self.lock_millis);
        let messages = batch.iter().map(|job| &*job.message);
        // Whoever cannot look cannot write either, and says so there.
        let _looked = prefetch::look(&self.db, &self.remembered, messages.clone()).await;
        let now = self.clock.recent();
        let foreseen = now.and_then(|now| optimistic::foresee(messages, &self.remembered, now));
        let Some((marks, foresight)) = foreseen else {
            return self.write_locked(batch, wait).await;
        };
        let (mut foreseen, mut rest) = (Vec::new(), Vec::new());
        for (job, mark) in batch.into_iter().zip(marks) {
            if mark {
                foreseen.push(job);
            } else {
                rest.push(job);
            }
        }
        // They are of different groups.
        let ((left, wait_for_left), mut passed_over) = tokio::join!(
            self.write_foreseen(foreseen, foresight),
            self.write_locked(rest, wait)
        );
        passed_over.extend(self.write_locked(left, wait_for_left).await);
        passed_over
    }

    /// Writes and answers what was foreseen. Gives it back where something was not as foreseen or a head is held for
    /// long, for the locked way, and says how that should wait. Nothing was written then.
    async fn write_foreseen(&self, jobs: Vec<Job>, foresight: Foresight) -> (Vec<Job>, Wait) {
        let wait = Wait::Briefly(self.lock_millis);
        let messages = messages(&jobs);
        let foresight = Arc::new(foresight);
        let (shared, basis, lock_millis) = (messages.clone(), foresight.clone(), self.lock_millis);
        let written = self.db.run_pipeline("append_foreseen", move |tx| {
            let (messages, foresight) = (shared.clone(), basis.clone());
            Box::pin(async move {
                locked::append_foreseen(tx, &messages, &foresight, lock_millis).await
            })
        });
        match written.await.map_err(Error::from) {
            Ok(written) => {
                let outcomes = self.written(written, &messages);
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    if let Outcome::Answer(answer) = outcome {
                        job.answer(answer);
                    }
                }
                (Vec::new(), wait)
            }
            // A head has moved, something was said of a device, or a message_id was used before.
            Err(Error::Db(error @ (DbError::NotAsAssumed | DbError::Duplicate(_)))) => {
                tracing::debug!(%error, "not as foreseen");
                metrics::counter!("chancery_ds_append_unforeseen_total").increment(1);
                let groups = foresight.heads.keys().map(Vec::as_slice);
                self.remembered.disappointed(groups);
                (jobs, wait)
            }
            // It waited as briefly as the locked way would have.
            Err(Error::Db(DbError::Busy)) => (jobs, Wait::PassOver),
            Err(error) => match shared_failure(&error) {
                Some(failure) => {
                    answer_all(jobs, failure);
                    (Vec::new(), wait)
                }
                None => (jobs, wait),
            },
        }
    }

    /// Writes a batch under its locks and answers it; gives back what was passed over.
    async fn write_locked(&self, batch: Vec<Job>, wait: Wait) -> Vec<Job> {
        let mut passed_over = Vec::new();
        let mut parts = VecDeque::from([batch]);
        while let Some(part) = parts.pop_front() {
            // Behind a message that was passed over comes nothing of the same group.
            let (behind, mut part): (Vec<Job>, Vec<Job>) = part.into_iter().partition(|job| {
                let same = |other: &Job| other.group() == job.group();
                passed_over.iter().any(same)
            });
            passed_over.extend(behind);
            if part.is_empty() {
                continue;
            }
            let mut written = self.try_write(&part, wait).await;
            if let (Wait::Briefly(_), Err(Error::Db(DbError::Busy))) = (wait, &written) {
                written = self.try_write(&part, Wait::PassOver).await;
            }
            match written {
                Ok(outcomes) => {
                    for (job, outcome) in part.into_iter().zip(outcomes) {
                        match outcome {
                            Outcome::Answer(answer) => job.answer(answer),
                            Outcome::PassedOver => passed_over.push(job),
                        }
                    }
                }
                Err(error) => match shared_failure(&error) {
                    Some(failure) => answer_all(part, failure),
                    None if part.len() > 1 => {
                        let rest = part.split_off(part.len() / 2);
                        parts.push_front(rest);
                        parts.push_front(part);
                    }
                    None => {
                        if let Some(job) = part.pop() {
                            job.answer(Err(error));
                        }
                    }
                },
            }
        }
        passed_over
    }

    async fn try_write(&self, jobs: &[Job], wait: Wait) -> Result<Vec<Outcome>, Error> {
        let messages = messages(jobs);
        let shared = messages.clone();
        let written = self.db.run_pipeline("append", move |tx| {
            let messages = shared.clone();
            Box::pin(async move { locked::append(tx, &messages, wait).await })
        });
        let written = written.await?;
        Ok(self.written(written, &messages))
    }

    /// After COMMIT.
    fn written(&self, written: Written, messages: &[Arc<Message>]) -> Vec<Outcome> {
        self.clock.saw(written.now);
        metrics::histogram!("chancery_ds_append_batch_items").record(messages.len() as f64);
        written.teach(&self.remembered, messages);
        for (group, place) in &written.places {
            if let Some(head_seq) = place.moved_to() {
                self.hub.group_moved(group, head_seq);
            }
        }
        written.outcomes
    }
}

fn messages(jobs: &[Job]) -> Arc<[Arc<Message>]> {
    jobs.iter().map(|job| job.message.clone()).collect()
}
