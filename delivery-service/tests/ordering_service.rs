//! The service on PostgreSQL, two nodes in turn, against the naive model of `ordering.rs`: the same requests, the same answers. Fewer cases, each with real
//! transactions; a case that fails is made smaller by proptest.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod naive;
mod support;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{CommitBundle, LeaveGroupRequest, SendMessageRequest, SubmitCommitRequest},
    signed,
    tree::Tree,
};
use delivery_service::{
    ordering::group::{Command, Commit, CommitKind, Leave, Send},
    store,
};
use naive::{DEVICES, Model, Op, hash_of, ops, user};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner},
};
use service_kit::db::{Db, PoolOptions};
use support::{Group, World, forge, log, reason};
use tonic::Status;
use uuid::Uuid;

const CASES: u32 = 48;
const MARKED_WITHIN: Duration = Duration::from_secs(20);

/// As it was sent: a repeat is the same bytes.
#[derive(Clone)]
enum Request {
    Send(SendMessageRequest),
    Commit(SubmitCommitRequest),
    Leave(LeaveGroupRequest),
}

/// What came back: its seq, and whether it was there already.
type Answer = Result<(u64, bool), Status>;

/// One group whose devices are those of the model.
struct Case<'a> {
    world: &'a World,
    db: Db,
    devices: Vec<forge::Device>,
    refs: Vec<Vec<u8>>,
    group: Group,
    /// Leaves by place, as the last Commit left them.
    leaves: Vec<u128>,
    /// Of each accepted entry.
    requests: Vec<Request>,
    model: Model,
    /// Who asked to leave; when nobody stays, the group is closed and the case is over.
    leaving: BTreeSet<u128>,
    /// What happened, over all cases.
    met: &'a RefCell<BTreeSet<&'static str>>,
}

impl<'a> Case<'a> {
    async fn new(world: &'a World, met: &'a RefCell<BTreeSet<&'static str>>) -> Self {
        // The model knows its devices by number, so its users are fresh ones in this world.
        let users: Vec<Uuid> = (0..DEVICES).map(|_| Uuid::new_v4()).collect();
        let person = |n: u128| (0..DEVICES).find(|m| user(*m) == user(n));
        let mut devices = Vec::new();
        let mut refs = Vec::new();
        for n in 0..DEVICES {
            let first = usize::try_from(person(n).unwrap()).unwrap();
            let device = world.device(users[first]);
            refs.push(world.publish(&device).await);
            devices.push(device);
        }
        Self {
            world,
            db: Db::connect(&world.db.url(), &PoolOptions::default()).unwrap(),
            group: Group::create(world, &devices[0]).await,
            devices,
            refs,
            leaves: vec![0],
            requests: Vec::new(),
            model: Model::new(),
            leaving: BTreeSet::new(),
            met,
        }
    }

    fn device(&self, n: u128) -> &forge::Device {
        &self.devices[usize::try_from(n).unwrap()]
    }

    /// The bytes for a command of the model.
    fn request(&self, by: u128, command: &Command) -> Request {
        // The ids are made of the hash, so that equal commands are equal requests.
        let id = Uuid::from_slice(&hash_of(command)[..16]).unwrap();
        match command {
            Command::Send(send) => Request::Send(self.send(id, send)),
            Command::Commit(commit) => Request::Commit(self.commit(by, id, commit)),
            Command::Leave(leave) => Request::Leave(self.leave(by, id, leave)),
        }
    }

    fn send(&self, id: Uuid, send: &Send) -> SendMessageRequest {
        let in_epoch = Group {
            epoch: send.epoch,
            epoch_seq: send.epoch_seq,
            ..self.group.clone()
        };
        in_epoch.message(id, if send.proposal { 2 } else { 1 })
    }

    fn leave(&self, by: u128, id: Uuid, leave: &Leave) -> LeaveGroupRequest {
        let device = self.device(by);
        let expires_at = time::OffsetDateTime::now_utc().unix_timestamp() + 600;
        let asked = signed::leave(
            (forge::DOMAIN, &self.group.id),
            (forge::DOMAIN, device.device.as_bytes()),
            leave.joined_seq,
            expires_at,
        );
        LeaveGroupRequest {
            group: Some(self.group.reference()),
            message_id: id.as_bytes().to_vec().into(),
            joined_seq: leave.joined_seq,
            expires_at,
            signature: device
                .sign(&signed::to_be_signed(signed::LEAVE, &asked))
                .into(),
        }
    }

    fn leaves_after(&self, commit: &Commit) -> Vec<u128> {
        let number = |key: &delivery_service::ordering::group::DeviceKey| key.device.as_u128();
        let removed: Vec<u128> = commit.removed.iter().map(|r| number(&r.key)).collect();
        let stay = self.leaves.iter().filter(|leaf| !removed.contains(leaf));
        let mut leaves: Vec<u128> = stay.copied().collect();
        leaves.extend(commit.added.iter().map(|a| number(&a.key)));
        leaves.sort_unstable();
        leaves.dedup();
        leaves
    }

