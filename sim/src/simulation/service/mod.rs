//! The Delivery Service without a database: the wire's own messages in, `Group::decide` in the middle, vectors underneath. What is refused for its form
//! is left to the real service; what the log does is the same.
//!
//! | module | what |
//! |---|---|
//! | this one | the tables; groups made, messages taken, leaves, revocations |
//! | `room` | one group |
//! | `commit` | Commits |
//! | `recovery` | epochs reported, Commits taken back, GroupInfos repaired |
//! | `queries` | what is only read; KeyPackages and the inbox |
//! | `hostile` | what a service can do that does not mean well |

mod commit;
mod hostile;
mod queries;
mod recovery;
mod room;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use chancery_proto::{
    certificate::Anchors,
    chain,
    common::v1::{DeviceRef, GroupRef, Reason},
    content_hash::ContentHasher,
    delivery::v1::*,
    framing::{self, ContentType, Message},
    group_info::GroupInfo,
    status,
    tree::Tree,
};
use clap::Parser as _;
use delivery_service::{
    config::Limits,
    ordering::{
        content::check_creation,
        group::{Command, Committer, Decision, DeviceKey, Head, Leave, Prior, Rejection, Send},
    },
    request::{Rules, join_of, leaf_is_of, leaf_of},
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use tonic::Status;
use uuid::Uuid;

use super::clock::Clock;

/// The one domain.
pub const DOMAIN: &str = "sim.example";
const MAX: usize = 16 << 20;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    /// Its user.
    pub user: Uuid,
    /// The device.
    pub device: Uuid,
}

impl Who {
    fn key(self) -> DeviceKey {
        DeviceKey {
            domain: 1,
            device: self.device,
        }
    }
}

#[derive(Debug, Clone)]
struct Row {
    who: Who,
    joined: u64,
    removed: Option<u64>,
    /// 1 leaving, 2 revoked.
    pending: u8,
    evidence: Vec<u8>,
    barred: Option<u64>,
    voided: bool,
    /// The key of the leaf that it was let in with.
    signature_key: Option<Vec<u8>>,
}

impl Row {
    fn joined(who: Who, seq: u64, signature_key: Option<Vec<u8>>) -> Self {
        Self {
            who,
            joined: seq,
            removed: None,
            pending: 0,
            evidence: Vec::new(),
            barred: None,
            voided: false,
            signature_key,
        }
    }
}

#[derive(Debug, Clone)]
struct Epoch {
    number: u64,
    seq: u64,
    group_info: Vec<u8>,
    state_hash: Vec<u8>,
    tree: Tree,
    shared: Vec<u8>,
    committer: Option<Committer>,
    floor_seq: u64,
}

/// One entry with what only the service knows of it.
#[derive(Debug, Clone)]
pub struct Logged {
    /// As it is read.
    pub entry: Entry,
    content_hash: [u8; 32],
}

impl Logged {
    fn payload(&self) -> Option<&[u8]> {
        match &self.entry.body {
            Some(entry::Body::Payload(payload)) => Some(payload),
            _ => None,
        }
    }
}

#[derive(Debug, Clone)]
struct Waiting {
    to: Who,
    seq: u64,
    reference: Vec<u8>,
    secrets: Vec<u8>,
    read: bool,
}

/// One group.
#[derive(Debug, Clone)]
pub struct Room {
    /// The head row.
    pub head: Head,
    /// In order.
    pub log: Vec<Logged>,
    suite: u16,
    created: [u8; 32],
    epochs: Vec<Epoch>,
    rows: Vec<Row>,
    welcomes: Vec<Waiting>,
    /// Failures by epoch: user, report, time.
    failures: BTreeMap<u64, Vec<(Uuid, FailureReport, i64)>>,
    /// `(void, first, last)`.
    voids: Vec<(u64, u64, u64)>,
}

#[derive(Debug, Clone)]
struct Package {
    owner: Who,
    reference: Vec<u8>,
    suite: u16,
    last_resort: bool,
    claimed: Option<[u8; 16]>,
    /// How often it was given out.
    given: u32,
    body: Vec<u8>,
}

