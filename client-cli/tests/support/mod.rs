//! Members with stores and certificates of their own, and a log made by hand.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "each test file uses a part"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use chancery_proto::{
    auth::v1::{DeviceStatus, SignedStatus, StatusChange, device_status, signed_status},
    certificate::{Anchors, DEVICE_EKU, STATUS_EKU, device_uri, user_uri},
    chain::{self, ChainInput},
    common::v1::DeviceRef,
    delivery::v1::{Entry, EntryKind, SendMessageRequest, SubmitCommitRequest, Welcome as Frame},
    key_package::KeyPackage as KeyPackageBytes,
    mutants::{self, Mutant},
    policy::{POLICY_EXTENSION, Policy},
    signed,
    welcome::Welcome as WelcomeBytes,
};
use client_cli::{
    core::{
        Context, CoreError,
        apply::{self, Page, Received},
        commit::{self, Plan},
        group,
        identity::{Identity, Trust},
        join,
        records::{self, GroupName, GroupRecord, GroupState, Intent, Person},
        stage,
    },
    store::{Step, Store},
};
use openmls::prelude::*;
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType, SigningKey as _,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

pub const DOMAIN: &str = "interior.example";

pub fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

pub fn authority(path: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let level = format!("level {path}");
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, level);
    params
}

/// A root, and the intermediate that signs devices.
pub struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    intermediate: Vec<u8>,
    pub trust: Trust,
}

impl Authority {
    pub fn new() -> Self {
        let key = || KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let root_key = key();
        let root = authority(1).self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = Issuer::new(authority(1), root_key);
        let intermediate_key = key();
        let mut params = authority(0);
        params.extended_key_usages = [DEVICE_EKU, STATUS_EKU]
            .map(|usage| ExtendedKeyUsagePurpose::Other(usage.to_vec()))
            .to_vec();
        let intermediate = params.signed_by(&intermediate_key, &root_issuer).unwrap();
        let anchors = Anchors::pinned(&root, &[intermediate.der().to_vec()], now()).unwrap();
        let mut trust = Trust::default();
        trust.pin(DOMAIN, anchors);
        Self {
            intermediate: intermediate.der().to_vec(),
            issuer: Issuer::new(params, intermediate_key),
            trust,
        }
    }

    /// What the Authentication Service says of a device, signed.
    pub fn status(&self, device: &Person, change: StatusChange) -> SignedStatus {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(STATUS_EKU.to_vec())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let status = DeviceStatus {
            seq: 1,
            subject: Some(device_status::Subject::Device(DeviceRef {
                domain: device.domain.clone(),
                id: device.device.to_vec().into(),
            })),
            change: change.into(),
            at_micros: now() * 1_000_000,
            ..DeviceStatus::default()
        }
        .encode_to_vec();
        let signature = key.sign(&signed::to_be_signed(signed::STATUS, &status));
        SignedStatus {
            content: Some(signed_status::Content::Status(status.into())),
            signature: signature.unwrap().into(),
            chain: vec![
                certificate.der().to_vec().into(),
                self.intermediate.clone().into(),
            ],
        }
    }

    /// A device that is vouched for.
    pub fn identity(&self) -> Identity {
        self.identity_until(None)
    }

    /// A device whose certificate ends so many seconds from now.
    pub fn identity_until(&self, seconds: Option<i64>) -> Identity {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (user, device) = (Uuid::new_v4(), Uuid::new_v4());
        let uri = |text: String| SanType::URI(text.try_into().unwrap());
        let mut params = CertificateParams::default();
        if let Some(seconds) = seconds {
            params.not_after = time::OffsetDateTime::from_unix_timestamp(now() + seconds).unwrap();
        }
        params.subject_alt_names =
            vec![uri(user_uri(DOMAIN, user)), uri(device_uri(DOMAIN, device))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            person: Person {
                domain: DOMAIN.into(),
                user: *user.as_bytes(),
                device: *device.as_bytes(),
            },
            certificate: certificate.der().to_vec(),
            pkcs8: Zeroizing::new(key.serialize_der()),
            p256: None,
        }
    }

    pub fn member(&self) -> Member {
        self.member_as(self.identity())
    }

