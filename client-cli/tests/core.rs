//! The core alone: no services, a log made by hand, members with stores and certificates of their own.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use chancery_proto::{
    certificate::{Anchors, DEVICE_EKU, device_uri, user_uri},
    chain::{self, ChainInput},
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{Entry, EntryKind, SendMessageRequest, SubmitCommitRequest, Welcome as Frame},
    key_package::KeyPackage as KeyPackageBytes,
    welcome::Welcome as WelcomeBytes,
};
use client_cli::{
    core::{
        Context, CoreError,
        apply::{self, Page, Received},
        commit, group,
        identity::{Identity, Trust, members},
        join,
        records::{self, GroupName, GroupRecord, GroupState, Intent, Person},
    },
    store::{Step, Store},
};
use openmls::prelude::{
    tls_codec::{Deserialize as _, Serialize as _},
    *,
};
use prost::Message as _;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

const DOMAIN: &str = "interior.example";

fn now() -> i64 {
    time::OffsetDateTime::now_utc().unix_timestamp()
}

fn authority(path: u8) -> CertificateParams {
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
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust: Trust,
}

impl Authority {
    fn new() -> Self {
        let key = || KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let root_key = key();
        let root = authority(1).self_signed(&root_key).unwrap().der().to_vec();
        let root_issuer = Issuer::new(authority(1), root_key);
        let intermediate_key = key();
        let mut params = authority(0);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
        let intermediate = params.signed_by(&intermediate_key, &root_issuer).unwrap();
        let anchors = Anchors::pinned(&root, &[intermediate.der().to_vec()], now()).unwrap();
        let mut trust = Trust::default();
        trust.pin(DOMAIN, anchors);
        Self {
            issuer: Issuer::new(params, intermediate_key),
            trust,
        }
    }

    fn member(&self) -> Member {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let (user, device) = (Uuid::new_v4(), Uuid::new_v4());
        let uri = |text: String| SanType::URI(text.try_into().unwrap());
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            vec![uri(user_uri(DOMAIN, user)), uri(device_uri(DOMAIN, device))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(DEVICE_EKU.to_vec())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Member {
            store: Store::open(folder.path()).unwrap(),
            identity: Identity {
                person: Person {
                    domain: DOMAIN.into(),
                    user: *user.as_bytes(),
                    device: *device.as_bytes(),
                },
                certificate: certificate.der().to_vec(),
                pkcs8: Zeroizing::new(key.serialize_der()),
                p256: None,
            },
            trust: self.trust.clone(),
            _folder: folder,
        }
    }
}

struct Member {
    store: Store,
    identity: Identity,
    trust: Trust,
    _folder: tempfile::TempDir,
}

impl Member {
    fn step<T>(
        &mut self,
        work: impl FnOnce(&Step<'_>, Context<'_>) -> Result<T, CoreError>,
    ) -> Result<T, CoreError> {
        let context = Context {
            identity: &self.identity,
            trust: &self.trust,
            now: now(),
            removals_per_hour: 10,
        };
        self.store.step(|step| work(step, context))
    }