/// Everything that the service knows.
#[derive(Debug, Default)]
pub struct Tables {
    /// By id.
    pub rooms: BTreeMap<Vec<u8>, Room>,
    packages: Vec<Package>,
    /// The user of each device that ever called.
    devices: BTreeMap<Uuid, Uuid>,
    /// With the signed statement.
    revoked: BTreeMap<Uuid, Vec<u8>>,
    /// Commits that came second.
    pub stale: u64,
    ids: u64,
    /// How often it was restored.
    incarnation: u64,
    withheld_packages: BTreeSet<Uuid>,
    withheld_welcomes: BTreeSet<Uuid>,
    /// Groups whose trees are gone.
    treeless: BTreeSet<Vec<u8>>,
    swapped_packages: BTreeMap<Uuid, Vec<u8>>,
}

/// The service.
#[derive(Debug)]
pub struct Service {
    tables: Mutex<Tables>,
    clock: Clock,
    anchors: Anchors,
    limits: Limits,
}

/// The service's limits by default.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    limits: Limits,
}

type Done<T> = Result<T, Status>;

fn refuse(reason: Reason, text: &str) -> Status {
    status::refusal(reason, text, [])
}

fn rejected(rejection: Rejection) -> Status {
    delivery_service::error::status(rejection.into())
}

fn group_id(group: Option<&GroupRef>) -> Done<Vec<u8>> {
    group
        .map(|group| group.id.to_vec())
        .ok_or_else(|| status::malformed("group", "missing"))
}

fn reference(id: &[u8]) -> GroupRef {
    GroupRef {
        domain: DOMAIN.into(),
        id: id.to_vec().into(),
    }
}

fn id16(bytes: &[u8]) -> Done<[u8; 16]> {
    bytes
        .try_into()
        .map_err(|_| status::malformed("id", "16 bytes"))
}

fn device_ref(device: Uuid) -> DeviceRef {
    DeviceRef {
        domain: DOMAIN.into(),
        id: device.as_bytes().to_vec().into(),
    }
}

fn malformed(error: chancery_proto::wire::Malformed) -> Status {
    status::malformed("message", error.0)
}

impl Service {
    /// Nothing in it. Certificates are verified with these anchors.
    pub fn new(clock: Clock, anchors: Anchors) -> Self {
        Self {
            tables: Mutex::default(),
            clock,
            anchors,
            limits: Defaults::parse_from(["sim"]).limits,
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            domain: DOMAIN,
            limits: &self.limits,
            domain_id: &|domain| (domain == DOMAIN).then_some(1),
        }
    }

    /// Looks at, or changes, what the service knows.
    pub fn tables<T>(&self, work: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self
            .tables
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        work(&mut tables)
    }

    fn now(&self) -> i64 {
        self.clock.micros()
    }

    /// Refuses who was revoked.
    ///
    /// # Errors
    /// `DEVICE_REVOKED`.
    pub fn admit(&self, who: Who) -> Done<()> {
        let revoked = self.tables(|tables| {
            tables.devices.entry(who.device).or_insert(who.user);
            tables.revoked.contains_key(&who.device)
        });
        match revoked {
            true => Err(refuse(Reason::DeviceRevoked, "this device was revoked")),
            false => Ok(()),
        }
    }

