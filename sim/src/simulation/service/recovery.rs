//! Epochs reported, Commits taken back, GroupInfos repaired.

use std::collections::BTreeMap;

use chancery_proto::{
    certificate::read_device,
    common::v1::Reason,
    delivery::v1::*,
    group_info::GroupInfo,
    mutants::{self, Mutant},
    signed, status,
    tree::Tree,
};
use delivery_service::{
    ordering::{
        content::check_repair,
        group::{
            Group, Rejection,
            settle::{Before, Failed, Reported},
        },
    },
    request::{leaf_key_of, leaf_of},
};
use prost::Message as _;
use uuid::Uuid;

use super::{
    DOMAIN, Done, MAX, Room, Service, Who, commit::roster_and_leaves, device_ref, group_id,
    malformed, patch, refuse, rejected, room,
};

const VOID_AFTER_MICROS: i64 = 10_000_000;

impl Service {
    /// Takes back what is due.
    pub fn look_at_failures(&self) {
        let now = self.now();
        self.tables(|tables| {
            let revoked = tables.revoked.clone();
            for (id, room) in &mut tables.rooms {
                let due: Vec<u64> = room.failures.keys().copied().collect();
                for seq in due {
                    tables.ids += 1;
                    let message_id = u128::from(tables.ids).to_be_bytes();
                    void(room, id, seq, message_id, now, &revoked);
                }
            }
        });
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn put_group_info(
        &self,
        who: Who,
        request: &PutGroupInfoRequest,
    ) -> Done<PutGroupInfoResponse> {
        let id = group_id(request.group.as_ref())?;
        let info = GroupInfo::parse(&request.group_info, MAX).map_err(malformed)?;
        let mut tree = Tree::default();
        patch(&mut tree, request.tree.as_ref())?;
        self.tables(|tables| {
            let revoked = tables.revoked.contains_key(&who.device);
            let room = room(tables, &id)?;
            room.group(who, revoked, None)
                .may_repair(info.epoch, request.epoch_seq)
                .map_err(rejected)?;
            check_signer(who, &info, &tree)?;
            let stored = room
                .epoch(request.epoch_seq)
                .and_then(|epoch| GroupInfo::parse(&epoch.group_info, MAX).ok())
                .ok_or_else(|| rejected(Rejection::NotFound))?;
            let (roster, leaves) = roster_and_leaves(room, &tree)
                .ok_or_else(|| refuse(Reason::TreeMismatch, "a leaf names nobody"))?;
            check_repair(DOMAIN, &stored, &info, &roster, &leaves).map_err(rejected)?;
            let hash = info.group_state_hash().to_vec();
            for epoch in &mut room.epochs {
                if epoch.seq == request.epoch_seq {
                    epoch.group_info = request.group_info.to_vec();
                    epoch.state_hash.clone_from(&hash);
                    epoch.tree = tree.clone();
                }
            }
            Ok(PutGroupInfoResponse {
                group_state_hash: hash.into(),
            })
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn report(&self, who: Who, request: &ReportEpochRequest) -> Done<ReportEpochResponse> {
        let id = group_id(request.group.as_ref())?;
        let now = self.now();
        self.tables(|tables| {
            let revoked = tables.revoked.contains_key(&who.device);
            let room = room(tables, &id)?;
            let group = Group {
                caller: room.at(who.device, request.epoch_seq),
                ..room.group(who, revoked, None)
            };
            let Some(epoch) = room.epoch(request.epoch_seq) else {
                return Err(match room.named(request.epoch_seq).1 {
                    Some(by_seq) => rejected(Rejection::EpochVoided {
                        current_epoch: room.head.epoch,
                        epoch_seq: room.head.epoch_seq,
                        by_seq,
                    }),
                    None => rejected(Rejection::NotFound),
                });
            };
            let reported = Reported {
                epoch_seq: epoch.seq,
                committer: epoch.committer,
            };
            match &request.report {
                Some(report_epoch_request::Report::StateHash(_)) => {
                    let after = group.confirm(who.key(), reported).map_err(rejected)?;
                    if let Some(after) = after {
                        room.head = after;
                    }
                }
                Some(report_epoch_request::Report::Failure(failure)) => {
                    check_failure(room, &id, who, failure)?;
                    if group.failure_counts(reported).map_err(rejected)? {
                        let failures = room.failures.entry(request.epoch_seq).or_default();
                        if !failures.iter().any(|(user, _, _)| *user == who.user) {
                            failures.push((who.user, failure.clone(), now));
                        }
                    }
                }
                None => return Err(status::malformed("report", "missing")),
            }
            Ok(ReportEpochResponse {
                settled_seq: room.head.settled_seq,
            })
        })
    }
}

/// The GroupInfo is signed with the caller's own leaf in the tree that comes with it.
fn check_signer(who: Who, info: &GroupInfo, tree: &Tree) -> Done<()> {
    let mut nodes = tree.nodes();
    let leaf =
        nodes.find_map(|(at, node)| (at == info.signer.checked_mul(2)?).then(|| leaf_of(node))?);
    let own = leaf.filter(|leaf| {
        let device = leaf.certificate().and_then(|der| {
            read_device(der).map_err(|_| chancery_proto::wire::Malformed("certificate"))
        });
        device.is_ok_and(|named| named.device == who.device)
            && info.verify(&leaf.signature_key) != Some(false)
    });
    own.map(|_| ())
        .ok_or_else(|| refuse(Reason::CredentialInvalid, "not signed by the caller's leaf"))
}

fn check_failure(room: &Room, id: &[u8], who: Who, failure: &FailureReport) -> Done<()> {
    let membership = room
        .rows
        .iter()
        .rfind(|row| row.who.device == who.device && row.joined < failure.commit_seq);
    let kept = membership.and_then(|row| row.signature_key.clone());
    let key = match kept.filter(|_| !mutants::is_on(Mutant::ReportKeyFromTree)) {
        Some(key) => Some(key),
        None => {
            let mut epochs = room.epochs.iter();
            let before = epochs.rfind(|epoch| epoch.seq < failure.commit_seq);
            let nodes = before.into_iter().flat_map(|epoch| epoch.tree.nodes());
            let nodes: Vec<(u32, Vec<u8>)> = nodes.map(|(i, n)| (i, n.to_vec())).collect();
            leaf_key_of(&nodes, DOMAIN, who.device)
        }
    };
    let sha256: [u8; 32] = failure
        .commit_sha256
        .as_ref()
        .try_into()
        .unwrap_or_default();
    let content = signed::failure(
        (DOMAIN, id),
        (DOMAIN, who.device.as_bytes()),
        failure.commit_seq,
        &sha256,
        failure.reason,
        failure.expires_at,
    );
    let holds =
        key.is_some_and(|key| signed::verify(&key, signed::FAILURE, &content, &failure.signature));
    match holds {
        true => Ok(()),
        false => Err(refuse(Reason::ProofInvalid, "not signed")),
    }
}

fn void(
    room: &mut Room,
    id: &[u8],
    seq: u64,
    message_id: [u8; 16],
    now: i64,
    revoked: &BTreeMap<Uuid, Vec<u8>>,
) {
    let Some(failures) = room.failures.get(&seq).cloned() else {
        return;
    };
    let (Some(epoch), Some(before)) = (
        room.epoch(seq).cloned(),
        room.epochs.iter().rfind(|epoch| epoch.seq < seq).cloned(),
    ) else {
        room.failures.remove(&seq);
        return;
    };
    let Some(committer) = epoch.committer else {
        room.failures.remove(&seq);
        return;
    };
    let mut others: Vec<Uuid> = room
        .rows
        .iter()
        .filter(|row| {
            row.joined < seq
                && row.removed.is_none_or(|at| at > seq)
                && row.who.user != committer.user
        })
        .map(|row| row.who.user)
        .collect();
    others.sort_unstable();
    others.dedup();
    let failed = Failed {
        seq,
        users: failures.iter().map(|(user, _, _)| *user).collect(),
        other_users: others.len(),
        first_at: failures.iter().map(|(_, _, at)| *at).min().unwrap_or(now),
        before: Before {
            epoch: before.number,
            epoch_seq: before.seq,
            floor_seq: before.floor_seq,
            committer: before.committer,
            past_epochs: room.head.past_epochs,
            external_join: room.head.external_join,
        },
    };
    let head = room.head.clone();
    let Some(mut append) = head.void(&failed, VOID_AFTER_MICROS, now) else {
        return;
    };
    let void_seq = append.seq;
    for row in &mut room.rows {
        if row.joined >= seq && !row.voided {
            row.removed = Some(void_seq);
            row.voided = true;
            row.pending = 0;
        } else if row.removed.is_some_and(|at| at >= seq) && row.joined < seq {
            row.removed = None;
        }
        if let Some(evidence) = revoked.get(&row.who.device)
            && row.removed.is_none()
        {
            row.pending = 2;
            row.evidence.clone_from(evidence);
        }
        if row.removed.is_none() && row.who.device == committer.key.device {
            row.barred = Some(void_seq);
        }
    }
    let marked = room
        .rows
        .iter()
        .filter(|row| row.removed.is_none() && row.pending == 2);
    append.head.pending_removals = u32::try_from(marked.count()).unwrap_or(0);
    room.epochs.retain(|epoch| epoch.seq < seq);
    room.welcomes.retain(|waiting| waiting.seq < seq);
    room.failures.clear();
    let payload = VoidPayload {
        first_seq: seq,
        last_seq: head.seq,
        reports: failures.into_iter().map(|(_, report, _)| report).collect(),
        committer: Some(device_ref(committer.key.device)),
    }
    .encode_to_vec();
    room.append(id, append, EntryKind::Void, message_id, [0; 32], &payload);
    room.voids.push((void_seq, seq, head.seq));
}
