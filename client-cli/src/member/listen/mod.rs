//! Following everything: one subscription, opened anew wherever it ends, at the cursors that the store holds. What
//! comes is written into the journal first, and given from there.
//!
//! | file | |
//! |---|---|
//! | `frames` | what the stream brings |
//! | `follower` | what a listener was given of the journal |
//! | `mending` | what a quiet stream looks after |

mod follower;
mod frames;
mod mending;

use std::{ops::ControlFlow, time::Duration};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{Cursor, SubscribeRequest},
    status::Refusal,
};
use tokio::time::Instant;
use tonic::Code;

use self::follower::Follower;
pub use self::follower::{Begin, Following};
use super::{Audience, Delivery, Member, welcomes::PutAside};
use crate::{
    core::records::{self, GroupName, GroupRecord, GroupState, JournalEntry},
    failure::{Failure, code_name},
    outcomes::{Failed, Loop, Outcomes},
    transport::with_token,
};

const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// How often a quiet stream looks after groups that something is wrong with, and after what other processes read.
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
    /// A Welcome can never be used.
    PutAside(PutAside),
    /// The server says that its database was restored: this device published other KeyPackages.
    ServerRestored,
    /// One group or frame failed, and everything else goes on.
    Failed(Failed),
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

/// How one stream ended.
enum End {
    Stopped(Stop),
    Again,
}

/// What stays the same from one stream to the next.
struct Listening {
    follower: Follower,
    pause: Duration,
    /// A token that ends is replaced without a word; one that is refused as soon as it is used is a fault.
    renewed: bool,
}

impl Member {
    /// Follows groups until the sink says stop. The store is held only for a step at a time.
    ///
    /// # Errors
    /// A refusal that a new stream would not change, or the store.
    pub async fn listen(&self, following: &Following, sink: Sink<'_>) -> Result<Stop, Failure> {
        let mut listening = Listening {
            follower: Follower::begin(self, following)?,
            pause: PAUSES.0,
            renewed: false,
        };
        loop {
            let why = match self.follow(&mut listening, sink).await {
                Ok(End::Stopped(stop)) => return Ok(stop),
                Ok(End::Again) => Some(code_name(Code::Unavailable)),
                Err(Failure::Unanswered { refusal, .. }) => Some(code_name(refusal.code)),
                Err(Failure::Refused(refusal)) => {
                    match self.stream_refused(refusal, &mut listening, sink).await? {
                        ControlFlow::Break(stop) => return Ok(stop),
                        ControlFlow::Continue(why) => why,
                    }
                }
                Err(failure) => return Err(failure),
            };
            let Some(why) = why else {
                continue;
            };
            if let ControlFlow::Break(stop) = sink(Event::Reconnecting(why)) {
                return Ok(stop);
            }
            tokio::time::sleep(self.surroundings.jittered(listening.pause)).await;
            listening.pause = (listening.pause * 2).min(PAUSES.1);
        }
    }

    /// Does what a refused stream asks for. The name of the code where a pause is due before the next stream.
    async fn stream_refused(
        &self,
        refusal: Box<Refusal>,
        listening: &mut Listening,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop, Option<&'static str>>, Failure> {
        let about = self.named(&refusal);
        let stopped = match (refusal.reason, about) {
            (Some(Reason::TokenExpired | Reason::TokenInvalid), _) => {
                self.forget_token(Audience::Delivery)?;
                let again = std::mem::replace(&mut listening.renewed, true);
                return Ok(ControlFlow::Continue(
                    again.then(|| code_name(refusal.code)),
                ));
            }
            (Some(Reason::HistoryChanged), Some(name)) => {
                self.stop(&name)?;
                vec![name]
            }
            (Some(Reason::CursorTooOld), Some(name)) => {
                self.too_old(&name)?;
                self.heal(&name, true).await?;
                Vec::new()
            }
            (Some(Reason::Group), _) => {
                // A server that ends the whole stream for one group that it does not know.
                let stopped = self.stop_unknown(&listening.follower.following).await?;
                if stopped.is_empty() {
                    return Err(Failure::Refused(refusal));
                }
                stopped
            }
            _ => return Err(Failure::Refused(refusal)),
        };
        for name in stopped {
            if let ControlFlow::Break(stop) = sink(Event::HistoryChanged(Some(name))) {
                return Ok(ControlFlow::Break(stop));
            }
        }
        Ok(ControlFlow::Continue(None))
    }

    /// Reads each group that is followed; those whose history turns out to be another one.
    async fn stop_unknown(&self, following: &Following) -> Result<Vec<GroupName>, Failure> {
        let mut stopped = Vec::new();
        let followed = self.followed(following)?.into_iter();
        for name in followed.map(|record| record.name) {
            self.read_to_the_end(&name).await?;
            if self.record(&name)?.state == GroupState::HistoryChanged {
                stopped.push(name);
            }
        }
        Ok(stopped)
    }

    /// The groups that a stream follows.
    fn followed(&self, following: &Following) -> Result<Vec<GroupRecord>, Failure> {
        let mut records = self.step(|step, _| Ok(records::groups(step)?))?;
        records.retain(|record| {
            following.wants(&record.name)
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

    fn request(&self, following: &Following) -> Result<SubscribeRequest, Failure> {
        let cursors = self
            .followed(following)?
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
            all_groups: following.groups.is_empty(),
            device_inbox: following.groups.is_empty(),
        })
    }

    /// One stream, until it ends.
    async fn follow(&self, listening: &mut Listening, sink: Sink<'_>) -> Result<End, Failure> {
        let lost = |status: &tonic::Status| {
            let refusal = Box::new(Refusal::from_status(status));
            if refusal.outcome_unknown() {
                Failure::unanswered(*refusal)
            } else {
                Failure::Refused(refusal)
            }
        };
        let follower = &mut listening.follower;
        if let ControlFlow::Break(stop) = follower.give(self, sink)? {
            return Ok(End::Stopped(stop));
        }
        if self.compare_incarnation().await?
            && let ControlFlow::Break(stop) = sink(Event::ServerRestored)
        {
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
        let mut silent_since = Instant::now();
        let mut frames = Outcomes::of(Loop::Frames);
        let mut mending = mending::Mending::default();
        loop {
            let Ok(next) = tokio::time::timeout(LOOK, stream.message()).await else {
                if silent_since.elapsed() > SILENCE {
                    return Ok(End::Again);
                }
                let mended = self.mend(follower, &mut mending, sink);
                if let ControlFlow::Break(stop) = Box::pin(mended).await? {
                    return Ok(End::Stopped(stop));
                }
                continue;
            };
            silent_since = Instant::now();
            let Some(frame) = next.map_err(|s| lost(&s))?.and_then(|f| f.frame) else {
                return Ok(End::Again);
            };
            (listening.pause, listening.renewed) = (PAUSES.0, false);
            let taken = self.take_frame(frame, &mut frames, follower, sink);
            if let ControlFlow::Break(stop) = Box::pin(taken).await? {
                return Ok(End::Stopped(stop));
            }
        }
    }
}
