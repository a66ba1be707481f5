//! What the stream brings: each frame is written down, then the journal is given, then what is not in the journal. A
//! frame that fails ends nothing but itself.

use std::ops::ControlFlow;

use chancery_proto::delivery::v1::{Ended, EndedWhy, Entries, Welcome, frame};

use super::{Event, Sink, Stop, follower::Follower};
use crate::{
    core::{
        apply, group,
        records::{self, GroupName, GroupState},
    },
    failure::Failure,
    member::{
        Member, stock,
        welcomes::{Entered, PutAside},
    },
    outcomes::{Failed, Outcomes},
};

impl Member {
    /// Works on one frame and says what came of it.
    pub(super) async fn take_frame(
        &self,
        frame: frame::Frame,
        frames: &mut Outcomes,
        follower: &mut Follower,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let about = about(&frame);
        let caught_up = matches!(frame, frame::Frame::CaughtUp(_));
        let item = about
            .as_ref()
            .map_or_else(String::new, GroupName::to_string);
        let work = Box::pin(self.write_down(frame, follower));
        let last = frames.run(item, work).await?.flatten();
        let given = match &about {
            Some(name) => follower.give_in(self, name, sink)?,
            None if caught_up => follower.give(self, sink)?,
            None => ControlFlow::Continue(()),
        };
        if given.is_break() {
            return Ok(given);
        }
        if let Some(event) = last
            && let stopped @ ControlFlow::Break(_) = sink(event)
        {
            return Ok(stopped);
        }
        for failed in frames.take_failed() {
            let event = self.why_failed(about.as_ref(), failed)?;
            if let stopped @ ControlFlow::Break(_) = sink(event) {
                return Ok(stopped);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A failed frame of a group whose history turned out to be another one is said as that: the group was stopped.
    fn why_failed(&self, about: Option<&GroupName>, failed: Failed) -> Result<Event, Failure> {
        if let Some(name) = about {
            let record = self.step(|step, _| Ok(records::group(step, name)?))?;
            if record.is_some_and(|record| record.state == GroupState::HistoryChanged) {
                return Ok(Event::HistoryChanged(Some(name.clone())));
            }
        }
        Ok(Event::Failed(failed))
    }

    /// Writes down what a frame says; what is to be said beside the journal.
    async fn write_down(
        &self,
        frame: frame::Frame,
        follower: &Follower,
    ) -> Result<Option<Event>, Failure> {
        match frame {
            frame::Frame::Entries(entries) => return self.entries(entries).await,
            frame::Frame::Welcome(welcome) => return self.welcomed(&welcome, follower).await,
            frame::Frame::CaughtUp(_) => return Ok(Some(Event::CaughtUp)),
            frame::Frame::Ended(ended) => return self.ended(&ended, follower),
            frame::Frame::KeyPackageStock(_) => {
                self.fill_key_packages(group::SUITES[0], stock::KEY_PACKAGES)
                    .await?;
            }
            frame::Frame::Pruned(gap) => {
                let name = gap.group.as_ref().map(GroupName::from_ref);
                self.step(|step, _| match name {
                    Some(name) if records::group(step, &name)?.is_some() => {
                        apply::pruned(step, &name, &gap)
                    }
                    _ => Ok(()),
                })?;
            }
            frame::Frame::State(state) => {
                if let Some(group) = &state.group {
                    let name = GroupName::from_ref(group);
                    self.step(|step, _| Ok(records::settled(step, &name, state.settled_seq)?))?;
                }
            }
            frame::Frame::Requested(requested) => self.asked(&requested).await?,
            // Heartbeats, what later versions add of later versions: nothing to write down.
            _ => {}
        }
        Ok(None)
    }

    /// Joins; a group that the listener has heard of before is said here, a new one when its journal is given.
    async fn welcomed(
        &self,
        welcome: &Welcome,
        follower: &Follower,
    ) -> Result<Option<Event>, Failure> {
        let Some(name) = welcome.group.as_ref().map(GroupName::from_ref) else {
            return Ok(None);
        };
        match self.join(welcome).await? {
            Entered::Known => Ok(None),
            Entered::PutAside(why) => Ok(Some(Event::PutAside(PutAside {
                group: name,
                seq: welcome.seq,
                why,
            }))),
            Entered::Joined => {
                self.read_up(&name).await?;
                Ok(follower.knows(&name).then_some(Event::Joined(name)))
            }
        }
    }

    /// A group ended for this device. One that the server does not know any more, though entries of it were
    /// acknowledged, is another history.
    fn ended(&self, ended: &Ended, follower: &Follower) -> Result<Option<Event>, Failure> {
        let Some(name) = ended.group.as_ref().map(GroupName::from_ref) else {
            return Ok(None);
        };
        let is_followed = || -> Result<bool, Failure> {
            let followed = self.followed(&follower.following)?;
            Ok(followed.iter().any(|record| record.name == name))
        };
        if ended.why() == EndedWhy::Unknown && is_followed()? {
            self.stop(&name)?;
            return Ok(Some(Event::HistoryChanged(Some(name))));
        }
        let why = ended.why().as_str_name();
        let why = why.trim_start_matches("ENDED_WHY_").to_lowercase();
        Ok(Some(Event::Ended(name, ended.at_seq, why)))
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
