//! The database of one group. A decision is `Group::decide`; what stands here is the reading before it and the writing after it.

use chancery_proto::chain::{self, ChainInput};
use client_cli::core::pending::Told;
use delivery_service::{
    ordering::{
        facts::{self, CommitRequest, Known, KnownDevice, Pending},
        group::{
            Command, Decision, DeviceKey, ExternalJoin, Group, Head, Membership, Prior, Rejection,
            Send,
        },
    },
    reading::log::{Span, next_span},
    store::roster::Interval,
};
use uuid::Uuid;

use super::Broken;

/// What a Commit does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change {
    /// Renews the committer's leaf.
    Update,
    /// Removes a device.
    Remove(u8),
    /// The committer comes back from outside.
    Resync,
}

/// What somebody asks the log to take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum What {
    /// An application message.
    Say,
    /// A Commit, with the log that its maker saw, and the revoked devices that it removes besides.
    Commit {
        /// What it does.
        change: Change,
        /// Devices that it removes.
        removes: Vec<u8>,
        /// Last entry seen.
        seen_seq: u64,
        /// The chain there.
        seen_chain: [u8; 32],
    },
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Request {
    /// Who.
    pub by: u8,
    /// Its `message_id`.
    pub id: u8,
    /// The epoch that it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// What.
    pub what: What,
}

impl Request {
    /// Equal for equal bytes.
    fn content_hash(&self) -> [u8; 32] {
        use sha2::{Digest as _, Sha256};
        Sha256::digest(format!("{self:?}")).into()
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    /// To whom.
    pub to: u8,
    /// About which request.
    pub id: u8,
    /// The epoch that the request was framed in: an answer to an earlier framing is about that one.
    pub epoch_seq: u64,
    /// Where it stands, if it was accepted.
    pub seq: Option<u64>,
    /// It had been accepted before.
    pub replayed: bool,
    /// What a client makes of it.
    pub refused: Option<Refused>,
}

/// A refusal, as far as it makes a difference to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refused {
    /// The epoch is over.
    Passed,
    /// Revoked members first.
    Barred,
    /// For good.
    Refused,
}

impl Answer {
    /// As the client's machine hears it.
    pub fn told(&self) -> Told {
        match self.refused {
            None => Told::Accepted,
            Some(Refused::Passed) => Told::Passed,
            Some(Refused::Barred) => Told::Barred,
            Some(Refused::Refused) => Told::Refused,
        }
    }
}

/// One row of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Its place.
    pub seq: u64,
    /// The epoch that it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// The request that made it.
    pub id: u8,
    /// Its maker.
    pub by: u8,
    /// A Commit's change and whom it removes; absent for a message and for what the service appends.
    pub commit: Option<(Change, Vec<u8>)>,
    /// A device that was marked as revoked.
    pub marks: Option<u8>,
    /// SHA-256 of the request.
    pub content_hash: [u8; 32],
    /// The chain after it.
    pub chain: [u8; 32],
}

/// A membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    device: u8,
    joined: u64,
    removed: Option<u64>,
    marked: bool,
}

/// The database.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Server {
    /// The head row.
    pub head: Head,
    /// In order.
    pub log: Vec<Entry>,
    /// Number and name of each epoch.
    epochs: Vec<(u64, u64)>,
    rows: Vec<Row>,
    revoked: Vec<u8>,
    /// Ids for what the service itself appends.
    own_ids: u8,
    broken: Option<Broken>,
}

fn key(n: u8) -> DeviceKey {
    DeviceKey {
        domain: 1,
        device: Uuid::from_u128(n.into()),
    }
}

fn user(n: u8) -> Uuid {
    Uuid::from_u128(100 + u128::from(n))
}

impl Server {
    /// All devices are in since the creation.
    pub fn new(devices: u8, broken: Option<Broken>) -> Self {
        Self {
            head: Head::created(0, 1, ExternalJoin::Resync),
            log: Vec::new(),
            epochs: vec![(0, 0)],
            rows: (0..devices)
                .map(|device| Row {
                    device,
                    joined: 0,
                    removed: None,
                    marked: false,
                })
                .collect(),
            revoked: Vec::new(),
            own_ids: 200,
            broken,
        }
    }

