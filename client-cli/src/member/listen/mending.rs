//! What a quiet stream looks after: groups that something is wrong with, devices that were left out, and what other
//! processes on the profile wrote into the journal.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use tokio::time::Instant;

use super::{Event, LOOK, Sink, Stop, follower::Follower};
use crate::{
    core::records::GroupName,
    failure::Failure,
    member::{Member, heal, left_out::Eager},
    outcomes::{Loop, Outcomes},
};

/// So many looks at one group are a second apart; each one after them is twice as far from the one before.
const SOON: u32 = 20;
/// How often a quiet stream looks after devices that were left out.
const LEFT_OUT_LOOK: Duration = Duration::from_secs(10);

/// When what ails is looked at again: soon at first, since others may be about to take a Commit back, then more and
/// more seldom.
#[derive(Default)]
pub(super) struct Mending {
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
    /// Mends what ails and adds who was left out, without waiting for anybody: it is called again soon. Gives what the
    /// journal holds then.
    pub(super) async fn mend(
        &self,
        follower: &mut Follower,
        mending: &mut Mending,
        sink: Sink<'_>,
    ) -> Result<ControlFlow<Stop>, Failure> {
        let mut outcomes = Outcomes::of(Loop::Mending);
        let following = &follower.following;
        for record in self.followed(following)?.into_iter().filter(heal::ails) {
            if mending.is_due(&record.name) {
                let healed = Box::pin(self.heal(&record.name, false));
                outcomes.run(&record.name, healed).await?;
            }
        }
        let mut failed = outcomes.failed();
        if following.groups.is_empty() && mending.looks_at_left_out() {
            self.add_left_out(Eager::No, &mut failed).await?;
        }
        if let stopped @ ControlFlow::Break(_) = follower.give(self, sink)? {
            return Ok(stopped);
        }
        for failed in failed {
            if let stopped @ ControlFlow::Break(_) = sink(Event::Failed(failed)) {
                return Ok(stopped);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