    /// Where the leaf of a device is.
    fn place(&self, device: u128) -> u32 {
        let place = self.leaves.iter().position(|n| *n == device);
        u32::try_from(place.unwrap_or(self.leaves.len())).unwrap()
    }

    /// Who comes from outside changes its own leaf only; what is added stands there as it was published.
    fn tree_after(&self, by: u128, commit: &Commit) -> Tree {
        if matches!(commit.kind, CommitKind::External { .. }) {
            let place = self.place(by);
            let leaf = self
                .device(by)
                .salted_external_leaf(&self.group.id, place, commit.epoch);
            let mut tree = self.group.tree.clone();
            let width = tree.width().max((place + 1).next_power_of_two());
            tree.resize(width).unwrap();
            let node = [&[1, 1], leaf.as_slice()].concat();
            tree.set(2 * place, Some(&node)).unwrap();
            return tree;
        }
        let is_added = |n: &u128| commit.added.iter().any(|a| a.key.device.as_u128() == *n);
        let leaf = |n: &u128| match is_added(n) {
            true => self.device(*n).leaf_node(1),
            false => self.device(*n).own_leaf_node(1),
        };
        let leaves: Vec<Vec<u8>> = self.leaves_after(commit).iter().map(leaf).collect();
        forge::tree_of(&leaves)
    }

    fn commit(&self, by: u128, id: Uuid, commit: &Commit) -> SubmitCommitRequest {
        let named = |keys: Vec<u128>| -> Vec<&forge::Device> {
            keys.into_iter().map(|n| self.device(n)).collect()
        };
        let added: Vec<u128> = commit
            .added
            .iter()
            .map(|a| a.key.device.as_u128())
            .collect();
        let removed = commit.removed.iter().map(|r| r.key.device.as_u128());
        let info = self
            .group
            .info(&named(added.clone()), &named(removed.collect()));
        let data = forge::data(id, Some(info));
        let after = self.tree_after(by, commit);
        let external = matches!(commit.kind, CommitKind::External { .. });
        let bytes = if external {
            let context = self.group.context(commit.epoch, &self.group.tree);
            let (who, place) = (self.device(by), self.place(by));
            let external = forge::External {
                removes: vec![place],
                leaf: who.salted_external_leaf(&self.group.id, place, commit.epoch),
                ..forge::External::default()
            };
            who.external_commit((&self.group.id, commit.epoch), &data, &context, &external)
        } else {
            forge::private(&self.group.id, commit.epoch, 3, &data)
        };
        let refs: Vec<Vec<u8>> = added
            .iter()
            .map(|n| self.refs[usize::try_from(*n).unwrap()].clone())
            .collect();
        let welcomes = match (external, refs.is_empty()) {
            (false, false) => vec![forge::welcome(&refs).into()],
            _ => vec![],
        };
        let context = self.group.context(commit.epoch + 1, &after);
        let bundle = CommitBundle {
            message_id: id.as_bytes().to_vec().into(),
            commit: bytes.into(),
            welcomes,
            group_info: forge::group_info(&context, &after).into(),
            tree: Some(after.to_update()),
            ..CommitBundle::default()
        };
        SubmitCommitRequest {
            epoch_seq: commit.epoch_seq,
            ..self.group.bundle(bundle)
        }
    }

    async fn ask(&self, by: u128, request: &Request) -> Answer {
        let (who, mut client) = (self.device(by), self.world.client());
        Ok(match request.clone() {
            Request::Send(send) => {
                let sent = client.send_message(self.world.by(who, send)).await?;
                (sent.get_ref().seq, sent.get_ref().replayed)
            }
            Request::Commit(commit) => {
                let done = client.submit_commit(self.world.by(who, commit)).await?;
                let result = &done.get_ref().results[0];
                (result.seq, result.replayed)
            }
            Request::Leave(leave) => {
                let left = client.leave_group(self.world.by(who, leave)).await?;
                (left.get_ref().seq, left.get_ref().replayed)
            }
        })
    }

