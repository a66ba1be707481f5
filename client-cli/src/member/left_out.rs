//! Devices that were left out for want of a KeyPackage: added as soon as they have one, by whoever is online.

use super::{Member, heal::unless_refused};
use crate::{
    core::{
        CoreError, left_out,
        records::{self, GroupName, GroupState},
    },
    failure::Failure,
    outcomes::{Failed, Loop, Outcomes},
};

/// Whether a device tries again at once what it tried before itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Eager {
    /// A person, or a script, asked for everything to be done.
    Yes,
    /// It comes by again and again.
    No,
}

impl Member {
    /// Tries to add the devices that are left out and due, group by group.
    ///
    /// # Errors
    /// See [`crate::outcomes::ends_loop`].
    pub(super) async fn add_left_out(
        &self,
        eager: Eager,
        failed: &mut Vec<Failed>,
    ) -> Result<(), Failure> {
        let eager = eager == Eager::Yes;
        let due = self.step(|step, context| Ok(left_out::groups_due(step, context, eager)?))?;
        let mut outcomes = Outcomes::of(Loop::LeftOut);
        for name in due {
            outcomes
                .run(&name, Box::pin(self.add_left_out_of(&name, eager)))
                .await?;
        }
        failed.extend(outcomes.failed());
        Ok(())
    }

    async fn add_left_out_of(&self, name: &GroupName, eager: bool) -> Result<(), Failure> {
        let devices = self.step(|step, context| match records::group(step, name)? {
            Some(r) if r.state == GroupState::Active && r.pending.is_none() => {
                left_out::take_due(step, context, name, eager)
            }
            Some(r) if !r.state.ended() => Ok(Vec::new()),
            _ => {
                left_out::forget_all(step, name)?;
                Ok(Vec::new())
            }
        })?;
        if devices.is_empty() {
            return Ok(());
        }
        match Box::pin(self.add(name, &devices)).await {
            Err(Failure::Core(error)) if !matches!(error, CoreError::Store(_)) => Ok(()),
            done => unless_refused(done).map(|_| ()),
        }
    }
}
