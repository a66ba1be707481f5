//! Following everything: one subscription, opened anew wherever it ends, at the cursors that the store holds. What
//! comes is written into the journal
//! first, and given from there.

use std::{ops::ControlFlow, time::Duration};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{Cursor, Ended, Entries, SubscribeRequest, Welcome, frame},
    status::Refusal,
};
use tonic::Code;

use super::{
    Audience, Delivery, Member,
    follower::{Follower, Following},
    heal,
};
use crate::{
    core::{
        apply, group,
        records::{self, GroupName, GroupState, JournalEntry},
    },
    failure::{Failure, code_name},
    transport::with_token,
};

const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a quiet stream looks after groups that something is wrong with.
const LOOK: Duration = Duration::from_secs(1);
/// Heartbeats come every 30 s; a stream that is silent for longer is opened anew.
const SILENCE: Duration = Duration::from_secs(95);

/// What a follower sees.
#[derive(Debug)]
pub enum Event {
    /// An entry of the journal.
    Entry(GroupName, Box<JournalEntry>),
    /// Entries that the journal does not hold: past the service's retention, or before this device came back.
    Missing {
        /// Where.
        group: GroupName,
        /// The first of them.
        from_seq: u64,
        /// The last of them.
        to_seq: u64,
    },
    /// This device joined.
    Joined(GroupName),
    /// Everything that existed when the stream was opened has been seen.
    CaughtUp,
    /// A group ended for this device.
    Ended(GroupName, u64, String),
    /// The server's history is another one; the group is stopped.
    HistoryChanged(Option<GroupName>),
    /// The stream ended and is opened again.
    Reconnecting(&'static str),
}

/// Why a sink wants nothing more.
#[derive(Debug)]
pub enum Stop {
    /// It has this event, and it was the last one.
    Seen,
    /// It could not take this event: a named consumer gets it again.
    NotTaken(std::io::Error),
}

/// Sees each event and says whether to go on.
pub type Sink<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<Stop>;

enum End {
    Stopped(Stop),
    Again,
}

impl Member {
    /// Follows groups until the sink says stop. The store is held only for a step at a time.
    ///
    /// # Errors
    /// A refusal that a new stream would not change, or the store.
    pub async fn listen(&self, following: &Following, sink: Sink<'_>) -> Result<Stop, Failure> {
        let mut follower = Follower::begin(self, following)?;
        let mut pause = PAUSES.0;
        // A token that ends is replaced without a word; one that is refused as soon as it is used is a fault.
        let mut renewed = false;
        loop {
            let mut heard = false;
            let ended = self
                .follow(&mut follower, sink, &mut pause, &mut heard)
                .await;
            renewed &= !heard;
            let code = match ended {
                Ok(End::Stopped(stop)) => return Ok(stop),
                Ok(End::Again) => code_name(Code::Unavailable),
                Err(Failure::Unanswered { refusal, .. }) => code_name(refusal.code),
                Err(Failure::Refused(refusal)) => match refusal.reason {
                    Some(Reason::TokenExpired | Reason::TokenInvalid) => {
                        self.forget_token(Audience::Delivery)?;
                        if !std::mem::replace(&mut renewed, true) {
                            continue;
                        }
                        code_name(refusal.code)
                    }
                    Some(Reason::HistoryChanged) => {
                        let group = self.named(&refusal);
                        match &group {
                            Some(group) => self.stop(group)?,
                            None => return Err(Failure::Refused(refusal)),
                        }
                        if let ControlFlow::Break(stop) = sink(Event::HistoryChanged(group)) {
                            return Ok(stop);
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
                    _ => return Err(Failure::Refused(refusal)),
                },
                Err(failure) => return Err(failure),
            };
            if let ControlFlow::Break(stop) = sink(Event::Reconnecting(code)) {
                return Ok(stop);
            }
            tokio::time::sleep(self.surroundings.jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Which group of a stream a refusal is about.
    fn named(&self, refusal: &Refusal) -> Option<GroupName> {
        Some(GroupName {
            domain: self.profile.delivery_domain.clone(),
            id: hex::decode(refusal.metadata.get("group")?).ok()?,
        })
    }

    fn request(&self, following: &Following) -> Result<SubscribeRequest, Failure> {
        let records = self.step(|step, _| Ok(records::groups(step)?))?;
        let cursors = records
            .into_iter()
            .filter(|record| following.wants(&record.name))
            .filter(|record| {
                matches!(
                    record.state,
                    GroupState::Active | GroupState::NeedsRejoin(_)
                )
            })
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
            all_groups: following.groups.is_empty(),
            device_inbox: following.groups.is_empty(),
        })
    }

    async fn follow(
        &self,
        follower: &mut Follower,
        sink: Sink<'_>,
        pause: &mut Duration,
        heard: &mut bool,
    ) -> Result<End, Failure> {
        let lost = |status: &tonic::Status| {
            let refusal = Box::new(Refusal::from_status(status));
            if refusal.outcome_unknown() {
                Failure::unanswered(*refusal)
            } else {
                Failure::Refused(refusal)
            }
        };
        if let ControlFlow::Break(stop) = follower.give(self, sink)? {
            return Ok(End::Stopped(stop));
        }
        let token = self.token(Audience::Delivery).await?;
        let request =
            with_token(self.request(&follower.following)?, &token).map_err(|s| lost(&s))?;
        let mut client = Delivery::new(self.transport.delivery_streams.clone());
        let mut stream = client
            .subscribe(request)
            .await
            .map_err(|s| lost(&s))?
            .into_inner();
        let mut silent_since = tokio::time::Instant::now();
        loop {
            let Ok(next) = tokio::time::timeout(LOOK, stream.message()).await else {
                if silent_since.elapsed() > SILENCE {
                    return Ok(End::Again);
                }
                self.mend(&follower.following).await?;
                if let ControlFlow::Break(stop) = follower.give(self, sink)? {
                    return Ok(End::Stopped(stop));
                }
                continue;
            };
            silent_since = tokio::time::Instant::now();
            let Some(frame) = next.map_err(|s| lost(&s))?.and_then(|f| f.frame) else {
                return Ok(End::Again);
            };
            (*pause, *heard) = (PAUSES.0, true);
            if let ControlFlow::Break(stop) = self.frame(frame, follower, sink).await? {
                return Ok(End::Stopped(stop));
            }
        }
    }

    /// Mends what ails, without waiting for anybody: it is called again soon.
    async fn mend(&self, following: &Following) -> Result<(), Failure> {
        let records = self.step(|step, _| Ok(records::groups(step)?))?;
        let ailing = records
            .into_iter()
            .filter(|record| following.wants(&record.name))
            .filter(heal::ails);
        for record in ailing {
            self.heal(&record.name, false).await?;
        }
        Ok(())
    }

    /// Writes down what a frame says, gives what the journal holds then, and what is not in the journal after it.
    async fn frame(
        &self,
        frame: frame::Frame,
        follower: &mut Follower,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let last = match frame {
            frame::Frame::Entries(entries) => self.entries(entries).await?,
            frame::Frame::Welcome(welcome) => self.welcomed(&welcome, follower).await?,
            frame::Frame::CaughtUp(_) => Some(Event::CaughtUp),
            frame::Frame::KeyPackageStock(_) => {
                self.fill_key_packages(group::SUITES[0], super::enroll::KEY_PACKAGES)
                    .await?;
                None
            }
            frame::Frame::Ended(ended) => ended_event(&ended),
            frame::Frame::Pruned(gap) => {
                if let Some(name) = gap.group.as_ref().map(GroupName::from_ref)
                    && self
                        .step(|step, _| Ok(records::group(step, &name)?))?
                        .is_some()
                {
                    self.step(|step, _| apply::pruned(step, &name, &gap))?;
                }
                None
            }
            frame::Frame::State(state) => {
                if let Some(group) = &state.group {
                    let name = GroupName::from_ref(group);
                    self.step(|step, _| Ok(records::settled(step, &name, state.settled_seq)?))?;
                }
                None
            }
            frame::Frame::Requested(requested) => {
                self.asked(&requested).await?;
                None
            }
            // Heartbeats, what later versions add of later versions: nothing to write down.
            _ => None,
        };
        if let stopped @ ControlFlow::Break(_) = follower.give(self, sink)? {
            return Ok(stopped);
        }
        Ok(last.map_or(ControlFlow::Continue(()), sink))
    }

    /// Joins; a group that the listener has heard of before is said here, a new one when its journal is given.
    async fn welcomed(
        &self,
        welcome: &Welcome,
        follower: &Follower,
    ) -> Result<Option<Event>, Failure> {
        let Some(name) = self.join(welcome).await? else {
            return Ok(None);
        };
        self.read_up(&name).await?;
        let again = follower.knows(&name) && follower.following.wants(&name);
        Ok(again.then_some(Event::Joined(name)))
    }

    async fn entries(&self, entries: Entries) -> Result<Option<Event>, Failure> {
        let Some(reference) = &entries.group else {
            return Ok(None);
        };
        let name = GroupName::from_ref(reference);
        let Some(record) = self.step(|step, _| Ok(records::group(step, &name)?))? else {
            // Its Welcome is on its way; what is here is read again then.
            return Ok(None);
        };
        let first = entries.entries.first().map_or(0, |entry| entry.seq);
        if first > record.head_seq + 1 {
            self.read_up(&name).await?;
            return Ok(None);
        }
        let page = self.take(&name, &entries.entries).await?;
        Ok(page
            .history_changed
            .then(|| Event::HistoryChanged(Some(name))))
    }
}

fn ended_event(ended: &Ended) -> Option<Event> {
    let why = ended.why().as_str_name();
    let why = why.trim_start_matches("ENDED_WHY_").to_lowercase();
    let group = GroupName::from_ref(ended.group.as_ref()?);
    Some(Event::Ended(group, ended.at_seq, why))
}
