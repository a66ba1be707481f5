//! Commits: read and derived by the service's own functions, decided, taken.

use chancery_proto::{delivery::v1::*, group_info::GroupInfo, key_package::KeyPackage};
use delivery_service::{
    error::status,
    ordering::{
        content::{ExternalContent, place_of},
        facts::{self, CommitRequest, Known, KnownDevice, KnownPackage, Pending},
        group::{Command, Decision, DeviceKey, Membership, Rejection},
    },
    request::{Bundle, Prepared, PreparedCommit, TreeAfter, leaf_is_of, leaf_of, leaves_by_device},
};
use uuid::Uuid;

use super::{
    DOMAIN, Done, Epoch, MAX, Package, Room, Row, Service, Tables, Waiting, Who, malformed, patch,
    rejected, room,
};

impl Service {
    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn commit(&self, who: Who, request: &SubmitCommitRequest) -> Done<SubmitCommitResponse> {
        let bundle = Bundle::read(&self.rules(), request).map_err(status)?;
        let now = self.now();
        let id = bundle.group.clone();
        self.tables(|tables| {
            let known_room = tables
                .rooms
                .get(&id)
                .ok_or_else(|| rejected(Rejection::NotFound))?;
            let commit = self.prepare(known_room, who, bundle, request)?;
            let known = known(tables, known_room, who, &commit.request, now);
            let revoked = tables.revoked.contains_key(&who.device);
            let message_id = *commit.message_id.as_bytes();
            let group = known_room.group(who, revoked, known_room.prior(who, &message_id));
            let facts = facts::facts(&commit.request, &known);
            let decided = group.decide(&Command::Commit(facts), now);
            if let Err(rejection) = &decided {
                let stale = matches!(rejection, Rejection::StaleEpoch { .. });
                tables.stale += u64::from(stale);
            }
            let room = room(tables, &id)?;
            let (replayed, seq) = match decided.map_err(rejected)? {
                Decision::Replay(prior) => (true, prior.seq),
                Decision::Append(append) => {
                    let seq = append.seq;
                    room.take(append, &commit, &known, request)?;
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

    /// Holds a bundle against the epoch that it was made in.
    fn prepare(
        &self,
        room: &Room,
        who: Who,
        bundle: Bundle,
        request: &SubmitCommitRequest,
    ) -> Done<PreparedCommit> {
        let before = room.epoch(request.epoch_seq);
        let update = request.bundles[0].tree.as_ref();
        let update = update.ok_or_else(|| chancery_proto::status::malformed("tree", "missing"))?;
        let old = before.map(|epoch| &epoch.tree);
        let tree = TreeAfter::whole(old, update, &bundle.info).map_err(status)?;
        let info_before = before.map(|epoch| GroupInfo::parse(&epoch.group_info, MAX));
        let info_before = info_before.transpose().map_err(malformed)?;
        let mut after = old.cloned().unwrap_or_default();
        patch(&mut after, Some(update))?;
        let leaf = |index: u32| {
            let mut nodes = after.nodes();
            nodes.find_map(|(at, node)| (at == index.checked_mul(2)?).then(|| leaf_of(node))?)
        };
        let signer = leaf(bundle.info.signer);
        let external = bundle.external.as_ref().map(|commit| {
            let place = place_of(&commit.leaf, &tree.leaves).unwrap_or(0);
            let leaves = old.map(|tree| tree.nodes().filter(|(index, _)| index % 2 == 0));
            let left = leaves.into_iter().flatten();
            let left = left.filter(|(index, _)| *index < 2 * place).count();
            ExternalContent {
                commit,
                own_leaf: room.own_leaf(who, request.epoch_seq),
                leaves: &tree.leaves,
                filled_left: u32::try_from(left).unwrap_or(u32::MAX),
            }
        });
        if let Some(commit) = &bundle.external {
            let device = (DOMAIN, who.device, who.user);
            let seconds = self.now() / 1_000_000;
            leaf_is_of(&self.anchors, device, &commit.leaf, seconds).map_err(status)?;
        }
        let content = bundle.content(
            DOMAIN,
            info_before.as_ref(),
            tree.fits,
            signer.as_ref(),
            external,
        );
        let prepared = Prepared {
            introducer: None,
            fault: content.fault(),
            tree,
        };
        Ok(bundle.prepared(&self.rules(), (who.key(), who.user), prepared))
    }
}

/// What the service would read for a Commit, under the lock.
fn known(tables: &Tables, room: &Room, who: Who, request: &CommitRequest, now: i64) -> Known {
    let device = |key: DeviceKey| {
        let owner = tables.devices.get(&key.device)?;
        Some(KnownDevice {
            key,
            user: *owner,
            revoked: tables.revoked.contains_key(&key.device),
        })
    };
    let member = |key: DeviceKey| {
        let row = room.row(key.device)?;
        let membership = Membership {
            user: row.who.user,
            joined_seq: row.joined,
            barred_seq: row.barred,
        };
        Some((key, membership))
    };
    let removed: Vec<Uuid> = request.removed.iter().map(|(key, _)| key.device).collect();
    let stays = |row: &&Row| {
        row.removed.is_none()
            && row.who != who
            && !removed.contains(&row.who.device)
            && row.barred.is_none_or(|seq| seq <= room.head.settled_seq)
    };
    let mut staying = room.rows.iter().filter(stays);
    let next = room
        .epochs
        .iter()
        .find(|epoch| epoch.number == request.epoch + 1);
    let proposal = |seq: &&u64| {
        room.log.iter().any(|logged| {
            logged.entry.seq == **seq
                && logged.entry.kind == EntryKind::Proposal as u32
                && logged.entry.epoch_seq == room.head.epoch_seq
        })
    };
    let seen = usize::try_from(request.seen_seq.wrapping_sub(1)).unwrap_or(usize::MAX);
    let seen = room.log.get(seen).map(|logged| logged.entry.chain.as_ref());
    Known {
        devices: request
            .added
            .iter()
            .filter_map(|(key, _)| device(*key))
            .collect(),
        members: facts::named(request)
            .into_iter()
            .filter_map(member)
            .collect(),
        pending: room
            .rows
            .iter()
            .filter(|row| row.removed.is_none() && row.pending > 0)
            .map(|row| {
                let why = match row.pending {
                    2 => Pending::Revoked,
                    _ => Pending::Leaving,
                };
                (row.who.key(), why)
            })
            .collect(),
        seen_chain: facts::chain_before_the_log(request.seen_seq)
            .or_else(|| seen.and_then(|chain| chain.try_into().ok())),
        winner_seq: next.map(|epoch| epoch.seq),
        voided_by: room.named(request.epoch_seq).1,
        proposals: request.proposals.iter().filter(proposal).count(),
        packages: request
            .welcomed
            .iter()
            .filter_map(|reference| package(tables, reference))
            .collect(),
        bar_is_over: room.bar_is_over(who, now),
        other_devices: staying.clone().next().is_some(),
        other_users: staying.any(|row| row.who.user != who.user),
    }
}

fn package(tables: &Tables, reference: &[u8]) -> Option<KnownPackage> {
    let mut packages = tables.packages.iter();
    let stored: &Package = packages.find(|package| package.reference == reference)?;
    let package = KeyPackage::parse(&stored.body, MAX).ok()?;
    Some(KnownPackage {
        reference: stored.reference.clone(),
        owner: stored.owner.key(),
        leaf: package.leaf.encoded(),
    })
}

impl Room {
    /// Where the leaf of a member is in the tree of an epoch.
    fn own_leaf(&self, who: Who, epoch_seq: u64) -> Option<u32> {
        self.row(who.device)?;
        let tree = &self.epoch(epoch_seq)?.tree;
        let mut leaves = tree.nodes().filter(|(index, _)| index % 2 == 0);
        leaves.find_map(|(index, node)| {
            let leaf = leaf_of(node)?;
            let named = chancery_proto::certificate::read_device(leaf.certificate().ok()?).ok()?;
            (named.device == who.device).then_some(index / 2)
        })
    }

    fn take(
        &mut self,
        append: delivery_service::ordering::group::Append,
        commit: &PreparedCommit,
        known: &Known,
        request: &SubmitCommitRequest,
    ) -> Done<()> {
        let mut tree = self
            .epoch(request.epoch_seq)
            .map(|epoch| epoch.tree.clone())
            .unwrap_or_default();
        patch(&mut tree, request.bundles[0].tree.as_ref())?;
        let seq = append.seq;
        let message_id = *commit.message_id.as_bytes();
        let content_hash = commit.request.content_hash;
        let kind = commit.entry_kind();
        self.append(
            &commit.group,
            append,
            kind,
            message_id,
            content_hash,
            &commit.commit,
        );
        for (key, _) in &commit.request.removed {
            for row in &mut self.rows {
                if row.who.device == key.device && row.removed.is_none() {
                    row.removed = Some(seq);
                    row.pending = 0;
                }
            }
        }
        for (key, user) in &commit.request.added {
            let who = Who {
                user: *user,
                device: key.device,
            };
            let place = commit.leaves.get(key);
            let signature_key = place.map(|place| place.signature_key.clone());
            self.rows.push(Row::joined(who, seq, signature_key));
        }
        self.epochs.push(Epoch {
            number: self.head.epoch,
            seq,
            group_info: commit.group_info.clone(),
            state_hash: commit.group_state_hash.to_vec(),
            tree,
            shared: commit.encrypted_group_info.clone().unwrap_or_default(),
            committer: self.head.committer,
            floor_seq: self.head.floor_seq,
        });
        for (reference, secrets) in &commit.secrets {
            let package = known.packages.iter().find(|p| p.reference == *reference);
            let Some(owner) = package.map(|package| package.owner.device) else {
                continue;
            };
            let to = self.rows.iter().rfind(|row| row.who.device == owner);
            self.welcomes.extend(to.map(|row| Waiting {
                to: row.who,
                seq,
                reference: reference.clone(),
                secrets: secrets.clone(),
                read: false,
            }));
        }
        Ok(())
    }
}

/// The roster of a room, and the leaves of a tree, as a repair compares them.
pub(super) fn roster_and_leaves(
    room: &Room,
    tree: &chancery_proto::tree::Tree,
) -> Option<(
    Vec<delivery_service::ordering::content::RosterKey>,
    std::collections::BTreeMap<DeviceKey, chancery_proto::leaf::LeafNode>,
)> {
    let open = room.rows.iter().filter(|row| row.removed.is_none());
    let roster = open.map(|row| (row.who.key(), row.signature_key.clone()));
    let domain = |name: &str| (name == DOMAIN).then_some(1);
    Some((roster.collect(), leaves_by_device(&domain, tree)?))
}
