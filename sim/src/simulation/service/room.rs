//! One group: who may read what, how an entry is appended, what a decision is made on.

use chancery_proto::{
    chain::{self, ChainInput},
    delivery::v1::{Entry, EntryKind, Outcome, State, entry},
};
use delivery_service::{
    ordering::group::{Group, Head, Membership, Prior},
    store::roster::Interval,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Epoch, Logged, Room, Row, Who, reference};

/// As the service's option has it by default.
const BAR_MICROS: i64 = 300_000_000;

impl Room {
    pub(super) fn row(&self, device: Uuid) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.who.device == device && row.removed.is_none())
    }

    /// Is it in the roster?
    pub fn is_member(&self, device: Uuid) -> bool {
        self.row(device).is_some()
    }

    /// Is a bar of this device over by time?
    pub(super) fn bar_is_over(&self, who: Who, now: i64) -> bool {
        let barred = self.row(who.device).and_then(|row| row.barred);
        let place = barred.and_then(|seq| usize::try_from(seq - 1).ok());
        let void = place.and_then(|place| self.log.get(place));
        void.is_some_and(|void| void.entry.accepted_at_micros + BAR_MICROS <= now)
    }

    pub(super) fn intervals(&self, device: Uuid) -> Vec<Interval> {
        let rows = self.rows.iter().filter(|row| row.who.device == device);
        rows.map(|row| Interval {
            joined_seq: row.joined,
            removed_seq: row.removed,
            voided: row.voided,
        })
        .collect()
    }

    /// When it was in: from which Commit to which.
    pub fn memberships(&self, device: Uuid) -> Vec<(u64, Option<u64>)> {
        let intervals = self.intervals(device).into_iter();
        intervals.map(|i| (i.joined_seq, i.removed_seq)).collect()
    }

    /// May it read this seq?
    pub fn holds(&self, device: Uuid, seq: u64) -> bool {
        self.intervals(device)
            .iter()
            .any(|i| i.joined_seq <= seq && i.removed_seq.is_none_or(|end| seq <= end))
    }

    /// What took this entry back, if anything did.
    pub fn voided_by(&self, seq: u64, epoch_seq: u64, kind: u32) -> Option<u64> {
        let built_on = |first: u64| seq == first || epoch_seq >= first;
        self.voids
            .iter()
            .find(|(_, first, last)| {
                (*first..=*last).contains(&seq) && built_on(*first) && kind <= 4
            })
            .map(|(void, _, _)| *void)
    }

    pub(super) fn at(&self, device: Uuid, seq: u64) -> Option<Membership> {
        let in_it = |row: &&Row| {
            row.who.device == device
                && row.joined <= seq
                && row.removed.is_none_or(|at| at > seq)
                && !row.voided
        };
        self.rows.iter().rfind(in_it).map(|row| Membership {
            user: row.who.user,
            joined_seq: row.joined,
            barred_seq: row.barred,
        })
    }

    pub(super) fn epoch(&self, seq: u64) -> Option<&Epoch> {
        self.epochs.iter().find(|epoch| epoch.seq == seq)
    }

    pub(super) fn named(&self, epoch_seq: u64) -> (Option<u64>, Option<u64>) {
        match self.epoch(epoch_seq) {
            Some(epoch) => (Some(epoch.number), None),
            None => {
                let voids = self.voids.iter();
                let found = voids
                    .into_iter()
                    .find(|(_, first, last)| (*first..=*last).contains(&epoch_seq));
                (None, found.map(|(void, _, _)| *void))
            }
        }
    }

    pub(super) fn append(
        &mut self,
        id: &[u8],
        append: delivery_service::ordering::group::Append,
        kind: EntryKind,
        message_id: [u8; 16],
        content_hash: [u8; 32],
        payload: &[u8],
    ) {
        let kind = kind as u32;
        let chain = chain::next(
            &self.head.chain,
            &ChainInput {
                group: id,
                seq: append.seq,
                epoch_seq: append.epoch_seq,
                kind,
                message_id: &message_id,
                accepted_at_micros: append.accepted_at,
                payload_sha256: &Sha256::digest(payload).into(),
            },
        );
        self.log.push(Logged {
            entry: Entry {
                seq: append.seq,
                epoch: append.epoch,
                epoch_seq: append.epoch_seq,
                kind,
                message_id: message_id.to_vec().into(),
                accepted_at_micros: append.accepted_at,
                body: Some(entry::Body::Payload(payload.to_vec().into())),
                chain: chain.to_vec().into(),
                ..Entry::default()
            },
            content_hash,
        });
        self.head = Head {
            chain,
            last_at: append.accepted_at,
            ..append.head
        };
        let settled = self.head.settled_seq;
        for epoch in &mut self.epochs {
            if epoch.seq <= settled {
                epoch.committer = None;
            }
        }
    }

    pub(super) fn prior(&self, who: Who, message_id: &[u8; 16]) -> Option<Prior> {
        let logged = self
            .log
            .iter()
            .find(|logged| logged.entry.message_id[..] == message_id[..])?;
        let entry = &logged.entry;
        Some(Prior {
            seq: entry.seq,
            epoch: entry.epoch,
            epoch_seq: entry.epoch_seq,
            kind: i16::try_from(entry.kind).unwrap_or(0),
            content_hash: logged.content_hash,
            chain: entry.chain.as_ref().try_into().unwrap_or_default(),
            accepted_at: entry.accepted_at_micros,
            readable: self.holds(who.device, entry.seq),
            voided_by: self.voided_by(entry.seq, entry.epoch_seq, entry.kind),
        })
    }

    pub(super) fn group(&self, who: Who, revoked: bool, prior: Option<Prior>) -> Group {
        Group {
            head: self.head.clone(),
            caller: self.row(who.device).map(|row| Membership {
                user: row.who.user,
                joined_seq: row.joined,
                barred_seq: row.barred,
            }),
            caller_revoked: revoked,
            prior,
        }
    }

    pub(super) fn outcome(&self, named: u64, voided: Option<u64>) -> i32 {
        if voided.is_some() {
            Outcome::Voided.into()
        } else if named > self.head.settled_seq {
            Outcome::Provisional.into()
        } else {
            Outcome::Standing.into()
        }
    }

    pub(super) fn state(&self, id: &[u8]) -> State {
        State {
            group: Some(reference(id)),
            epoch: self.head.epoch,
            epoch_seq: self.head.epoch_seq,
            head_seq: self.head.seq,
            chain: self.head.chain.to_vec().into(),
            settled_seq: self.head.settled_seq,
            pending_removals: self.head.pending_removals,
        }
    }
}
