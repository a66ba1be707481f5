//! The ordering state machine: which entry may come next in a group's log, and what it changes.
//!
//! Pure and synchronous. The caller locks the group's head row, reads a [`Group`] in a *second* statement, asks [`Group::decide`],
//! and writes the [`Decision`] in the same transaction.

use uuid::Uuid;

/// A device by the number of its vouching domain and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKey {
    /// Row of the `domains` table.
    pub domain: i16,
    /// The device's UUID.
    pub device: Uuid,
}

/// Whose confirmation settles the newest epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfirmBy {
    /// Nobody's: it is settled.
    Nobody,
    /// A device of another user than the committer's.
    OtherUser,
    /// Another device, where the committer's user is alone.
    OtherDevice,
}

/// Who made the Commit that began an unsettled epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committer {
    /// The device.
    pub key: DeviceKey,
    /// Its user.
    pub user: Uuid,
    /// Whose confirmation settles the epoch.
    pub confirm_by: ConfirmBy,
}

/// Who may join by an external Commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalJoin {
    /// Nobody.
    None,
    /// A device of the roster that lost its group state.
    Resync,
    /// Also a new device of a user in the roster, introduced by another of that user's devices.
    SameUser,
}

/// The group's head row, as locked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// False after deletion or replacement.
    pub open: bool,
    /// Last seq given.
    pub seq: u64,
    /// Current MLS epoch number.
    pub epoch: u64,
    /// Seq of the Commit that began it; 0 for the creation.
    pub epoch_seq: u64,
    /// `epoch_seq` begun by the last Commit that removed a device.
    pub floor_seq: u64,
    /// Newest settled `epoch_seq`.
    pub settled_seq: u64,
    /// Devices revoked and still in the roster.
    pub pending_removals: u32,
    /// Of an unsettled epoch only.
    pub committer: Option<Committer>,
    /// How many past epochs application messages may come from.
    pub past_epochs: u64,
    /// External join policy.
    pub external_join: ExternalJoin,
    /// Chain value at `seq`.
    pub chain: [u8; 32],
    /// Time of the last entry, Unix microseconds.
    pub last_at: i64,
}

/// An open interval of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Membership {
    /// Its user.
    pub user: Uuid,
    /// Seq of the joining Commit.
    pub joined_seq: u64,
}

/// An entry that already holds the request's `message_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prior {
    /// Its seq.
    pub seq: u64,
    /// The epoch it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// Its `EntryKind`.
    pub kind: i16,
    /// SHA-256 of the request that made it.
    pub content_hash: [u8; 32],
    /// Chain value after it.
    pub chain: [u8; 32],
    /// Unix microseconds.
    pub accepted_at: i64,
    /// Does one of the caller's intervals hold this seq?
    pub readable: bool,
}

/// What the second statement read under the head's lock.
#[derive(Debug, Clone)]
pub struct Group {
    /// The head row.
    pub head: Head,
    /// The caller's open membership.
    pub caller: Option<Membership>,
    /// The calling device was revoked.
    pub caller_revoked: bool,
    /// The entry with this `message_id`, if any.
    pub prior: Option<Prior>,
}

/// Facts about an application message or proposal.
#[derive(Debug, Clone)]
pub struct Send {
    /// The sender.
    pub device: DeviceKey,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// Application message, or proposal.
    pub proposal: bool,
    /// From the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// Epoch number of the standing epoch that `epoch_seq` names, if there is one.
    pub named_epoch: Option<u64>,
}

/// One added device, with what the server knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The device.
    pub key: DeviceKey,
    /// The user that the Commit names.
    pub user: Uuid,
    /// The user that the server knows for the device; absent for an unknown device.
    pub known_user: Option<Uuid>,
    /// It was revoked.
    pub revoked: bool,
    /// It is in the roster now.
    pub member: bool,
}

/// One removed device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The device.
    pub key: DeviceKey,
    /// The user that the Commit names.
    pub user: Uuid,
    /// Its user by the roster; absent for a device that is not in it.
    pub member_user: Option<Uuid>,
}

/// How the Commit comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitKind {
    /// By a member.
    Member,
    /// From outside (RFC 9420 section 12.4.3.2); true with a valid introduction.
    External {
        /// A valid introduction by a device of the same user in the roster came with it.
        introduced: bool,
    },
}

