//! What is said of epochs after they began: confirmed, they stand for ever; failed, they are taken back. And entries that the service itself appends.

use uuid::Uuid;

use crate::ordering::group::{
    Append, Committer, ConfirmBy, DeviceKey, ExternalJoin, Group, Head, Membership, Rejection,
    Stage,
};

/// An entry in the newest epoch by a device that was a member before it, of the kind that `confirm_by` asks for, settles it and all before it.
pub(super) fn settle(head: &mut Head, sender: DeviceKey, membership: Membership) {
    let Some(committer) = head.committer else {
        return;
    };
    if confirms(&committer, head.epoch_seq, sender, membership) {
        head.settled_seq = head.epoch_seq;
        head.committer = None;
    }
}

fn confirms(
    committer: &Committer,
    epoch_seq: u64,
    device: DeviceKey,
    membership: Membership,
) -> bool {
    let member_before = membership.joined_seq < epoch_seq;
    member_before
        && match committer.confirm_by {
            ConfirmBy::Nobody => true,
            ConfirmBy::OtherUser => membership.user != committer.user,
            ConfirmBy::OtherDevice => device != committer.key,
        }
}

/// A standing epoch that somebody reports on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// Its name.
    pub epoch_seq: u64,
    /// Who began it; absent once it is settled, and for the creation.
    pub committer: Option<Committer>,
}

impl Group {
    /// A member says that it is in this epoch; the head after it, where that settles something.
    ///
    /// # Errors
    /// Not a member of that epoch, or revoked.
    pub fn confirm(&self, device: DeviceKey, epoch: Reported) -> Result<Option<Head>, Rejection> {
        let membership = self.reporter(epoch)?;
        let head = &self.head;
        let settles = epoch.epoch_seq > head.settled_seq
            && epoch
                .committer
                .is_some_and(|c| confirms(&c, epoch.epoch_seq, device, membership));
        Ok(settles.then(|| Head {
            settled_seq: epoch.epoch_seq,
            committer: head.committer.filter(|_| epoch.epoch_seq != head.epoch_seq),
            ..head.clone()
        }))
    }

    /// A member says that it cannot come to this epoch: does that count? Never of the committer's user, nor of a device that the Commit added.
    ///
    /// # Errors
    /// Not a member of that epoch, or revoked.
    pub fn failure_counts(&self, epoch: Reported) -> Result<bool, Rejection> {
        let membership = self.reporter(epoch)?;
        let unsettled = epoch.epoch_seq > self.head.settled_seq;
        Ok(unsettled
            && membership.joined_seq < epoch.epoch_seq
            && epoch.committer.is_some_and(|c| c.user != membership.user))
    }

    /// May the caller put a GroupInfo in the place of the one of this epoch?
    ///
    /// # Errors
    /// Not a member, revoked, closed, or another epoch is current.
    pub fn may_repair(&self, epoch: u64, epoch_seq: u64) -> Result<(), Rejection> {
        self.check_member()?;
        self.check_open()?;
        if (epoch, epoch_seq) == (self.head.epoch, self.head.epoch_seq) {
            Ok(())
        } else {
            Err(self.stale(None))
        }
    }

    /// The last entry of a group that goes on in another one, made by a member that has seen it up to `head_seq`.
    ///
    /// # Errors
    /// Not a member, revoked, closed already (the first successor wins), or a log that is not this one.
    pub fn replace(&self, head_seq: u64, now: i64) -> Result<Append, Rejection> {
        self.check_member()?;
        self.check_open()?;
        if head_seq > self.head.seq {
            return Err(Rejection::HistoryChanged);
        }
        Ok(self.head.by_service(
            now,
            Head {
                stage: Stage::Replaced,
                ..self.head.clone()
            },
        ))
    }

    fn check_member(&self) -> Result<(), Rejection> {
        match self.caller {
            _ if self.caller_revoked => Err(Rejection::DeviceRevoked),
            None => Err(Rejection::NotFound),
            Some(_) => Ok(()),
        }
    }

    fn reporter(&self, epoch: Reported) -> Result<Membership, Rejection> {
        if self.caller_revoked {
            return Err(Rejection::DeviceRevoked);
        }
        self.caller
            .filter(|membership| membership.joined_seq <= epoch.epoch_seq)
            .ok_or(Rejection::NotFound)
    }
}

/// What the log returns to when a Commit is voided: the epoch before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Its MLS number.
    pub epoch: u64,
    /// Its name.
    pub epoch_seq: u64,
    /// The floor as it was then.
    pub floor_seq: u64,
    /// Who began it, where it is unsettled itself.
    pub committer: Option<Committer>,
    /// From its policy.
    pub past_epochs: u64,
    /// From its policy.
    pub external_join: ExternalJoin,
}

/// What is known of an unsettled Commit that failures were reported of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The Commit.
    pub seq: u64,
    /// Users whose failures count, each once.
    pub users: Vec<Uuid>,
    /// Users other than the committer's with a device that is a member before and after.
    pub other_users: usize,
    /// The first failure, Unix microseconds.
    pub first_at: i64,
    /// The epoch before it.
    pub before: Before,
}

impl Head {
    /// The VOID entry, if the time has come: nothing but failures was said of an unsettled Commit, by two users, or by the only other one.
    /// `pending_removals` is the caller's to count, when the roster is as it was.
    pub fn void(&self, failed: &Failed, wait_micros: i64, now: i64) -> Option<Append> {
        let needed = failed.other_users.clamp(1, 2);
        let due = self.stage == Stage::Open
            && failed.seq > self.settled_seq
            && failed.users.len() >= needed
            && now >= failed.first_at.saturating_add(wait_micros);
        due.then(|| {
            let before = failed.before;
            self.by_service(
                now,
                Self {
                    epoch: before.epoch,
                    epoch_seq: before.epoch_seq,
                    floor_seq: before.floor_seq,
                    committer: before.committer,
                    past_epochs: before.past_epochs,
                    external_join: before.external_join,
                    ..self.clone()
                },
            )
        })
    }

    /// The entry that marks a member as revoked.
    pub fn mark_revoked(&self, now: i64) -> Append {
        self.by_service(
            now,
            Self {
                pending_removals: self.pending_removals + 1,
                ..self.clone()
            },
        )
    }

    fn by_service(&self, now: i64, after: Self) -> Append {
        let seq = self.seq + 1;
        Append {
            seq,
            epoch: after.epoch,
            epoch_seq: after.epoch_seq,
            accepted_at: now.max(self.last_at),
            head: Self { seq, ..after },
        }
    }
}