    /// Records a revocation, and marks it in every group.
    pub fn revoke(&self, device: Uuid, evidence: &[u8]) {
        let now = self.now();
        self.tables(|tables| {
            tables.revoked.insert(device, evidence.to_vec());
            tables
                .packages
                .retain(|p| p.owner.device != device || p.claimed.is_some());
            for (id, room) in &mut tables.rooms {
                let Some(row) = room.rows.iter_mut().find(|row| {
                    row.who.device == device && row.removed.is_none() && row.pending != 2
                }) else {
                    continue;
                };
                row.pending = 2;
                row.evidence = evidence.to_vec();
                tables.ids += 1;
                let message_id = u128::from(tables.ids).to_be_bytes();
                let append = room.head.mark_revoked(now);
                let kind = EntryKind::RemovalRequested;
                room.append(id, append, kind, message_id, [0; 32], evidence);
            }
        });
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn create_group(
        &self,
        who: Who,
        request: &CreateGroupRequest,
    ) -> Done<CreateGroupResponse> {
        let id = group_id(request.group.as_ref())?;
        let info = GroupInfo::parse(&request.group_info, MAX).map_err(malformed)?;
        let hash: [u8; 32] = Sha256::digest(request.encode_to_vec()).into();
        let mut tree = Tree::default();
        patch(&mut tree, request.tree.as_ref())?;
        let mut nodes = tree.nodes();
        let leaf = match (nodes.next(), nodes.next()) {
            (Some((0, node)), None) => leaf_of(node),
            _ => None,
        };
        let leaf = leaf.ok_or_else(|| status::malformed("tree", "exactly one leaf"))?;
        drop(nodes);
        let now = self.now();
        let device = (DOMAIN, who.device, who.user);
        leaf_is_of(&self.anchors, device, &leaf, now / 1_000_000)
            .map_err(delivery_service::error::status)?;
        let suite = u16::try_from(request.suite).unwrap_or(0);
        let policy = check_creation(DOMAIN, (&id, suite), &info, &leaf).map_err(rejected)?;
        self.tables(|tables| {
            let answer = |replayed| CreateGroupResponse {
                head_seq: 0,
                epoch: info.epoch,
                epoch_seq: 0,
                chain: chain::start().to_vec().into(),
                replayed,
            };
            if let Some(room) = tables.rooms.get(&id) {
                return match room.created == hash {
                    true => Ok(answer(true)),
                    false => Err(refuse(Reason::GroupExists, "used before")),
                };
            }
            if let Some(old) = &request.replaces {
                close(tables, who, old, &id, now)?;
            }
            let head = Head::created(
                info.epoch,
                policy.past_epochs.into(),
                join_of(policy.external_join),
            );
            let epoch = Epoch {
                number: info.epoch,
                seq: 0,
                group_info: request.group_info.to_vec(),
                state_hash: info.group_state_hash().to_vec(),
                tree,
                shared: Vec::new(),
                committer: None,
                floor_seq: 0,
            };
            let row = Row::joined(who, 0, Some(leaf.signature_key.clone()));
            let room = Room {
                head,
                log: Vec::new(),
                suite: info.suite,
                created: hash,
                epochs: vec![epoch],
                rows: vec![row],
                welcomes: Vec::new(),
                failures: BTreeMap::new(),
                voids: Vec::new(),
            };
            tables.rooms.insert(id, room);
            Ok(answer(false))
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn send(&self, who: Who, request: &SendMessageRequest) -> Done<SendMessageResponse> {
        let id = group_id(request.group.as_ref())?;
        let message_id = id16(&request.message_id)?;
        let Message::Private(header) = framing::parse(&request.message, MAX).map_err(malformed)?
        else {
            return Err(refuse(Reason::UnsupportedWireFormat, "PrivateMessage only"));
        };
        let content_hash = ContentHasher::new("SendMessage")
            .field(1, &id)
            .field(2, &message_id)
            .field(3, &request.message)
            .number(4, request.epoch_seq)
            .finish();
        let now = self.now();
        self.tables(|tables| {
            let revoked = tables.revoked.contains_key(&who.device);
            let room = room(tables, &id)?;
            let (named_epoch, voided_by) = room.named(request.epoch_seq);
            let command = Command::Send(Send {
                device: who.key(),
                content_hash,
                proposal: header.content_type == ContentType::Proposal,
                epoch: header.epoch,
                epoch_seq: request.epoch_seq,
                named_epoch,
                voided_by,
            });
            let group = room.group(who, revoked, room.prior(who, &message_id));
            let answer = |room: &Room, prior: &Prior, replayed| SendMessageResponse {
                message_id: request.message_id.clone(),
                seq: prior.seq,
                chain: prior.chain.to_vec().into(),
                outcome: room.outcome(prior.epoch_seq, prior.voided_by),
                voided_by_seq: prior.voided_by.unwrap_or(0),
                replayed,
                accepted_at_micros: prior.accepted_at,
            };
            match group.decide(&command, now).map_err(rejected)? {
                Decision::Replay(prior) => Ok(answer(room, &prior, true)),
                Decision::Append(append) => {
                    let kind = match header.content_type {
                        ContentType::Proposal => EntryKind::Proposal,
                        _ => EntryKind::Application,
                    };
                    room.append(
                        &id,
                        append,
                        kind,
                        message_id,
                        content_hash,
                        &request.message,
                    );
                    let prior = room
                        .prior(who, &message_id)
                        .ok_or_else(|| Status::internal("not there"))?;
                    Ok(answer(room, &prior, false))
                }
            }
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn leave(&self, who: Who, request: &LeaveGroupRequest) -> Done<LeaveGroupResponse> {
        let id = group_id(request.group.as_ref())?;
        let message_id = id16(&request.message_id)?;
        let payload = LeaveRequestPayload {
            device: Some(device_ref(who.device)),
            joined_seq: request.joined_seq,
            expires_at: request.expires_at,
            signature: request.signature.clone(),
        }
        .encode_to_vec();
        let now = self.now();
        self.tables(|tables| {
            let revoked = tables.revoked.contains_key(&who.device);
            let room = room(tables, &id)?;
            let content_hash = Sha256::digest(&payload).into();
            let command = Command::Leave(Leave {
                content_hash,
                joined_seq: request.joined_seq,
            });
            let group = room.group(who, revoked, room.prior(who, &message_id));
            let (seq, replayed) = match group.decide(&command, now).map_err(rejected)? {
                Decision::Replay(prior) => (prior.seq, true),
                Decision::Append(append) => {
                    let seq = append.seq;
                    let kind = EntryKind::LeaveRequest;
                    room.append(&id, append, kind, message_id, content_hash, &payload);
                    let open = |row: &&mut Row| {
                        row.who == who && row.removed.is_none() && row.pending == 0
                    };
                    for row in room.rows.iter_mut().filter(open) {
                        row.pending = 1;
                        row.evidence.clone_from(&payload);
                    }
                    (seq, false)
                }
            };
            Ok(LeaveGroupResponse {
                seq,
                chain: room.head.chain.to_vec().into(),
                replayed,
            })
        })
    }

    /// See the wire.
    ///
    /// # Errors
    /// See the wire.
    pub fn pending(
        &self,
        who: Who,
        request: &ListPendingRemovalsRequest,
    ) -> Done<ListPendingRemovalsResponse> {
        let id = group_id(request.group.as_ref())?;
        self.tables(|tables| {
            let room = room(tables, &id)?;
            if !room.is_member(who.device) {
                return Err(rejected(Rejection::NotFound));
            }
            let marked = room
                .rows
                .iter()
                .filter(|row| row.removed.is_none() && row.pending > 0);
            Ok(ListPendingRemovalsResponse {
                removals: marked
                    .map(|row| PendingRemoval {
                        device: Some(device_ref(row.who.device)),
                        evidence: row.evidence.clone().into(),
                        leaving: row.pending == 1,
                    })
                    .collect(),
                next_page_token: String::new(),
            })
        })
    }
}

fn room<'t>(tables: &'t mut Tables, id: &[u8]) -> Done<&'t mut Room> {
    tables
        .rooms
        .get_mut(id)
        .ok_or_else(|| rejected(Rejection::NotFound))
}

fn patch(tree: &mut Tree, update: Option<&TreeUpdate>) -> Done<()> {
    let update = update.ok_or_else(|| status::malformed("tree", "missing"))?;
    if update.full {
        *tree = Tree::default();
    }
    tree.resize(update.tree_width).map_err(malformed)?;
    for change in &update.nodes {
        tree.set(change.index, change.node.as_deref())
            .map_err(malformed)?;
    }
    Ok(())
}

fn close(tables: &mut Tables, who: Who, old: &Replaces, successor: &[u8], now: i64) -> Done<()> {
    let id = group_id(old.group.as_ref())?;
    let revoked = tables.revoked.contains_key(&who.device);
    tables.ids += 1;
    let message_id = u128::from(tables.ids).to_be_bytes();
    let room = room(tables, &id)?;
    let append = room
        .group(who, revoked, None)
        .replace(old.head_seq, now)
        .map_err(rejected)?;
    let payload = ReplacedPayload {
        successor: Some(reference(successor)),
        by: Some(device_ref(who.device)),
    }
    .encode_to_vec();
    room.append(
        &id,
        append,
        EntryKind::Replaced,
        message_id,
        [0; 32],
        &payload,
    );
    Ok(())
}
