//! Following everything: one subscription, opened anew wherever it ends, at the cursors that the store holds.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{Cursor, Ended, EndedWhy, Entries, SubscribeRequest, frame},
    status::Refusal,
};
use tokio::time::Instant;
use tonic::Code;

use super::{
    Audience, Delivery, Member, heal,
    left_out::Eager,
    welcomes::{Entered, PutAside},
};
use crate::{
    core::{
        apply, group,
        records::{self, GroupName, GroupRecord, GroupState, JournalEntry},
    },
    failure::{Failure, code_name},
    outcomes::{Failed, Loop, Outcomes},
    transport::with_token,
};

const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a quiet stream looks after groups that something is wrong with.
const LOOK: Duration = Duration::from_secs(1);
/// So many looks at one group are a second apart; each one after them is twice as far from the one before.
const SOON: u32 = 20;
/// How often a quiet stream looks after devices that were left out.
const LEFT_OUT_LOOK: Duration = Duration::from_secs(10);
/// Heartbeats come every 30 s; a stream that is silent for longer is opened anew.
const SILENCE: Duration = Duration::from_secs(95);

/// What a follower sees.
#[derive(Debug)]
pub enum Event {
    /// A new entry in the journal.
    Entry(GroupName, Box<JournalEntry>),
    /// This device joined.
    Joined(GroupName),
    /// Everything that existed when the stream was opened has been seen.
    CaughtUp,
    /// A group ended for this device.
    Ended(GroupName, u64, String),
    /// The server's history is another one; the group is stopped.
    HistoryChanged(Option<GroupName>),
    /// A Welcome can never be used.
    PutAside(PutAside),
    /// The server says that its database was restored: this device published other KeyPackages.
    ServerRestored,
    /// One group or frame failed, and everything else goes on.
    Failed(Failed),
    /// The stream ended and is opened again.
    Reconnecting(&'static str),
}

/// Sees each event and says whether to go on.
pub type Sink<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

enum End {
    Done,
    Again,
}

/// When what ails is looked at again: soon at first, since others may be about to take a Commit back, then more and
/// more seldom.
#[derive(Default)]
struct Mending {
    tries: BTreeMap<GroupName, (u32, Option<Instant>)>,
    left_out_at: Option<Instant>,
}

impl Mending {
    fn is_due(&mut self, name: &GroupName) -> bool {
        let now = Instant::now();
        let (tries, next) = self.tries.entry(name.clone()).or_default();
        if next.is_some_and(|next| now < next) {
            return false;
        }
        *tries = tries.saturating_add(1);
        let pause = LOOK * (1 << tries.saturating_sub(SOON).min(8));
        *next = Some(now + pause);
        true
    }

