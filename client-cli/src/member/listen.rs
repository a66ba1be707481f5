//! Following everything: one subscription, opened anew wherever it ends, at the cursors that the store holds.

use std::{ops::ControlFlow, time::Duration};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{Cursor, Ended, Entries, SubscribeRequest, frame},
    status::Refusal,
};
use tonic::Code;

use super::{Audience, Delivery, Member, heal};
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
    /// The stream ended and is opened again.
    Reconnecting(&'static str),
}

/// Sees each event and says whether to go on.
pub type Sink<'a> = &'a mut dyn FnMut(Event) -> ControlFlow<()>;

enum End {
    Done,
    Again,
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

    /// Which group of a stream a refusal is about.
    fn named(&self, refusal: &Refusal) -> Option<GroupName> {
        Some(GroupName {
            domain: self.profile.delivery_domain.clone(),
            id: hex::decode(refusal.metadata.get("group")?).ok()?,
        })
    }

    fn request(&self, groups: &[GroupName]) -> Result<SubscribeRequest, Failure> {
        let records = self.step(|step, _| Ok(records::groups(step)?))?;
        let cursors = records
            .into_iter()
            .filter(|record| groups.is_empty() || groups.contains(&record.name))
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
        let token = self.token(Audience::Delivery).await?;
        let request = with_token(self.request(groups)?, &token).map_err(|s| lost(&s))?;
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
                if self.mend(groups, sink).await?.is_break() {
                    return Ok(End::Done);
                }
                continue;
            };
            silent_since = tokio::time::Instant::now();
            let Some(frame) = next.map_err(|s| lost(&s))?.and_then(|f| f.frame) else {
                return Ok(End::Again);
            };
            *pause = PAUSES.0;
            if self.frame(frame, sink).await?.is_break() {
                return Ok(End::Done);
            }
        }
    }

    /// Mends what ails, without waiting for anybody: it is called again soon.
    async fn mend(&self, groups: &[GroupName], sink: Sink<'_>) -> Result<ControlFlow<()>, Failure> {
        let records = self.step(|step, _| Ok(records::groups(step)?))?;
        let ailing = records
            .into_iter()
            .filter(|record| groups.is_empty() || groups.contains(&record.name))
            .filter(heal::ails);
        for record in ailing {
            let read = self.heal(&record.name, false).await?;
            if told(&record.name, read, sink).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn frame(&self, frame: frame::Frame, sink: Sink<'_>) -> Result<ControlFlow<()>, Failure> {
        match frame {
            frame::Frame::Entries(entries) => self.entries(entries, sink).await,
            frame::Frame::Welcome(welcome) => match self.join(&welcome).await? {
                Some(name) => {
                    if sink(Event::Joined(name.clone())).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    let read = self.read_up(&name).await?;
                    Ok(told(&name, read, sink))
                }
                None => Ok(ControlFlow::Continue(())),
            },
            frame::Frame::CaughtUp(_) => Ok(sink(Event::CaughtUp)),
            frame::Frame::KeyPackageStock(_) => {
                self.fill_key_packages(group::SUITES[0], super::enroll::KEY_PACKAGES)
                    .await?;
                Ok(ControlFlow::Continue(()))
            }
            frame::Frame::Ended(ended) => Ok(ended_event(&ended, sink)),
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

fn ended_event(ended: &Ended, sink: Sink<'_>) -> ControlFlow<()> {
    let why = ended.why().as_str_name();
    let why = why.trim_start_matches("ENDED_WHY_").to_lowercase();
    match &ended.group {
        Some(group) => sink(Event::Ended(GroupName::from_ref(group), ended.at_seq, why)),
        None => ControlFlow::Continue(()),
    }
}
