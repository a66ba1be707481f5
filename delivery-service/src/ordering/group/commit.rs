//! Commits: who may, in which epoch, and whether what they say of themselves fits.

use chancery_proto::mutants::{self, Mutant};

use crate::ordering::group::{
    Commit, CommitKind, Committer, ConfirmBy, DeviceKey, ExternalJoin, Group, Head, Rejection,
    settle::settle,
};

impl Group {
    pub(super) fn commit(&self, commit: &Commit) -> Result<Head, Rejection> {
        self.check_committer(commit)?;
        self.check_id_free()?;
        self.check_open()?;
        self.check_epoch_of_commit(commit)?;
        self.check_not_barred(commit)?;
        self.check_history(commit)?;
        if commit.kind == CommitKind::Member {
            self.check_removals_done(commit)?;
        }
        check_roster(commit)?;
        check_welcomes(commit)?;
        if let Some(fault) = &commit.fault {
            return Err(fault.clone());
        }
        if !commit.leaves_fit && !mutants::is_on(Mutant::AddedLeafUncompared) {
            return Err(Rejection::TreeMismatch(
                "a leaf that is added is not that of the KeyPackage that its Welcome names",
            ));
        }
        Ok(self.head_after_commit(commit))
    }

    fn check_committer(&self, commit: &Commit) -> Result<(), Rejection> {
        let CommitKind::External { introduced } = commit.kind else {
            return self.caller.map(|_| ()).ok_or(Rejection::NotFound);
        };
        match (self.head.external_join, self.caller) {
            (ExternalJoin::None, Some(_)) => Err(Rejection::Policy("external join")),
            (ExternalJoin::Resync | ExternalJoin::SameUser, Some(_)) => Ok(()),
            (ExternalJoin::SameUser, None) if introduced => Ok(()),
            (_, None) => Err(Rejection::NotFound),
        }
    }

    fn check_epoch_of_commit(&self, commit: &Commit) -> Result<(), Rejection> {
        let head = &self.head;
        self.check_not_voided(commit.voided_by)?;
        if commit.epoch > head.epoch {
            return Err(self.in_future());
        }
        if commit.epoch < head.epoch || commit.epoch_seq != head.epoch_seq {
            return Err(self.stale(commit.winner_seq));
        }
        Ok(())
    }

    /// Until the Commit of another device has settled: a device that is barred begins no epoch, so the next one to settle is another's. Where nobody is left
    /// who could settle one, time ends the bar.
    fn check_not_barred(&self, commit: &Commit) -> Result<(), Rejection> {
        match self.caller.and_then(|membership| membership.barred_seq) {
            Some(seq) if self.head.settled_seq < seq && !commit.bar_is_over => {
                Err(Rejection::CommitterBarred)
            }
            _ => Ok(()),
        }
    }

    fn check_history(&self, commit: &Commit) -> Result<(), Rejection> {
        if commit.seen_seq > self.head.seq || !commit.seen_chain_fits {
            return Err(Rejection::HistoryChanged);
        }
        if commit.kind == CommitKind::Member && commit.seen_seq < self.head.epoch_seq {
            return Err(Rejection::CommitInfo(
                "seen_seq lies before the current epoch",
            ));
        }
        Ok(())
    }

    /// Whoever was revoked or asked to leave goes with the next Commit of a member. A committer that leaves cannot remove itself.
    fn check_removals_done(&self, commit: &Commit) -> Result<(), Rejection> {
        let leaving = commit.leaving_members.iter();
        let left = leaving
            .filter(|leaving| {
                **leaving != commit.device && !mutants::is_on(Mutant::LeavingStaysAtServer)
            })
            .chain(&commit.revoked_members)
            .filter(|pending| commit.removed.iter().all(|r| r.key != **pending))
            .count();
        match u32::try_from(left).unwrap_or(u32::MAX) {
            0 => Ok(()),
            count => Err(Rejection::PendingRemoval { count }),
        }
    }