    fn key_package(&mut self) -> Vec<u8> {
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

    fn record(&mut self, name: &GroupName) -> GroupRecord {
        self.step(|step, _| Ok(records::group(step, name)?.unwrap()))
            .unwrap()
    }

    fn read(&mut self, log: &Log) -> Page {
        let after = usize::try_from(self.record(&log.name).head_seq).unwrap();
        let new = log.entries[after..].to_vec();
        self.step(|step, context| apply::page(step, context, &log.name, &new))
            .unwrap()
    }

    fn authenticator(&mut self, name: &GroupName) -> Vec<u8> {
        self.step(|step, _| {
            let group = group::load(step, name)?;
            Ok(group.epoch_authenticator().as_slice().to_vec())
        })
        .unwrap()
    }
}

/// What the server would have.
struct Log {
    name: GroupName,
    entries: Vec<Received>,
}

impl Log {
    fn append(&mut self, kind: EntryKind, epoch: (u64, u64), id: [u8; 16], payload: Vec<u8>) {
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
    fn take_commit(&mut self, by: &mut Member) -> Option<Vec<u8>> {
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

    fn send(&mut self, by: &mut Member, text: &str) {
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
    fn add(&mut self, by: &mut Member, joiner: &mut Member) {
        let package = joiner.key_package();
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
        let frame = Frame {
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
        };
        let name = self.name.clone();
        let tree = by
            .step(|step, _| Ok(group::load(step, &name)?.export_ratchet_tree()))
            .unwrap();
        joiner
            .step(|step, context| join::welcome(step, context, &frame, tree.into()))
            .unwrap();
    }
}

fn stage(by: &mut Member, name: &GroupName, intent: &Intent) {
    by.step(|step, context| {
        let mut record = commit::active(step, name)?;
        commit::stage(
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
fn pair(authority: &Authority) -> (Member, Member, Log) {
    let (mut a, mut b) = (authority.member(), authority.member());
    let mut log = Log {
        name: GroupName {
            domain: DOMAIN.into(),
            id: Uuid::new_v4().as_bytes().repeat(2),
        },
        entries: Vec::new(),
    };
    let name = log.name.clone();
    a.step(|step, context| {
        let mut record = group::create(step, context, &name, group::SUITES[0], [1; 16], None)?;
        record.state = GroupState::Active;
        record.pending = None;
        Ok(records::put_group(step, &record)?)
    })
    .unwrap();
    log.add(&mut a, &mut b);
    (a, b, log)
}

/// A Commit by `by` whose CommitInfo is whatever `info` says; really it adds `added` or removes `removed`.
fn lie(
    by: &mut Member,
    log: &mut Log,
    added: Option<&mut Member>,
    removed: Option<&Person>,
    info: impl FnOnce(&GroupRecord) -> Option<CommitInfo>,
) {
    let package = added.map(|member| {
        let bytes = member.key_package();
        let body = MlsMessageIn::tls_deserialize_exact(&bytes)
            .unwrap()
            .extract();
        let MlsMessageBodyIn::KeyPackage(package) = body else {
            panic!("not a KeyPackage");
        };
        package
    });
    let (name, id) = (log.name.clone(), *Uuid::new_v4().as_bytes());
    let record = by.record(&name);
    let data = MessageData {
        message_id: Some(id),
        commit_info: info(&record),
    };
    let payload = by
        .step(|step, context| {
            let provider = step.provider();
            let mut mls_group = group::load(step, &name)?;
            let out = group::roster(&mls_group)?
                .into_iter()
                .filter(|(_, person)| Some(person) == removed)
                .map(|(index, _)| index)
                .collect::<Vec<_>>();
            let package = package
                .map(|p| p.validate(provider.crypto(), ProtocolVersion::Mls10))
                .transpose()
                .unwrap();
            mls_group.set_aad(data.encode());
            let bundle = mls_group
                .commit_builder()
                .propose_adds(package)
                .propose_removals(out)
                .load_psks(provider.storage())
                .unwrap()
                .build(
                    provider.rand(),
                    provider.crypto(),
                    &context.identity.leaf_key(group::SUITES[0])?,
                    |_| true,
                )
                .unwrap()
                .stage_commit(provider)
                .unwrap();
            Ok(bundle.commit().tls_serialize_detached().unwrap())
        })
        .unwrap();
    let epoch = (record.epoch, record.epoch_seq);
    log.append(EntryKind::Commit, epoch, id, payload);
}

fn honest(record: &GroupRecord) -> CommitInfo {
    CommitInfo {
        seen_seq: record.head_seq,
        seen_chain: record.chain,
        ..CommitInfo::default()
    }
}

fn assert_refused(member: &mut Member, log: &Log, why: &str) {
    let before = member.authenticator(&log.name);
    let page = member.read(log);
    let skipped = page.entries.last().unwrap().skipped.clone().unwrap();
    assert!(skipped.contains(why), "{skipped}");
    let record = member.record(&log.name);
    assert!(matches!(record.state, GroupState::NeedsRejoin(_)));
    assert_eq!(
        record.head_seq,
        log.entries.len() as u64,
        "the cursor moves on"
    );
    assert_eq!(
        member.authenticator(&log.name),
        before,
        "nothing was merged"
    );
}

#[test]
fn members_read_one_log_alike() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    log.send(&mut a, "one");
    log.send(&mut b, "two");
    let page = a.read(&log);
    let texts: Vec<_> = page.entries.iter().map(|e| e.text.clone()).collect();
    assert_eq!(texts, [Some(b"one".to_vec()), Some(b"two".to_vec())]);
    assert!(page.entries[0].own && !page.entries[1].own);
    b.read(&log);
    let mut c = authority.member();
    log.add(&mut a, &mut c);
    b.read(&log);
    assert_eq!(a.authenticator(&log.name), b.authenticator(&log.name));
    assert_eq!(a.authenticator(&log.name), c.authenticator(&log.name));
    assert_eq!(a.record(&log.name).chain, b.record(&log.name).chain);
    // Applied again, nothing happens.
    let again = log.entries.clone();
    let page = a
        .step(|step, context| apply::page(step, context, &log.name, &again))
        .unwrap();
    assert!(page.entries.is_empty());
}

#[test]
fn a_commit_that_does_not_do_what_it_says_is_refused() {
    let authority = Authority::new();
    for case in 0..5 {
        let (mut a, mut b, mut log) = pair(&authority);
        let mut stranger = authority.member();
        let victim = b.identity.person.clone();
        match case {
            // It adds somebody and says nothing of it.
            0 => lie(&mut a, &mut log, Some(&mut stranger), None, |r| {
                Some(honest(r))
            }),
            // It names somebody else than it adds.
            1 => lie(&mut a, &mut log, Some(&mut stranger), None, |r| {
                Some(CommitInfo {
                    added: members(vec![victim]),
                    ..honest(r)
                })
            }),
            // It says that it adds somebody and does not.
            2 => lie(&mut a, &mut log, None, None, |r| {
                Some(CommitInfo {
                    added: members(vec![stranger.identity.person.clone()]),
                    ..honest(r)
                })
            }),
            // It says nothing at all.
            3 => lie(&mut a, &mut log, None, None, |_| None),
            // It saw another log.
            _ => lie(&mut a, &mut log, None, None, |r| {
                Some(CommitInfo {
                    seen_chain: [9; 32],
                    ..honest(r)
                })
            }),
        }
        let why = match case {
            3 => "without CommitInfo",
            4 => "another log",
            _ => "not what the Commit does",
        };
        assert_refused(&mut b, &log, why);
    }
}

#[test]
fn a_member_removed_in_silence_is_told_nothing_by_it() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let mut c = authority.member();
    log.add(&mut a, &mut c);
    b.read(&log);
    let victim = c.identity.person.clone();
    lie(&mut a, &mut log, None, Some(&victim), |r| Some(honest(r)));
    assert_refused(&mut b, &log, "not what the Commit does");
    assert_refused(&mut c, &log, "not what the Commit does");
}

#[test]
fn an_untrusted_leaf_is_merged_marked_and_nothing_is_sent_to_it() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    // Of the same domain, vouched for by somebody else's root: for the adder it is fine, for B it is not.
    let other = Authority::new();
    let mut stranger = other.member();
    a.trust = other.trust.clone();
    log.add(&mut a, &mut stranger);
    let page = b.read(&log);
    assert_eq!(page.entries[0].skipped, None, "honest members do not fork");
    let record = b.record(&log.name);
    assert_eq!(record.distrusted, [stranger.identity.person.clone()]);
    let name = log.name.clone();
    let refused = b.step(|step, context| {
        let record = commit::active(step, &name)?;
        commit::message(step, context, &record, [7; 16], b"no")
    });
    assert!(matches!(refused, Err(CoreError::Distrusted(_))));
    // Once it is removed, all is well again.
    let intent = Intent {
        remove: vec![stranger.identity.person.clone()],
        ..Intent::default()
    };
    stage(&mut b, &name, &intent);
    log.take_commit(&mut b);
    b.read(&log);
    assert!(b.record(&name).distrusted.is_empty());
    log.send(&mut b, "well again");
    // And a KeyPackage of it is never used.
    let package = stranger.key_package();
    let intent = Intent {
        key_packages: vec![package],
        ..Intent::default()
    };
    let nothing = b.step(|step, context| {
        let mut record = commit::active(step, &name)?;
        commit::stage(step, context, &mut record, &intent, [8; 16])
    });
    assert!(matches!(nothing, Err(CoreError::Unusable(_))));
}

#[test]
fn a_relabelled_message_and_a_broken_chain_are_noticed() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    log.send(&mut a, "under its own name");
    let sent = log.entries.pop().unwrap();
    let epoch = (sent.entry.epoch, sent.entry.epoch_seq);
    log.append(EntryKind::Application, epoch, [5; 16], sent.payload);
    let page = b.read(&log);
    let skipped = page.entries[0].skipped.clone().unwrap();
    assert!(skipped.contains("message_id"), "{skipped}");
    log.send(&mut b, "next");
    let last = log.entries.last_mut().unwrap();
    last.entry.accepted_at_micros += 1;
    let page = a.read(&log);
    assert!(page.history_changed);
    assert_eq!(a.record(&log.name).state, GroupState::HistoryChanged);
}

#[test]
fn the_loser_of_a_race_drops_its_commit_and_builds_it_again() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let update = Intent {
        update: true,
        ..Intent::default()
    };
    let name = log.name.clone();
    stage(&mut a, &name, &update);
    stage(&mut b, &name, &update);
    log.take_commit(&mut b);
    a.read(&log);
    assert_eq!(a.record(&name).pending, None);
    stage(&mut a, &name, &update);
    log.take_commit(&mut a);
    a.read(&log);
    b.read(&log);
    assert_eq!(a.authenticator(&name), b.authenticator(&name));
    assert_eq!(a.record(&name).epoch, 3);
}

#[test]
fn a_failed_welcome_does_not_use_up_the_key_package() {
    let authority = Authority::new();
    let (mut a, _, mut log) = pair(&authority);
    let mut c = authority.member();
    let package = c.key_package();
    let reference = KeyPackageBytes::parse(&package, 100_000)
        .unwrap()
        .reference()
        .unwrap();
    let name = log.name.clone();
    let tree = |member: &mut Member| {
        member
            .step(|step, _| Ok(group::load(step, &name)?.export_ratchet_tree()))
            .unwrap()
    };
    let old_tree = tree(&mut a);
    let intent = Intent {
        key_packages: vec![package],
        ..Intent::default()
    };
    stage(&mut a, &log.name, &intent);
    let welcome = log.take_commit(&mut a).unwrap();
    a.read(&log);
    let last = log.entries.last().unwrap().entry.clone();
    let frame = Frame {
        group: Some(log.name.to_ref()),
        seq: last.seq,
        epoch_seq: last.seq,
        welcome: WelcomeBytes::parse(&welcome, 100_000)
            .unwrap()
            .cut(&reference)
            .unwrap()
            .into(),
        chain: last.chain,
        ..Frame::default()
    };
    let wrong = c.step(|step, context| {
        step.attempt(|| join::welcome(step, context, &frame, old_tree.into()))
            .map(|_| ())
    });
    assert!(matches!(wrong, Err(CoreError::Mls(_))), "{wrong:?}");
    let right = tree(&mut a);
    c.step(|step, context| join::welcome(step, context, &frame, right.into()))
        .unwrap();
    assert_eq!(a.authenticator(&log.name), c.authenticator(&log.name));
}

/// Why a leaf with GREASE costs its device: when this fails, upstream has mended it, and the check in `commit::usable` goes.
#[test]
fn openmls_still_reads_one_grease_value_as_two_types() {
    let on_an_extension = Extension::Unknown(0x0a0a, UnknownExtension(vec![])).extension_type();
    assert_ne!(on_an_extension, ExtensionType::from(0x0a0a));
}

/// Devices that were enrolled before there was a second key go on in the other suites.
#[test]
fn a_device_without_a_p256_key_has_no_leaf_in_suite_2() {
    let identity = Authority::new().member().identity;
    for suite in group::SUITES {
        let needs_it = suite == Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;
        assert_eq!(identity.leaf_key(suite).is_err(), needs_it, "{suite:?}");
    }
}
