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
        records::{GroupName, Intent},
    },
    failure::Failure,
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
            let reasons = self.left_out.iter();
            let reasons: Vec<String> = reasons.map(|(d, why)| format!("{d}: {why}")).collect();
            return Err(Failure::Core(CoreError::State(format!(
                "without a KeyPackage of these devices: {}",
                reasons.join(", ")
            ))));
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
        let mut done = Added::default();
        for (part, devices) in wanted.chunks(ADDED_AT_ONCE).enumerate() {
            let at = (part * ADDED_AT_ONCE) as u64;
            self.progress.at(Task::Adding, at, wanted.len() as u64);
            match self.add_part(name, devices).await {
                // The other parts go on, and these are named.
                Err(Failure::Core(CoreError::Unusable(why))) if devices.len() < wanted.len() => {
                    done.add((None, unusable(devices, &why)));
                }
                other => done.add(other?),
            }
        }
        let all = wanted.len() as u64;
        self.progress.at(Task::Adding, all, all);
        done.committed(tally)
    }

    /// Adds devices in one Commit.
    async fn add_part(&self, name: &GroupName, devices: &[Name]) -> Result<Part, Failure> {
        let claimed = self.claim(name, devices.to_vec()).await?;
        let intent = Intent {
            key_packages: claimed.key_packages,
            left_out: claimed.left_out,
            ..Intent::default()
        };
        if intent.key_packages.is_empty() {
            return Ok((None, claimed.reasons));
        }
        let done = self.change(name, intent, Tally::default()).await?;
        Ok((Some(done), claimed.reasons))
    }
}

fn unusable(devices: &[Name], why: &str) -> Vec<(String, String)> {
    let uri = |(domain, id): &Name| device_uri(domain, Uuid::from_bytes(*id));
    let devices = devices.iter();
    devices.map(|name| (uri(name), why.to_owned())).collect()
}