    pub fn member_as(&self, identity: Identity) -> Member {
        let folder = tempfile::tempdir().unwrap();
        Member {
            store: Store::open(folder.path()).unwrap(),
            identity,
            trust: self.trust.clone(),
            ahead_seconds: 0,
            keeper: Some(folder),
        }
    }
}

pub struct Member {
    pub store: Store,
    pub identity: Identity,
    pub trust: Trust,
    /// Its clock is ahead by so much.
    pub ahead_seconds: i64,
    /// Of its folder, which ends with it.
    pub keeper: Option<tempfile::TempDir>,
}

impl Member {
    pub fn folder(&self) -> &std::path::Path {
        self.keeper.as_ref().unwrap().path()
    }

    pub fn step<T>(
        &mut self,
        work: impl FnOnce(&Step<'_>, Context<'_>) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        let context = Context {
            identity: &self.identity,
            trust: &self.trust,
            now: now() + self.ahead_seconds,
            removals_per_hour: 10,
            left_out_wait_seconds: 0,
        };
        self.store.step(|step| work(step, context))
    }

    pub fn key_package(&mut self) -> Vec<u8> {
        self.step(|step, context| {
            let key = context.identity.leaf_key(group::SUITES[0])?;
            let made = KeyPackage::builder()
                .leaf_node_capabilities(group::capabilities())
                .build(group::SUITES[0], step.provider(), &key, key.credential())
                .unwrap();
            Ok(MlsMessageOut::from(made.key_package().clone())
                .to_bytes()
                .unwrap())
        })
        .unwrap()
    }

    pub fn tree(&mut self, name: &GroupName) -> RatchetTreeIn {
        self.step(|step, _| Ok(group::load(step, name)?.export_ratchet_tree().into()))
            .unwrap()
    }

    pub fn record(&mut self, name: &GroupName) -> GroupRecord {
        self.step(|step, _| Ok(records::group(step, name)?.unwrap()))
            .unwrap()
    }

    pub fn read(&mut self, log: &Log) -> Page {
        let after = usize::try_from(self.record(&log.name).head_seq).unwrap();
        let new = log.entries[after..].to_vec();
        self.step(|step, context| apply::page(step, context, &log.name, &new))
            .unwrap()
    }

    pub fn authenticator(&mut self, name: &GroupName) -> Vec<u8> {
        self.step(|step, _| {
            let group = group::load(step, name)?;
            Ok(group.epoch_authenticator().as_slice().to_vec())
        })
        .unwrap()
    }
}

/// What the server would have.
pub struct Log {
    pub name: GroupName,
    pub entries: Vec<Received>,
}

impl Log {
    pub fn append(&mut self, kind: EntryKind, epoch: (u64, u64), id: [u8; 16], payload: Vec<u8>) {
        let before = self.entries.last().map_or(chain::start(), |last| {
            last.entry.chain.as_ref().try_into().unwrap()
        });
        let seq = self.entries.len() as u64 + 1;
        let kind = u32::try_from(i32::from(kind)).unwrap();
        let input = ChainInput {
            group: &self.name.id,
            seq,
            epoch_seq: epoch.1,
            kind,
            message_id: &id,
            accepted_at_micros: now() * 1_000_000,
            payload_sha256: &Sha256::digest(&payload).into(),
        };
        let entry = Entry {
            seq,
            epoch: epoch.0,
            epoch_seq: epoch.1,
            kind,
            message_id: id.to_vec().into(),
            accepted_at_micros: input.accepted_at_micros,
            chain: chain::next(&before, &input).to_vec().into(),
            ..Entry::default()
        };
        self.entries.push(Received { entry, payload });
    }

    /// Takes a member's pending Commit as the server would; its Welcome, if it has one.
    pub fn take_commit(&mut self, by: &mut Member) -> Option<Vec<u8>> {
        let record = by.record(&self.name);
        let pending = record.pending.unwrap();
        let mut request = SubmitCommitRequest::decode(pending.request.as_slice()).unwrap();
        let bundle = request.bundles.remove(0);
        self.append(
            EntryKind::Commit,
            (record.epoch, record.epoch_seq),
            pending.message_id,
            bundle.commit.to_vec(),
        );
        bundle.welcomes.first().map(|w| w.to_vec())
    }