    fn head_after_commit(&self, commit: &Commit) -> Head {
        let mut next = self.head_after_entry();
        if let (CommitKind::Member, Some(membership)) = (commit.kind, self.caller) {
            settle(&mut next, commit.device, membership);
        }
        let seq = next.seq;
        next.epoch += 1;
        next.epoch_seq = seq;
        next.past_epochs = commit.past_epochs;
        next.external_join = commit.external_join;
        let removed_others = commit.removed.iter().any(|r| r.key != commit.device);
        if removed_others {
            next.floor_seq = seq;
        }
        let done = commit
            .revoked_members
            .iter()
            .filter(|revoked| commit.removed.iter().any(|r| r.key == **revoked))
            .count();
        next.pending_removals = next
            .pending_removals
            .saturating_sub(u32::try_from(done).unwrap_or(u32::MAX));
        let confirm_by = match (commit.other_users, commit.other_devices) {
            (true, _) => ConfirmBy::OtherUser,
            (false, true) => ConfirmBy::OtherDevice,
            // Whoever takes everybody else out must not settle by it what they have not confirmed.
            (false, false) => next.committer.map_or(ConfirmBy::Nobody, |c| c.confirm_by),
        };
        next.committer = None;
        if confirm_by == ConfirmBy::Nobody {
            next.settled_seq = seq;
        } else {
            next.committer = Some(Committer {
                key: commit.device,
                user: commit.user,
                confirm_by,
            });
        }
        next
    }
}

fn check_roster(commit: &Commit) -> Result<(), Rejection> {
    for removed in &commit.removed {
        if removed.member_user != Some(removed.user) {
            return Err(Rejection::CommitInfo("removes a device that is no member"));
        }
    }
    for added in &commit.added {
        let leaves = commit.removed.iter().any(|r| r.key == added.key);
        if added.member && !leaves {
            return Err(Rejection::CommitInfo("adds a device that is a member"));
        }
        if added.known_user != Some(added.user) {
            return Err(Rejection::CommitInfo(
                "adds a device that is unknown, or of another user",
            ));
        }
        if added.revoked {
            return Err(Rejection::CommitInfo("adds a revoked device"));
        }
    }
    if !commit.proposals_known {
        return Err(Rejection::CommitInfo(
            "names a proposal that is not in this epoch's log",
        ));
    }
    match commit.kind {
        CommitKind::Member if commit.removed.iter().any(|r| r.key == commit.device) => {
            Err(Rejection::CommitInfo("a committer cannot remove itself"))
        }
        CommitKind::Member => Ok(()),
        CommitKind::External { .. } => check_external_roster(commit),
    }
}

/// An external Commit adds only its caller, and removes exactly the caller's old self if it is in.
fn check_external_roster(commit: &Commit) -> Result<(), Rejection> {
    let [added] = commit.added.as_slice() else {
        return Err(Rejection::CommitInfo(
            "an external Commit adds exactly its caller",
        ));
    };
    let expected: &[DeviceKey] = if added.member { &[commit.device] } else { &[] };
    let removed: Vec<_> = commit.removed.iter().map(|r| r.key).collect();
    if added.key != commit.device || removed != expected {
        return Err(Rejection::CommitInfo(
            "an external Commit changes only its caller",
        ));
    }
    Ok(())
}

fn check_welcomes(commit: &Commit) -> Result<(), Rejection> {
    let mut expected: Vec<DeviceKey> = match commit.kind {
        CommitKind::Member => commit.added.iter().map(|a| a.key).collect(),
        CommitKind::External { .. } => Vec::new(),
    };
    let welcomed: Option<Vec<DeviceKey>> = commit.welcomed.iter().copied().collect();
    let mut welcomed = welcomed.ok_or(Rejection::WelcomeMismatch)?;
    expected.sort_unstable();
    welcomed.sort_unstable();
    if expected == welcomed {
        Ok(())
    } else {
        Err(Rejection::WelcomeMismatch)
    }
}