    fn row(&self, n: u8) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.device == n && row.removed.is_none())
    }

    /// Is it in the roster?
    pub fn is_member(&self, n: u8) -> bool {
        self.row(n).is_some()
    }

    /// Was it revoked?
    pub fn is_revoked(&self, n: u8) -> bool {
        self.revoked.contains(&n)
    }

    /// Not yet.
    pub fn may_revoke(&self, n: u8) -> bool {
        !self.is_revoked(n) && self.is_member(n)
    }

    /// The status feed's transaction.
    pub fn revoke(&mut self, n: u8) {
        self.revoked.push(n);
    }

    /// Revoked members that the sweep has not marked.
    pub fn unmarked(&self) -> impl Iterator<Item = u8> + '_ {
        let rows = self.rows.iter();
        rows.filter(|row| row.removed.is_none() && !row.marked)
            .map(|row| row.device)
            .filter(|n| self.is_revoked(*n))
    }

    /// Members that were marked.
    pub fn unremoved(&self) -> impl Iterator<Item = u8> + '_ {
        let rows = self.rows.iter();
        rows.filter(|row| row.removed.is_none() && row.marked)
            .map(|row| row.device)
    }

    /// Is there something to mark?
    pub fn may_mark(&self, n: u8) -> bool {
        self.unmarked().any(|unmarked| unmarked == n)
    }

    /// The sweep's transaction.
    pub fn mark(&mut self, n: u8) {
        let append = self.head.mark_revoked(0);
        let rows = self.rows.iter_mut();
        for row in rows.filter(|row| row.device == n && row.removed.is_none()) {
            row.marked = true;
        }
        self.own_ids += 1;
        let id = self.own_ids;
        let mut head = append.head;
        head.chain = self.push(append.seq, append.epoch, append.epoch_seq, id, n, None);
        if let Some(last) = self.log.last_mut() {
            last.marks = Some(n);
        }
        self.head = head;
    }

    fn push(
        &mut self,
        seq: u64,
        epoch: u64,
        epoch_seq: u64,
        id: u8,
        by: u8,
        request: Option<&Request>,
    ) -> [u8; 32] {
        let commit = request.and_then(|request| match &request.what {
            What::Say => None,
            What::Commit {
                change, removes, ..
            } => Some((change.clone(), removes.clone())),
        });
        let chain = chain::next(
            &self.head.chain,
            &ChainInput {
                group: b"a group of sixteen",
                seq,
                epoch_seq,
                kind: u32::from(commit.is_some()),
                message_id: &[id; 16],
                accepted_at_micros: 0,
                payload_sha256: &[by; 32],
            },
        );
        self.log.push(Entry {
            seq,
            epoch,
            epoch_seq,
            id,
            by,
            commit,
            marks: None,
            content_hash: request.map(Request::content_hash).unwrap_or_default(),
            chain,
        });
        chain
    }

    fn intervals(&self, n: u8) -> Vec<Interval> {
        let rows = self.rows.iter().filter(|row| row.device == n);
        rows.map(|row| Interval {
            joined_seq: row.joined,
            removed_seq: row.removed,
            voided: false,
        })
        .collect()
    }

    /// The next entry that a device may read after a seq, by the service's own rule.
    pub fn next_for(&self, n: u8, after: u64) -> Option<&Entry> {
        if self.is_revoked(n) {
            return None;
        }
        let mut intervals = self.intervals(n);
        if self.broken == Some(Broken::ReadsOn) {
            intervals.iter_mut().for_each(|i| i.removed_seq = None);
        }
        let Span { after, .. } = next_span(&intervals, after, self.head.seq)?;
        self.log.get(usize::try_from(after).ok()?)
    }

    /// Where the entry with this id stands.
    pub fn place_of(&self, id: u8) -> Option<u64> {
        self.log.iter().find(|entry| entry.id == id).map(|e| e.seq)
    }

    /// One transaction: read under the lock, decide, write. The answer.
    pub fn process(&mut self, request: &Request) -> Answer {
        let answer = |seq, replayed, refused| Answer {
            to: request.by,
            id: request.id,
            epoch_seq: request.epoch_seq,
            seq,
            replayed,
            refused,
        };
        let mut command = self.command(request);
        let mut group = self.group(request);
        self.break_on_purpose(&mut group, &mut command);
        match group.decide(&command, 0) {
            Ok(Decision::Replay(prior)) => answer(Some(prior.seq), true, None),
            Ok(Decision::Append(append)) => {
                let mut head = append.head;
                // What members find in the bytes, whatever the decision made of it.
                let (epoch, name) = (request.epoch, request.epoch_seq);
                head.chain = self.push(
                    append.seq,
                    epoch,
                    name,
                    request.id,
                    request.by,
                    Some(request),
                );
                self.head = head;
                if self.broken == Some(Broken::GivesNumbersTwice)
                    && let Some(last) = self.log.last_mut()
                {
                    last.seq -= u64::from(last.seq > 1);
                }
                self.write_epoch(request);
                answer(Some(self.head.seq), false, None)
            }
            Err(rejection) => answer(None, false, Some(refused(&rejection))),
        }
    }

    fn break_on_purpose(&self, group: &mut Group, command: &mut Command) {
        match (self.broken, command) {
            (Some(Broken::ForgetsIds), _) => group.prior = None,
            (Some(Broken::TakesAnyEpoch), Command::Commit(commit)) => {
                commit.epoch = group.head.epoch;
                commit.epoch_seq = group.head.epoch_seq;
                commit.seen_seq = group.head.seq;
                commit.seen_chain_fits = true;
            }
            (Some(Broken::NoBarrier), Command::Send(_)) => group.head.pending_removals = 0,
            _ => {}
        }
    }

    fn write_epoch(&mut self, request: &Request) {
        let What::Commit {
            change, removes, ..
        } = &request.what
        else {
            return;
        };
        let seq = self.head.seq;
        self.epochs.push((self.head.epoch, seq));
        let removed = |row: &Row| {
            removes.contains(&row.device) || (*change == Change::Resync && row.device == request.by)
        };
        for row in &mut self.rows {
            if row.removed.is_none() && removed(row) {
                row.removed = Some(seq);
                row.marked = false;
            }
        }
        if *change == Change::Resync {
            self.rows.push(Row {
                device: request.by,
                joined: seq,
                removed: None,
                marked: false,
            });
        }
    }

    fn group(&self, request: &Request) -> Group {
        let prior = self.log.iter().find(|entry| entry.id == request.id);
        Group {
            head: self.head.clone(),
            caller: self.row(request.by).map(|row| Membership {
                user: user(request.by),
                joined_seq: row.joined,
                barred_seq: None,
            }),
            caller_revoked: self.is_revoked(request.by),
            prior: prior.map(|entry| Prior {
                seq: entry.seq,
                epoch: entry.epoch,
                epoch_seq: entry.epoch_seq,
                kind: 0,
                content_hash: entry.content_hash,
                chain: entry.chain,
                accepted_at: 0,
                readable: self.intervals(request.by).iter().any(|i| {
                    i.joined_seq <= entry.seq && i.removed_seq.is_none_or(|end| entry.seq <= end)
                }),
                voided_by: None,
            }),
        }
    }

    fn command(&self, request: &Request) -> Command {
        let content_hash = request.content_hash();
        let device = key(request.by);
        let What::Commit {
            change,
            removes,
            seen_seq,
            seen_chain,
        } = &request.what
        else {
            let named = self
                .epochs
                .iter()
                .find(|(_, name)| *name == request.epoch_seq);
            return Command::Send(Send {
                device,
                content_hash,
                proposal: false,
                epoch: request.epoch,
                epoch_seq: request.epoch_seq,
                named_epoch: named.map(|(epoch, _)| *epoch),
                voided_by: None,
            });
        };
        let external = *change == Change::Resync;
        let mut gone = removes.clone();
        gone.extend(external.then_some(request.by));
        let commit = CommitRequest {
            device,
            user: user(request.by),
            content_hash,
            external,
            introducer: None,
            epoch: request.epoch,
            epoch_seq: request.epoch_seq,
            added: external
                .then(|| (device, user(request.by)))
                .into_iter()
                .collect(),
            removed: gone.iter().map(|n| (key(*n), user(*n))).collect(),
            proposals: Vec::new(),
            seen_seq: *seen_seq,
            seen_chain: *seen_chain,
            welcomed: Vec::new(),
            new_leaves: Vec::new(),
            past_epochs: self.head.past_epochs,
            external_join: self.head.external_join,
            fault: None,
        };
        Command::Commit(facts::facts(&commit, &self.known(&commit, &gone)))
    }

    /// What is read for a Commit that removes these devices.
    fn known(&self, commit: &CommitRequest, gone: &[u8]) -> Known {
        let stays = |row: &&Row| {
            row.removed.is_none() && key(row.device) != commit.device && !gone.contains(&row.device)
        };
        let others = self.rows.iter().filter(stays).count();
        let open = self.rows.iter().filter(|row| row.removed.is_none());
        let device = |n: u8| KnownDevice {
            key: key(n),
            user: user(n),
            revoked: self.is_revoked(n),
        };
        let next = self
            .epochs
            .iter()
            .find(|(epoch, _)| *epoch == commit.epoch + 1);
        let entry = |seq: u64| self.log.get(usize::try_from(seq - 1).unwrap_or(usize::MAX));
        Known {
            devices: self.rows.iter().map(|row| device(row.device)).collect(),
            members: open
                .map(|row| {
                    let membership = Membership {
                        user: user(row.device),
                        joined_seq: row.joined,
                        barred_seq: None,
                    };
                    (key(row.device), membership)
                })
                .collect(),
            pending: self
                .unremoved()
                .map(|n| (key(n), Pending::Revoked))
                .collect(),
            seen_chain: facts::chain_before_the_log(commit.seen_seq)
                .or_else(|| entry(commit.seen_seq).map(|entry| entry.chain)),
            winner_seq: next.map(|(_, name)| *name),
            other_users: others > 0,
            other_devices: others > 0,
            ..Known::default()
        }
    }

    /// What is wrong with the log, if anything is.
    pub fn fault(&self) -> Option<String> {
        let mut commits = Vec::new();
        for (place, entry) in self.log.iter().enumerate() {
            if entry.seq != place as u64 + 1 {
                return Some(format!("a hole before {entry:?}"));
            }
            if self.log[..place].iter().any(|other| other.id == entry.id) {
                return Some(format!("an id twice: {entry:?}"));
            }
            // What is said while a revoked member is marked is for that member too.
            let barred = self.log[..place].iter().any(|before| {
                before.marks.is_some_and(|n| {
                    let gone = |later: &Entry| {
                        let commit = later.commit.as_ref();
                        commit.is_some_and(|(_, removes)| removes.contains(&n))
                    };
                    !self.log[..place].iter().any(gone)
                })
            });
            if barred && entry.commit.is_none() && entry.marks.is_none() {
                return Some(format!("said past a bar: {entry:?}"));
            }
            if entry.commit.is_some() {
                if commits.contains(&entry.epoch) {
                    return Some(format!("two Commits of one epoch: {entry:?}"));
                }
                commits.push(entry.epoch);
            }
        }
        let last = self.log.last().map_or(chain::start(), |entry| entry.chain);
        (last != self.head.chain).then(|| "the head's chain is not the log's".into())
    }
}

fn refused(rejection: &Rejection) -> Refused {
    match rejection {
        Rejection::StaleEpoch { .. }
        | Rejection::EpochTooOld { .. }
        | Rejection::EpochVoided { .. } => Refused::Passed,
        Rejection::PendingRemoval { .. } => Refused::Barred,
        _ => Refused::Refused,
    }
}