/// Facts about a Commit. Sizes, framing, GroupInfo and signatures were checked before.
#[derive(Debug, Clone)]
pub struct Commit {
    /// The committer.
    pub device: DeviceKey,
    /// Its user, from the token.
    pub user: Uuid,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// By a member, or from outside.
    pub kind: CommitKind,
    /// The epoch it was made in, from the framing.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// The Commit that took the epoch after `epoch`, where it is already taken.
    pub winner_seq: Option<u64>,
    /// CommitInfo's adds.
    pub added: Vec<Added>,
    /// CommitInfo's removes.
    pub removed: Vec<Removed>,
    /// For each proposal committed by reference: is it a proposal of this epoch in the log?
    pub proposals_known: bool,
    /// CommitInfo's `seen_seq`.
    pub seen_seq: u64,
    /// CommitInfo's `seen_chain` is the log's at `seen_seq`.
    pub seen_chain_fits: bool,
    /// Devices of the roster marked as revoked.
    pub revoked_members: Vec<DeviceKey>,
    /// The devices that the Welcomes' KeyPackageRefs belong to; `None` for an unknown ref.
    pub welcomed: Vec<Option<DeviceKey>>,
    /// The GroupInfo names this group, suite and the next epoch, and carries a policy that the server can read.
    pub group_info_fits: bool,
    /// The tree with this Commit's changes hashes to the GroupInfo's tree hash.
    pub tree_fits: bool,
    /// Members before and after that are of another user.
    pub other_users: bool,
    /// Other devices that are members before and after.
    pub other_devices: bool,
}

/// Facts about a member's wish to be removed. Its signature was checked before.
#[derive(Debug, Clone)]
pub struct Leave {
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// The membership that it is about.
    pub joined_seq: u64,
}

/// What somebody asks the log to take.
#[derive(Debug, Clone)]
pub enum Command {
    /// An application message or a proposal.
    Send(Send),
    /// A Commit with all that belongs to it.
    Commit(Commit),
    /// A leave request: it asks, and bars nothing.
    Leave(Leave),
}

/// What to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: it was accepted before.
    Replay(Prior),
    /// An entry, and the head after it.
    Append(Append),
}

/// One entry and the head after it (`chain` and `last_at` of the head are filled in by the appender).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    /// Its seq: head + 1.
    pub seq: u64,
    /// The epoch it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// `accepted_at`, Unix microseconds.
    pub accepted_at: i64,
    /// The head's new fields.
    pub head: Head,
}

