//! Adding devices: a few in one Commit, thousands in several.

use std::collections::BTreeSet;

use chancery_proto::certificate::device_uri;
use uuid::Uuid;

use super::{
    Member,
    commit::{Committed, Tally, finished},
    directory::Name,
};
use crate::{
    core::{
        CoreError, group,
        left_out::{self, LeftOut},
        records::{GroupName, Intent},
    },
    failure::Failure,
    outcomes::{Loop, Outcomes},
    progress::Task,
};

/// Devices that are added by one Commit: openmls takes longer for each the more there are, and each Commit costs every member something.
const ADDED_AT_ONCE: usize = 250;

/// What became of a part of those that are to be added: its Commit, if there was anybody to add, and who got no leaf for want of a KeyPackage.
type Part = (Option<Committed>, Vec<(String, String)>);

/// Several Commits that add devices, as one answer: where the last one stands, and what all of them did.
#[derive(Default)]
struct Added {
    last: Option<Committed>,
    left_out: Vec<(String, String)>,
}

impl Added {
    fn add(&mut self, (done, reasons): Part) {
        self.left_out.extend(reasons);
        let Some(mut done) = done else { return };
        if let Some(before) = self.last.take() {
            done.added.splice(..0, before.added);
            done.removed.splice(..0, before.removed);
            done.left_out.splice(..0, before.left_out);
            done.tally.add(before.tally);
        }
        self.last = Some(done);
    }

    fn committed(self, tally: Tally) -> Result<Committed, Failure> {
        let Some(mut done) = self.last else {
            return Err(CoreError::LeftOut(self.left_out).into());
        };
        done.left_out.extend(self.left_out);
        done.tally.add(tally);
        Ok(done)
    }
}

impl Member {
    /// Adds devices; those that cannot be added are reported, not fatal. Many are added in several Commits, each of which stands by itself: who repeats the
    /// call after a crash, or a failure, goes on with those that are not in.
    ///
    /// # Errors
    /// The refusal, no answer, nothing to add, or the store.
    pub async fn add(&self, name: &GroupName, devices: &[Name]) -> Result<Committed, Failure> {
        let mut tally = Tally::default();
        let before = self.settle(name, &mut tally).await?;
        self.read_up(name).await?;
        let wanted: Vec<Name> = self.step(|step, _| {
            let roster = group::look(step, name, group::roster)?.into_iter();
            let members: BTreeSet<Name> = roster.map(|(_, p)| (p.domain, p.device)).collect();
            let wanted: BTreeSet<&Name> = devices.iter().collect();
            let outside = wanted.into_iter().filter(|d| !members.contains(*d));
            Ok(outside.cloned().collect())
        })?;
        if wanted.is_empty() {
            return finished(name.clone(), before, tally, Vec::new());
        }
        let (mut done, mut without) = (Added::default(), Vec::new());
        let mut outcomes = Outcomes::of(Loop::Added);
        for (part, devices) in wanted.chunks(ADDED_AT_ONCE).enumerate() {
            let at = part * ADDED_AT_ONCE;
            let of = wanted.len();
            self.progress.at(Task::Adding, at as u64, of as u64);
            let item = format!(
                "{name}: devices {} to {} of {of}",
                at + 1,
                at + devices.len()
            );
            match outcomes
                .run(item, Box::pin(self.add_part(name, devices)))
                .await?
            {
                Some(part) => done.add(part),
                None => without.push(devices),
            }
        }
        let failed = outcomes.failed();
        for (devices, failed) in without.iter().zip(&failed) {
            let why = failed.failure.to_string();
            self.left_out(name, devices, &why)?;
            done.add((None, unusable(devices, &why)));
        }
        if let Some(first) = failed.into_iter().next()
            && done.last.is_none()
        {
            return Err(first.failure);
        }
        let all = wanted.len() as u64;
        self.progress.at(Task::Adding, all, all);
        done.committed(tally)
    }

    /// Adds devices to a group that was just made; a group in which nobody could be put is made all the same.
    ///
    /// # Errors
    /// See [`Member::add`].
    pub async fn add_first(
        &self,
        created: Committed,
        devices: &[Name],
    ) -> Result<Committed, Failure> {
        match self.add(&created.group, devices).await {
            // Alone, or everybody is in already.
            Err(Failure::Core(CoreError::Nothing)) => Ok(created),
            Err(Failure::Core(CoreError::LeftOut(left_out))) => Ok(Committed {
                left_out,
                ..created
            }),
            other => other,
        }
    }

    /// Adds devices in one Commit.
    async fn add_part(&self, name: &GroupName, devices: &[Name]) -> Result<Part, Failure> {
        let claimed = self.claim(name, devices.to_vec()).await?;
        let intent = Intent {
            left_out: claimed.left_out(),
            key_packages: claimed.key_packages,
            ..Intent::default()
        };
        if intent.key_packages.is_empty() {
            return Ok((None, claimed.reasons));
        }
        let done = self.change(name, intent, Tally::default()).await?;
        Ok((Some(done), claimed.reasons))
    }

    /// Keeps devices that could not be added with what the server gave out for them: another time it may be another
    /// KeyPackage.
    fn left_out(&self, name: &GroupName, devices: &[Name], why: &str) -> Result<(), Failure> {
        let now = self.now();
        let devices = devices.iter().map(|d| LeftOut::own(d, None, why, now));
        self.step(|step, _| Ok(left_out::note(step, name, devices.collect())?))
    }
}

fn unusable(devices: &[Name], why: &str) -> Vec<(String, String)> {
    let uri = |(domain, id): &Name| device_uri(domain, Uuid::from_bytes(*id));
    let devices = devices.iter();
    devices.map(|name| (uri(name), why.to_owned())).collect()
}