    /// A revocation is recorded, and a sweep has marked the member.
    async fn revoke(&mut self, device: u128) {
        self.world.revoke(self.device(device)).await;
        self.model.revoke(device);
        let until = Instant::now() + MARKED_WITHIN;
        loop {
            let client = self.db.client().await.unwrap();
            let head = store::groups::head(&client, &self.group.id).await;
            let head = head.unwrap().unwrap();
            if head.pending_removals == self.model.head.pending_removals {
                // The mark is an entry of its own.
                self.model.head.seq = head.seq;
                (self.group.seq, self.group.chain) = (head.seq, head.chain);
                return;
            }
            assert!(Instant::now() < until, "nobody marks the revoked device");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn step(&mut self, number: usize, op: &Op) -> Result<(), TestCaseError> {
        if let Op::Revoke { device } = op {
            if !self.model.revoked.contains(device) {
                self.revoke(*device).await;
            }
            return Ok(());
        }
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
        let Some((by, command)) = self.model.command(op, hash) else {
            return Ok(());
        };
        let expected = self.model.expect(by, &command);
        let past = self
            .model
            .log
            .iter()
            .position(|past| past.hash == hash_of(&command));
        let request = match past {
            Some(place) => self.requests[place].clone(),
            None => self.request(by, &command),
        };
        let answer = self.ask(by, &request).await;
        let met = expected.err().unwrap_or(match &command {
            Command::Send(_) => "sent",
            Command::Commit(commit) if commit.kind == CommitKind::Member => "committed",
            Command::Commit(_) => "came back",
            Command::Leave(_) => "left",
        });
        self.met.borrow_mut().insert(met);
        match (expected, answer) {
            (Err("replay"), Ok((seq, true))) => {
                let first = past.map(|place| self.model.log[place].seq);
                prop_assert_eq!(first, Some(seq), "a repeat gets the first answer");
            }
            (Ok(()), Ok((seq, false))) => {
                prop_assert_eq!(seq, self.group.seq + 1, "dense");
                self.accepted(by, &command, request, seq).await;
            }
            (Err(expected), Err(status)) => prop_assert_eq!(name(&status), expected),
            (expected, answer) => {
                prop_assert!(
                    false,
                    "{command:?}: expected {expected:?}, answered {answer:?}"
                );
            }
        }
        Ok(())
    }

    async fn accepted(&mut self, by: u128, command: &Command, request: Request, seq: u64) {
        if matches!(command, Command::Leave(_)) {
            self.leaving.insert(by);
        }
        if let Command::Commit(commit) = command {
            for removed in &commit.removed {
                self.leaving.remove(&removed.key.device.as_u128());
            }
            self.group.tree = self.tree_after(by, commit);
            self.leaves = self.leaves_after(commit);
            self.group.epoch = commit.epoch + 1;
            self.group.epoch_seq = seq;
        }
        let mut head = self.model.head.clone();
        head.seq = seq;
        self.model.apply(by, command, seq, head);
        self.requests.push(request);
        let client = self.db.client().await.unwrap();
        let chain = store::log::chain_at(&client, &self.group.id, seq).await;
        (self.group.seq, self.group.chain) = (seq, chain.unwrap().expect("it was accepted"));
    }

    /// Everybody who may read still reads what the model holds of it, and nobody else anything.
    async fn everybody_reads(&self) -> Result<(), TestCaseError> {
        for n in 0..DEVICES {
            let read = log(self.world, self.device(n), &self.group).await;
            let all = 1..=self.group.seq;
            let wanted: Vec<u64> = all.filter(|seq| self.model.may_read(n, *seq)).collect();
            if self.model.revoked.contains(&n) || !self.model.intervals.iter().any(|i| i.0 == n) {
                prop_assert!(read.is_err(), "device {n} reads");
                continue;
            }
            let read = read.map_err(|status| TestCaseError::fail(status.to_string()))?;
            let read: Vec<u64> = read.iter().map(|entry| entry.seq).collect();
            prop_assert_eq!(read, wanted, "what device {} reads", n);
        }
        Ok(())
    }
}

fn name(status: &Status) -> &'static str {
    match reason(status) {
        Reason::Group => "not found",
        Reason::DeviceRevoked => "revoked",
        Reason::StaleEpoch => "stale",
        Reason::EpochTooOld => "too old",
        Reason::PendingRemoval => "pending",
        Reason::CommitInfoInvalid => "commit info",
        Reason::UnknownValue => "other membership",
        _ => "unexpected",
    }
}

async fn play(
    world: &World,
    met: &RefCell<BTreeSet<&'static str>>,
    ops: &[Op],
) -> Result<(), TestCaseError> {
    let mut case = Case::new(world, met).await;
    for (number, op) in ops.iter().enumerate() {
        case.step(number, op).await?;
        if case.leaves.iter().all(|leaf| case.leaving.contains(leaf)) {
            break;
        }
    }
    case.everybody_reads().await
}

/// What a run without which would prove little.
const KINDS: [&str; 12] = [
    "sent",
    "committed",
    "came back",
    "left",
    "replay",
    "not found",
    "revoked",
    "stale",
    "too old",
    "pending",
    "commit info",
    "other membership",
];

#[test]
fn the_service_says_what_the_contract_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let world = runtime.block_on(World::start(2, &[]));
    let met = RefCell::default();
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner =
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let played = runner.run(&ops(), |ops| runtime.block_on(play(&world, &met, &ops)));
    if let Err(failure) = played {
        panic!("{failure}");
    }
    let met = met.into_inner();
    let missed: Vec<_> = KINDS.iter().filter(|kind| !met.contains(*kind)).collect();
    assert!(missed.is_empty(), "never happened: {missed:?}");
}