/// Why the log does not take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// Unknown group, or the caller is no member: the same answer.
    NotFound,
    /// The calling device was revoked.
    DeviceRevoked,
    /// Deleted or replaced.
    Closed,
    /// The `message_id` holds other bytes.
    MessageIdReused,
    /// The epoch is taken.
    StaleEpoch {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
        /// The Commit that took the epoch.
        winner_seq: u64,
    },
    /// The epoch has not begun.
    EpochInFuture {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
    },
    /// Older than the window, or before the last removal.
    EpochTooOld {
        /// Current epoch number.
        current_epoch: u64,
        /// Its name.
        epoch_seq: u64,
    },
    /// Revoked devices must be removed first.
    PendingRemoval {
        /// How many.
        count: u32,
    },
    /// The CommitInfo does not fit roster or log.
    CommitInfo(&'static str),
    /// The log that the committer saw is not this one.
    HistoryChanged,
    /// The Welcomes do not name exactly the added devices.
    WelcomeMismatch,
    /// The GroupInfo is of another group or epoch.
    GroupInfoMismatch,
    /// The tree does not hash to the GroupInfo's tree hash.
    TreeMismatch,
    /// The group's policy forbids it.
    Policy(&'static str),
    /// The request is about a membership that is not the caller's current one.
    OtherMembership,
}

impl Group {
    /// Decides on one command. `now` is the database's time in Unix microseconds, read with the lock.
    ///
    /// # Errors
    /// A [`Rejection`] means that nothing happens.
    pub fn decide(&self, command: &Command, now: i64) -> Result<Decision, Rejection> {
        let hash = match command {
            Command::Send(send) => &send.content_hash,
            Command::Commit(commit) => &commit.content_hash,
            Command::Leave(leave) => &leave.content_hash,
        };
        if let Some(replay) = self.replay(hash)? {
            return Ok(Decision::Replay(replay));
        }
        if self.caller_revoked {
            return Err(Rejection::DeviceRevoked);
        }
        let head = match command {
            Command::Send(send) => self.send(send)?,
            Command::Commit(commit) => self.commit(commit)?,
            Command::Leave(leave) => self.leave(leave)?,
        };
        let (epoch, epoch_seq) = match command {
            Command::Send(send) => (send.epoch, send.epoch_seq),
            Command::Commit(commit) => (commit.epoch, commit.epoch_seq),
            Command::Leave(_) => (self.head.epoch, self.head.epoch_seq),
        };
        Ok(Decision::Append(Append {
            seq: head.seq,
            epoch,
            epoch_seq,
            accepted_at: now.max(self.head.last_at),
            head,
        }))
    }

    /// The id comes before everything else, for a caller who may read the entry: a repeat after a removal still gets its answer.
    fn replay(&self, content_hash: &[u8; 32]) -> Result<Option<Prior>, Rejection> {
        match &self.prior {
            Some(prior) if prior.readable && prior.content_hash == *content_hash => {
                Ok(Some(prior.clone()))
            }
            Some(prior) if prior.readable => Err(Rejection::MessageIdReused),
            _ => Ok(None),
        }
    }

    /// An id that the caller cannot read is taken all the same; only somebody who may write learns that.
    fn check_id_free(&self) -> Result<(), Rejection> {
        match self.prior {
            Some(_) => Err(Rejection::MessageIdReused),
            None => Ok(()),
        }
    }

    fn send(&self, send: &Send) -> Result<Head, Rejection> {
        let membership = self.caller.ok_or(Rejection::NotFound)?;
        self.check_id_free()?;
        let head = &self.head;
        if !head.open {
            return Err(Rejection::Closed);
        }
        self.check_epoch_of_send(send)?;
        if !send.proposal && head.pending_removals > 0 {
            return Err(Rejection::PendingRemoval {
                count: head.pending_removals,
            });
        }
        let mut next = self.head_after_entry();
        if send.epoch_seq == head.epoch_seq {
            settle(&mut next, send.device, membership);
        }
        Ok(next)
    }

    fn leave(&self, leave: &Leave) -> Result<Head, Rejection> {
        let membership = self.caller.ok_or(Rejection::NotFound)?;
        self.check_id_free()?;
        if !self.head.open {
            return Err(Rejection::Closed);
        }
        if leave.joined_seq != membership.joined_seq {
            return Err(Rejection::OtherMembership);
        }
        Ok(self.head_after_entry())
    }

    fn check_epoch_of_send(&self, send: &Send) -> Result<(), Rejection> {
        let head = &self.head;
        if send.epoch == head.epoch && send.epoch_seq == head.epoch_seq {
            return Ok(());
        }
        if send.epoch > head.epoch {
            return Err(self.in_future());
        }
        if send.proposal {
            return Err(self.stale(None));
        }
        let too_old = Rejection::EpochTooOld {
            current_epoch: head.epoch,
            epoch_seq: head.epoch_seq,
        };
        let in_window = head.epoch - send.epoch <= head.past_epochs;
        let standing = send.named_epoch == Some(send.epoch);
        // A device that the last removing Commit cut off could still read an older epoch.
        if in_window && standing && send.epoch_seq >= head.floor_seq {
            Ok(())
        } else {
            Err(too_old)
        }
    }

    fn commit(&self, commit: &Commit) -> Result<Head, Rejection> {
        self.check_committer(commit)?;
        self.check_id_free()?;
        if !self.head.open {
            return Err(Rejection::Closed);
        }
        self.check_epoch_of_commit(commit)?;
        self.check_history(commit)?;
        if commit.kind == CommitKind::Member {
            self.check_removals_done(commit)?;
        }
        check_roster(commit)?;
        check_welcomes(commit)?;
        if !commit.group_info_fits {
            return Err(Rejection::GroupInfoMismatch);
        }
        if !commit.tree_fits {
            return Err(Rejection::TreeMismatch);
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
        if commit.epoch > head.epoch {
            return Err(self.in_future());
        }
        if commit.epoch < head.epoch || commit.epoch_seq != head.epoch_seq {
            return Err(self.stale(commit.winner_seq));
        }
        Ok(())
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

    fn check_removals_done(&self, commit: &Commit) -> Result<(), Rejection> {
        let left = commit
            .revoked_members
            .iter()
            .filter(|revoked| commit.removed.iter().all(|r| r.key != **revoked))
            .count();
        match u32::try_from(left).unwrap_or(u32::MAX) {
            0 => Ok(()),
            count => Err(Rejection::PendingRemoval { count }),
        }
    }

    fn head_after_entry(&self) -> Head {
        Head {
            seq: self.head.seq + 1,
            ..self.head.clone()
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
            (false, false) => ConfirmBy::Nobody,
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

    fn stale(&self, winner_seq: Option<u64>) -> Rejection {
        Rejection::StaleEpoch {
            current_epoch: self.head.epoch,
            epoch_seq: self.head.epoch_seq,
            winner_seq: winner_seq.unwrap_or(self.head.epoch_seq),
        }
    }

    fn in_future(&self) -> Rejection {
        Rejection::EpochInFuture {
            current_epoch: self.head.epoch,
            epoch_seq: self.head.epoch_seq,
        }
    }
}

/// An entry in the newest epoch by a device that was a member before it, of the kind that `confirm_by` asks for, settles it and all before it.
fn settle(head: &mut Head, sender: DeviceKey, membership: Membership) {
    let Some(committer) = head.committer else {
        return;
    };
    let member_before = membership.joined_seq < head.epoch_seq;
    let confirms = match committer.confirm_by {
        ConfirmBy::Nobody => true,
        ConfirmBy::OtherUser => membership.user != committer.user,
        ConfirmBy::OtherDevice => sender != committer.key,
    };
    if member_before && confirms {
        head.settled_seq = head.epoch_seq;
        head.committer = None;
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