    pub fn send(&mut self, by: &mut Member, text: &str) {
        let name = self.name.clone();
        let id = *Uuid::new_v4().as_bytes();
        let (record, outgoing) = by
            .step(|step, context| {
                let record = commit::active(step, &name)?;
                let outgoing = commit::message(step, context, &record, id, text.as_bytes())?;
                Ok((record, outgoing))
            })
            .unwrap();
        let request = SendMessageRequest::decode(outgoing.request.as_slice()).unwrap();
        let epoch = (record.epoch, record.epoch_seq);
        self.append(EntryKind::Application, epoch, id, request.message.to_vec());
    }

    /// Adds a member in one Commit; everybody reads it.
    pub fn add(&mut self, by: &mut Member, joiner: &mut Member) {
        let frame = self.invite(by, joiner.key_package());
        let tree = by.tree(&self.name);
        joiner
            .step(|step, context| join::welcome(step, context, &frame, tree))
            .unwrap();
    }

    /// Commits a new member; its Welcome.
    pub fn invite(&mut self, by: &mut Member, package: Vec<u8>) -> Frame {
        let reference = KeyPackageBytes::parse(&package, 100_000)
            .unwrap()
            .reference()
            .unwrap();
        let intent = Intent {
            key_packages: vec![package],
            ..Intent::default()
        };
        stage(by, &self.name, &intent);
        let welcome = self.take_commit(by).unwrap();
        by.read(self);
        let last = &self.entries.last().unwrap().entry;
        Frame {
            group: Some(self.name.to_ref()),
            seq: last.seq,
            epoch_seq: last.seq,
            welcome: WelcomeBytes::parse(&welcome, 100_000)
                .unwrap()
                .cut(&reference)
                .unwrap()
                .into(),
            chain: last.chain.clone(),
            ..Frame::default()
        }
    }
}

pub fn stage(by: &mut Member, name: &GroupName, intent: &Intent) {
    by.step(|step, context| {
        let mut record = commit::active(step, name)?;
        stage::stage(
            step,
            context,
            &mut record,
            intent,
            *Uuid::new_v4().as_bytes(),
        )
    })
    .unwrap();
}

/// Two members in one group.
pub fn pair(authority: &Authority) -> (Member, Member, Log) {
    let (mut a, mut b) = (authority.member(), authority.member());
    let mut log = create(&mut a, group::Founding::default());
    log.add(&mut a, &mut b);
    (a, b, log)
}

/// A group of one member. Its policy lists the authorities that the member has pinned.
pub fn create(a: &mut Member, founding: group::Founding) -> Log {
    let log = Log {
        name: GroupName {
            domain: DOMAIN.into(),
            id: Uuid::new_v4().as_bytes().repeat(2),
        },
        entries: Vec::new(),
    };
    let name = log.name.clone();
    a.step(|step, context| {
        let mut record = group::create(step, context, &name, founding, [1; 16], None)?;
        record.state = GroupState::Active;
        record.pending = None;
        Ok(records::put_group(step, &record)?)
    })
    .unwrap();
    log
}

/// The scenario holds, and does not hold with the repair undone.
pub fn holds_only_with(mutant: Mutant, scenario: impl Fn()) {
    scenario();
    mutants::set(Some(mutant));
    let without = catch_unwind(AssertUnwindSafe(&scenario));
    mutants::set(None);
    assert!(without.is_err(), "nothing is noticed without {mutant:?}");
}

/// The extensions of a group with another window.
pub fn other_window(by: &mut Member, log: &Log) -> Extensions<GroupContext> {
    by.step(|step, _| {
        let mls_group = group::load(step, &log.name)?;
        let policy = group::policy_of(mls_group.extensions())?;
        let policy = Policy {
            past_epochs: 9,
            ..policy
        };
        let required = mls_group
            .extensions()
            .required_capabilities()
            .unwrap()
            .clone();
        group::keep(step, mls_group);
        Ok(Extensions::from_vec(vec![
            Extension::RequiredCapabilities(required),
            Extension::Unknown(POLICY_EXTENSION, UnknownExtension(policy.encode())),
        ])
        .unwrap())
    })
    .unwrap()
}

pub fn try_stage(by: &mut Member, log: &Log, intent: &Intent) -> Result<Plan, CoreError> {
    by.step(|step, context| {
        let mut record = commit::active(step, &log.name)?;
        stage::stage(
            step,
            context,
            &mut record,
            intent,
            *Uuid::new_v4().as_bytes(),
        )
    })
}