    fn looks_at_left_out(&mut self) -> bool {
        let now = Instant::now();
        let due = self.left_out_at.is_none_or(|at| now >= at);
        if due {
            self.left_out_at = Some(now + LEFT_OUT_LOOK);
        }
        due
    }
}

impl Member {
    /// Follows the groups (all, when none is named) until the sink says stop. The store is held only for a step at a time.
    ///
    /// # Errors
    /// A refusal that a new stream would not change, or the store.
    pub async fn listen(&self, groups: &[GroupName], sink: Sink<'_>) -> Result<(), Failure> {
        let mut pause = PAUSES.0;
        loop {
            let code = match self.follow(groups, sink, &mut pause).await {
                Ok(End::Done) => return Ok(()),
                Ok(End::Again) => code_name(Code::Unavailable),
                Err(Failure::Unanswered { refusal, .. }) => code_name(refusal.code),
                Err(Failure::Refused(refusal)) => match refusal.reason {
                    Some(Reason::TokenExpired | Reason::TokenInvalid) => {
                        self.forget_token(Audience::Delivery)?;
                        code_name(refusal.code)
                    }
                    Some(Reason::HistoryChanged) => {
                        let group = self.named(&refusal);
                        match &group {
                            Some(group) => self.stop(group)?,
                            None => return Err(Failure::Refused(refusal)),
                        }
                        if sink(Event::HistoryChanged(group)).is_break() {
                            return Ok(());
                        }
                        continue;
                    }
                    Some(Reason::CursorTooOld) => {
                        let Some(name) = self.named(&refusal) else {
                            return Err(Failure::Refused(refusal));
                        };
                        self.too_old(&name)?;
                        self.heal(&name, true).await?;
                        continue;
                    }
                    Some(Reason::Group) => {
                        // A server that ends the whole stream for one group that it does not know.
                        let stopped = self.stop_unknown(groups).await?;
                        if stopped.is_empty() {
                            return Err(Failure::Refused(refusal));
                        }
                        for name in stopped {
                            if sink(Event::HistoryChanged(Some(name))).is_break() {
                                return Ok(());
                            }
                        }
                        continue;
                    }
                    _ => return Err(Failure::Refused(refusal)),
                },
                Err(failure) => return Err(failure),
            };
            if sink(Event::Reconnecting(code)).is_break() {
                return Ok(());
            }
            tokio::time::sleep(self.surroundings.jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Reads each group that is followed; those whose history turns out to be another one.
    async fn stop_unknown(&self, groups: &[GroupName]) -> Result<Vec<GroupName>, Failure> {
        let mut stopped = Vec::new();
        for name in self.followed(groups)?.into_iter().map(|record| record.name) {
            self.read_to_the_end(&name).await?;
            if self.record(&name)?.state == GroupState::HistoryChanged {
                stopped.push(name);
            }
        }
        Ok(stopped)
    }

    /// The groups that a stream follows.
    fn followed(&self, groups: &[GroupName]) -> Result<Vec<GroupRecord>, Failure> {
        let mut records = self.step(|step, _| Ok(records::groups(step)?))?;
        records.retain(|record| {
            (groups.is_empty() || groups.contains(&record.name))
                && record.name.domain == self.profile.delivery_domain
                && matches!(
                    record.state,
                    GroupState::Active | GroupState::NeedsRejoin(_)
                )
        });
        Ok(records)
    }

    /// Which group of a stream a refusal is about.
    fn named(&self, refusal: &Refusal) -> Option<GroupName> {
        Some(GroupName {
            domain: self.profile.delivery_domain.clone(),
            id: hex::decode(refusal.metadata.get("group")?).ok()?,
        })
    }

    fn request(&self, groups: &[GroupName]) -> Result<SubscribeRequest, Failure> {
        let cursors = self
            .followed(groups)?
            .into_iter()
            .map(|record| Cursor {
                group: Some(record.name.to_ref()),
                seq: record.head_seq,
                chain: if record.head_seq == 0 {
                    Default::default()
                } else {
                    record.chain.to_vec().into()
                },
            })
            .collect();
        Ok(SubscribeRequest {
            cursors,
            all_groups: groups.is_empty(),
            device_inbox: groups.is_empty(),
        })
    }

    async fn follow(
        &self,
        groups: &[GroupName],
        sink: Sink<'_>,
        pause: &mut Duration,
    ) -> Result<End, Failure> {
        let lost = |status: &tonic::Status| {
            let refusal = Box::new(Refusal::from_status(status));
            if refusal.outcome_unknown() {
                Failure::Unanswered {
                    refusal,
                    kept: false,
                }
            } else {
                Failure::Refused(refusal)
            }
        };
        if self.compare_incarnation().await? && sink(Event::ServerRestored).is_break() {
            return Ok(End::Done);
        }
        let token = self.token(Audience::Delivery).await?;
        let request = with_token(self.request(groups)?, &token).map_err(|s| lost(&s))?;
        let mut client = Delivery::new(self.transport.delivery_streams.clone());
        let mut stream = client
            .subscribe(request)
            .await
            .map_err(|s| lost(&s))?
            .into_inner();
        let mut silent_since = Instant::now();
        let mut frames = Outcomes::of(Loop::Frames);
        let mut mending = Mending::default();
        loop {
            let Ok(next) = tokio::time::timeout(LOOK, stream.message()).await else {
                if silent_since.elapsed() > SILENCE {
                    return Ok(End::Again);
                }
                if self.mend(groups, &mut mending, sink).await?.is_break() {
                    return Ok(End::Done);
                }
                continue;
            };
            silent_since = Instant::now();
            let Some(frame) = next.map_err(|s| lost(&s))?.and_then(|f| f.frame) else {
                return Ok(End::Again);
            };
            *pause = PAUSES.0;
            let about = about(&frame);
            let item = about
                .as_ref()
                .map_or_else(String::new, GroupName::to_string);
            let done = frames.run(item, Box::pin(self.frame(frame, sink))).await?;
            let mut flow = done.unwrap_or(ControlFlow::Continue(()));
            for failed in frames.take_failed() {
                flow = self.told_failure(about.clone(), failed, sink)?;
            }
            if flow.is_break() {
                return Ok(End::Done);
            }
        }
    }

    /// Mends what ails and adds who was left out, without waiting for anybody: it is called again soon.
    async fn mend(
        &self,
        groups: &[GroupName],
        mending: &mut Mending,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<()>, Failure> {
        let mut outcomes = Outcomes::of(Loop::Mending);
        for record in self.followed(groups)?.into_iter().filter(heal::ails) {
            if !mending.is_due(&record.name) {
                continue;
            }
            let healed = outcomes.run(&record.name, Box::pin(self.heal(&record.name, false)));
            if let Some(read) = healed.await?
                && told(&record.name, read, sink).is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        let mut failed = outcomes.failed();
        if groups.is_empty() && mending.looks_at_left_out() {
            self.add_left_out(Eager::No, &mut failed).await?;
        }
        for failed in failed {
            if sink(Event::Failed(failed)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Says what failed; a group whose history turned out to be another one was stopped.
    fn told_failure(
        &self,
        about: Option<GroupName>,
        failed: Failed,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<()>, Failure> {
        if let Some(name) = about {
            let record = self.step(|step, _| Ok(records::group(step, &name)?))?;
            if record.is_some_and(|record| record.state == GroupState::HistoryChanged) {
                return Ok(sink(Event::HistoryChanged(Some(name))));
            }
        }
        Ok(sink(Event::Failed(failed)))
    }

    async fn frame(&self, frame: frame::Frame, sink: Sink<'_>) -> Result<ControlFlow<()>, Failure> {
        match frame {
            frame::Frame::Entries(entries) => self.entries(entries, sink).await,
            frame::Frame::Welcome(welcome) => {
                let Some(name) = welcome.group.as_ref().map(GroupName::from_ref) else {
                    return Ok(ControlFlow::Continue(()));
                };
                let event = match self.join(&welcome).await? {
                    Entered::Known => return Ok(ControlFlow::Continue(())),
                    Entered::Joined => Event::Joined(name.clone()),
                    Entered::PutAside(why) => Event::PutAside(PutAside {
                        group: name,
                        seq: welcome.seq,
                        why,
                    }),
                };
                let joined = match &event {
                    Event::Joined(name) => Some(name.clone()),
                    _ => None,
                };
                if sink(event).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                match joined {
                    Some(name) => Ok(told(&name, self.read_up(&name).await?, sink)),
                    None => Ok(ControlFlow::Continue(())),
                }
            }
            frame::Frame::CaughtUp(_) => Ok(sink(Event::CaughtUp)),
            frame::Frame::KeyPackageStock(_) => {
                self.fill_key_packages(group::SUITES[0], super::enroll::KEY_PACKAGES)
                    .await?;
                Ok(ControlFlow::Continue(()))
            }
            frame::Frame::Ended(ended) => self.ended(&ended, sink),
            frame::Frame::Pruned(gap) => {
                if let Some(name) = gap.group.as_ref().map(GroupName::from_ref)
                    && self
                        .step(|step, _| Ok(records::group(step, &name)?))?
                        .is_some()
                {
                    self.step(|step, _| apply::pruned(step, &name, &gap))?;
                }
                Ok(ControlFlow::Continue(()))
            }
            frame::Frame::State(state) => {
                if let Some(group) = &state.group {
                    let name = GroupName::from_ref(group);
                    self.step(|step, _| Ok(records::settled(step, &name, state.settled_seq)?))?;
                }
                Ok(ControlFlow::Continue(()))
            }
            frame::Frame::Requested(requested) => {
                self.asked(&requested).await?;
                Ok(ControlFlow::Continue(()))
            }
            // Heartbeats, what later versions add of later versions: nothing to write down.
            _ => Ok(ControlFlow::Continue(())),
        }
    }

    /// A group ended for this device. One that the server does not know any more, though entries of it were
    /// acknowledged, is another history.
    fn ended(&self, ended: &Ended, sink: Sink<'_>) -> Result<ControlFlow<()>, Failure> {
        let Some(name) = ended.group.as_ref().map(GroupName::from_ref) else {
            return Ok(ControlFlow::Continue(()));
        };
        if ended.why() == EndedWhy::Unknown
            && self.followed(std::slice::from_ref(&name))?.len() == 1
        {
            self.stop(&name)?;
            return Ok(sink(Event::HistoryChanged(Some(name))));
        }
        let why = ended.why().as_str_name();
        let why = why.trim_start_matches("ENDED_WHY_").to_lowercase();
        Ok(sink(Event::Ended(name, ended.at_seq, why)))
    }

    async fn entries(&self, entries: Entries, sink: Sink<'_>) -> Result<ControlFlow<()>, Failure> {
        let Some(reference) = &entries.group else {
            return Ok(ControlFlow::Continue(()));
        };
        let name = GroupName::from_ref(reference);
        let Some(record) = self.step(|step, _| Ok(records::group(step, &name)?))? else {
            // Its Welcome is on its way; what is here is read again then.
            return Ok(ControlFlow::Continue(()));
        };
        let first = entries.entries.first().map_or(0, |entry| entry.seq);
        let read = if first > record.head_seq + 1 {
            self.read_up(&name).await?
        } else {
            let page = self.take(&name, &entries.entries).await?;
            if page.history_changed && sink(Event::HistoryChanged(Some(name.clone()))).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            page.entries
        };
        Ok(told(&name, read, sink))
    }
}

fn told(name: &GroupName, entries: Vec<JournalEntry>, sink: Sink<'_>) -> ControlFlow<()> {
    for entry in entries {
        sink(Event::Entry(name.clone(), Box::new(entry)))?;
    }
    ControlFlow::Continue(())
}

/// The group that a frame is about.
fn about(frame: &frame::Frame) -> Option<GroupName> {
    let group = match frame {
        frame::Frame::Entries(entries) => &entries.group,
        frame::Frame::State(state) => &state.group,
        frame::Frame::Pruned(pruned) => &pruned.group,
        frame::Frame::Welcome(welcome) => &welcome.group,
        frame::Frame::Requested(requested) => &requested.group,
        frame::Frame::Ended(ended) => &ended.group,
        _ => &None,
    };
    group.as_ref().map(GroupName::from_ref)
}
