//! Commits: read, decided, taken.

use chancery_proto::{
    chain,
    commit_info::{CommitInfo, Member as InfoMember, MessageData},
    common::v1::Reason,
    delivery::v1::*,
    framing::{self, Message},
    group_info::GroupInfo,
    suite::Suite as MlsSuite,
    tree::Tree,
    welcome::Welcome as MlsWelcome,
};
use delivery_service::group::{
    Added, Command, CommitKind, Decision, DeviceKey, Rejection, Removed,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;
use uuid::Uuid;

use super::{
    Done, Epoch, MAX, Package, Room, Row, Service, Tables, Waiting, Who, group_id, id16, malformed,
    patch, refuse, rejected, room,
};
use chancery_proto::status;

impl Service {
    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn commit(&self, who: Who, request: &SubmitCommitRequest) -> Done<SubmitCommitResponse> {
        let id = group_id(request.group.as_ref())?;
        let bundle = request
            .bundles
            .first()
            .ok_or_else(|| status::malformed("bundles", "exactly one"))?;
        let parsed = Parsed::read(bundle)?;
        let content_hash: [u8; 32] = Sha256::digest(request.encode_to_vec()).into();
        let now = self.now();
        self.tables(|tables| {
            let mut facts = parsed.facts(tables, &id, who, request, content_hash)?;
            let packages = tables.packages.clone();
            let revoked = tables.revoked.contains_key(&who.device);
            let room = self::room(tables, &id)?;
            facts.bar_is_over = room.bar_is_over(who, now);
            let prior = room.prior(who, &parsed.message_id);
            let group = room.group(who, revoked, prior);
            let decided = group.decide(&Command::Commit(facts), now);
            if matches!(decided, Err(Rejection::StaleEpoch { .. })) {
                tables.stale += 1;
                return Err(decided.err().map_or_else(|| Status::internal(""), rejected));
            }
            let room = self::room(tables, &id)?;
            let (replayed, seq) = match decided.map_err(rejected)? {
                Decision::Replay(prior) => (true, prior.seq),
                Decision::Append(append) => {
                    let seq = append.seq;
                    room.take(&id, append, &parsed, content_hash, request, &packages)?;
                    (false, seq)
                }
            };
            let place = usize::try_from(seq - 1).unwrap_or(usize::MAX);
            let entry = &room.log[place].entry;
            let voided = room.voided_by(entry.seq, entry.epoch_seq, entry.kind);
            let result = CommitResult {
                seq,
                epoch_seq: seq,
                epoch: entry.epoch + 1,
                chain: entry.chain.clone(),
                outcome: room.outcome(seq, voided),
                voided_by_seq: voided.unwrap_or(0),
                replayed,
                accepted_at_micros: entry.accepted_at_micros,
                first_message: None,
            };
            Ok(SubmitCommitResponse {
                results: vec![result],
            })
        })
    }
}

/// A Commit as it was sent.
struct Parsed {
    message_id: [u8; 16],
    external: bool,
    epoch: u64,
    info: CommitInfo,
    group_info: GroupInfo,
    welcomes: Vec<(Vec<u8>, Vec<u8>)>,
    shared: Vec<u8>,
}

impl Parsed {
    fn read(bundle: &CommitBundle) -> Done<Self> {
        let (external, epoch, data) =
            match framing::parse(&bundle.commit, MAX).map_err(malformed)? {
                Message::Private(header) => (false, header.epoch, header.authenticated_data),
                Message::ExternalCommit(commit) => (true, commit.epoch, commit.authenticated_data),
            };
        let data = MessageData::decode(&data).map_err(malformed)?;
        let info = data
            .commit_info
            .ok_or_else(|| refuse(Reason::CommitInfoInvalid, "none"))?;
        let mut welcomes = Vec::new();
        let mut shared = Vec::new();
        for bytes in &bundle.welcomes {
            let welcome = MlsWelcome::parse(bytes, MAX).map_err(malformed)?;
            shared = welcome.encrypted_group_info;
            welcomes.extend(welcome.secrets);
        }
        Ok(Self {
            message_id: id16(&bundle.message_id)?,
            external,
            epoch,
            info,
            group_info: GroupInfo::parse(&bundle.group_info, MAX).map_err(malformed)?,
            welcomes,
            shared,
        })
    }

    fn facts(
        &self,
        tables: &Tables,
        id: &[u8],
        who: Who,
        request: &SubmitCommitRequest,
        content_hash: [u8; 32],
    ) -> Done<delivery_service::group::Commit> {
        let room = tables
            .rooms
            .get(id)
            .ok_or_else(|| rejected(Rejection::NotFound))?;
        let device = |m: &InfoMember| Uuid::from_bytes(m.device);
        let key = |m: &InfoMember| DeviceKey {
            domain: 1,
            device: device(m),
        };
        let removed: Vec<Uuid> = self.info.removed.iter().map(device).collect();
        let stays = |row: &&Row| {
            row.removed.is_none()
                && row.who != who
                && !removed.contains(&row.who.device)
                && row.barred.is_none_or(|seq| seq <= room.head.settled_seq)
        };
        let mut staying = room.rows.iter().filter(stays);
        let other_devices = staying.clone().next().is_some();
        let other_users = staying.any(|row| row.who.user != who.user);
        let seen = match self.info.seen_seq {
            0 => Some(chain::start().to_vec()),
            seq => room
                .log
                .get(usize::try_from(seq - 1).unwrap_or(usize::MAX))
                .map(|logged| logged.entry.chain.to_vec()),
        };
        let next = room
            .epochs
            .iter()
            .find(|epoch| epoch.number == self.epoch + 1);
        let tree = self.tree(room, request)?;
        let suite = MlsSuite::from_code(room.suite);
        let owner = |reference: &Vec<u8>| {
            let package = tables.packages.iter().find(|p| p.reference == *reference)?;
            Some(package.owner.key())
        };
        let proposals = self.info.proposals.iter().all(|seq| {
            room.log.iter().any(|logged| {
                logged.entry.seq == *seq
                    && logged.entry.kind == EntryKind::Proposal as u32
                    && logged.entry.epoch_seq == room.head.epoch_seq
            })
        });
        Ok(delivery_service::group::Commit {
            device: who.key(),
            user: who.user,
            content_hash,
            kind: match self.external {
                true => CommitKind::External { introduced: false },
                false => CommitKind::Member,
            },
            epoch: self.epoch,
            epoch_seq: request.epoch_seq,
            voided_by: room.named(request.epoch_seq).1,
            winner_seq: next.map(|epoch| epoch.seq),
            added: self
                .info
                .added
                .iter()
                .map(|m| Added {
                    key: key(m),
                    user: Uuid::from_bytes(m.user),
                    known_user: Some(Uuid::from_bytes(m.user)),
                    revoked: tables.revoked.contains_key(&device(m)),
                    member: room.is_member(device(m)),
                })
                .collect(),
            removed: self
                .info
                .removed
                .iter()
                .map(|m| Removed {
                    key: key(m),
                    user: Uuid::from_bytes(m.user),
                    member_user: room.row(device(m)).map(|row| row.who.user),
                })
                .collect(),
            proposals_known: proposals,
            seen_seq: self.info.seen_seq,
            seen_chain_fits: seen.as_deref() == Some(&self.info.seen_chain[..]),
            revoked_members: room
                .rows
                .iter()
                .filter(|row| row.removed.is_none() && row.pending == 2)
                .map(|row| row.who.key())
                .collect(),
            welcomed: self.welcomes.iter().map(|(r, _)| owner(r)).collect(),
            group_info_fits: self.group_info.group_id == id
                && self.group_info.epoch == self.epoch + 1,
            tree_fits: suite.is_none_or(|suite| tree.hash(suite) == self.group_info.tree_hash),
            other_users,
            other_devices,
            bar_is_over: false,
        })
    }

    fn tree(&self, room: &Room, request: &SubmitCommitRequest) -> Done<Tree> {
        let mut tree = room
            .epoch(request.epoch_seq)
            .map(|epoch| epoch.tree.clone())
            .unwrap_or_default();
        patch(&mut tree, request.bundles[0].tree.as_ref())?;
        Ok(tree)
    }
}

impl Room {
    fn take(
        &mut self,
        id: &[u8],
        append: delivery_service::group::Append,
        parsed: &Parsed,
        content_hash: [u8; 32],
        request: &SubmitCommitRequest,
        packages: &[Package],
    ) -> Done<()> {
        let bundle = &request.bundles[0];
        let tree = parsed.tree(self, request)?;
        let kind = match parsed.external {
            true => EntryKind::ExternalCommit,
            false => EntryKind::Commit,
        };
        let seq = append.seq;
        let message_id = parsed.message_id;
        self.append(id, append, kind, message_id, content_hash, &bundle.commit);
        for removed in &parsed.info.removed {
            let device = Uuid::from_bytes(removed.device);
            for row in &mut self.rows {
                if row.who.device == device && row.removed.is_none() {
                    row.removed = Some(seq);
                    row.pending = 0;
                }
            }
        }
        for added in &parsed.info.added {
            self.rows.push(Row {
                who: Who {
                    user: Uuid::from_bytes(added.user),
                    device: Uuid::from_bytes(added.device),
                },
                joined: seq,
                removed: None,
                pending: 0,
                evidence: Vec::new(),
                barred: None,
                voided: false,
            });
        }
        self.epochs.push(Epoch {
            number: self.head.epoch,
            seq,
            group_info: bundle.group_info.to_vec(),
            state_hash: parsed.group_info.group_state_hash().to_vec(),
            tree,
            shared: parsed.shared.clone(),
            committer: self.head.committer,
            floor_seq: self.head.floor_seq,
        });
        for (reference, secrets) in &parsed.welcomes {
            let Some(package) = packages.iter().find(|p| p.reference == *reference) else {
                continue;
            };
            self.welcomes.push(Waiting {
                to: package.owner,
                seq,
                reference: reference.clone(),
                secrets: secrets.clone(),
                read: false,
            });
        }
        Ok(())
    }
}
