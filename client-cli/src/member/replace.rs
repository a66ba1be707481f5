//! Ending a group and going on in a new one. What was begun is kept until everybody who can be is in the new one: the old one's members could not come
//! into it by themselves, and its roster is gone with it.

use chancery_proto::delivery::v1::Replaces;
use serde::{Deserialize, Serialize};

use super::{
    Member,
    commit::{Committed, Tally, finished},
    directory::Name,
    heal::unless_refused,
};
use crate::{
    core::{
        CoreError,
        group::{self, Founding},
        records::{self, GroupName, GroupState},
    },
    failure::Failure,
    fault,
    outcomes::{Failed, Loop, Outcomes},
    store::Step,
};

/// By the old group's name.
const SPACE: &str = "replacing";

/// A replacement under way.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Replacing {
    old: GroupName,
    successor: GroupName,
    others: Vec<Name>,
}

impl Member {
    /// Ends a group and goes on in a new one, with every member that has a KeyPackage. For a group that is beyond repair: the first successor wins.
    /// Repeated after a crash it goes on with the successor that it had begun, and so does `sync`.
    ///
    /// # Errors
    /// The refusal, no answer, a group that was replaced before, or the store.
    pub async fn replace(&self, name: &GroupName) -> Result<Committed, Failure> {
        let begun = self.step(|step, _| Ok(step.get(SPACE, name.to_string().as_bytes())?))?;
        let replacing = match begun {
            Some(replacing) => replacing,
            None => {
                // A log that cannot be followed is replaced all the same.
                self.read_up(name).await?;
                self.step(|step, context| {
                    let others = others(step, context, name)?;
                    self.begin(step, context, name, others)
                })?
            }
        };
        self.go_on(&replacing).await
    }

    /// Goes on with what a crash left half done.
    ///
    /// # Errors
    /// See [`crate::outcomes::ends_loop`].
    pub(super) async fn replace_on(&self, failed: &mut Vec<Failed>) -> Result<(), Failure> {
        let begun: Vec<(Vec<u8>, Replacing)> =
            self.step(|step, _| Ok(step.list(SPACE, b"", b"", usize::MAX)?))?;
        let mut outcomes = Outcomes::of(Loop::Replacements);
        for (_, replacing) in begun {
            let done = async { unless_refused(self.go_on(&replacing).await) };
            outcomes.run(&replacing.old, Box::pin(done)).await?;
        }
        failed.extend(outcomes.failed());
        Ok(())
    }

    /// The new group and what is to be done with it, in one step.
    fn begin(
        &self,
        step: &Step<'_>,
        context: crate::core::Context<'_>,
        name: &GroupName,
        (founding, others): (Founding, Vec<Name>),
    ) -> Result<Replacing, CoreError> {
        let successor = GroupName {
            domain: name.domain.clone(),
            id: [self.new_id(), self.new_id()].concat(),
        };
        let replaces = Replaces {
            group: Some(name.to_ref()),
            head_seq: records::known(step, name)?.head_seq,
        };
        let id = self.new_id();
        group::create(step, context, &successor, founding, id, Some(replaces))?;
        let replacing = Replacing {
            old: name.clone(),
            successor,
            others,
        };
        step.put(SPACE, name.to_string().as_bytes(), &replacing)?;
        Ok(replacing)
    }

    async fn go_on(&self, replacing: &Replacing) -> Result<Committed, Failure> {
        let (old, successor) = (&replacing.old, &replacing.successor);
        fault::point("before-send");
        let mut tally = Tally::default();
        let created = match self.settle(successor, &mut tally).await {
            // Another successor was first, say: this one is nothing.
            Err(failure @ Failure::Refused(_)) => {
                self.give_up(old)?;
                return Err(failure);
            }
            other => other?,
        };
        fault::point("between-create-and-add");
        self.read_up(old).await?;
        let done = match self.add(successor, &replacing.others).await {
            // Alone, or everybody is in.
            Err(Failure::Core(CoreError::Nothing)) => {
                finished(successor.clone(), created, tally, Vec::new())
            }
            Err(Failure::Core(CoreError::LeftOut(left_out))) => {
                finished(successor.clone(), created, tally, left_out)
            }
            other => other,
        };
        // Whoever had no KeyPackage is left out of the new group, and that is kept there.
        if matches!(
            done,
            Ok(_) | Err(Failure::Refused(_) | Failure::Core(CoreError::Nothing))
        ) {
            self.give_up(old)?;
        }
        done
    }

    /// Nothing more is to be done.
    fn give_up(&self, old: &GroupName) -> Result<(), Failure> {
        self.step(|step, _| Ok(step.delete(SPACE, old.to_string().as_bytes())?))
    }
}

/// Who is to come along, and what they are used to.
fn others(
    step: &Step<'_>,
    context: crate::core::Context<'_>,
    name: &GroupName,
) -> Result<(Founding, Vec<Name>), CoreError> {
    let record = records::known(step, name)?;
    if let GroupState::Replaced(_) = record.state {
        return Err(CoreError::State(record.state.name().into()));
    }
    let own = &context.identity.person;
    group::look(step, name, |mls_group| {
        let others = group::roster(mls_group)?
            .into_iter()
            .map(|(_, person)| person)
            .filter(|p| p != own && !record.revoked.contains(p) && !record.leaving.contains(p))
            .map(|p| (p.domain, p.device));
        let policy = group::policy_of(mls_group.extensions())?;
        let founding = Founding {
            suite: mls_group.ciphersuite().into(),
            past_epochs: policy.past_epochs,
            external_join: policy.external_join,
        };
        Ok((founding, others.collect()))
    })
}
