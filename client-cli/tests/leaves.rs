//! KeyPackages and leaves that nobody should add: left out by name, refused in a Commit, removed where they got in.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::EntryKind,
    forge,
    key_package::{KeyPackage as Parsed, LAST_RESORT},
    policy::POLICY_EXTENSION,
    wire::Reader,
};
use client_cli::core::{
    commit::{self, Plan},
    group,
    identity::members,
    leaves,
    records::{GroupName, GroupState, Intent, Person},
    stage,
};
use openmls::prelude::{
    tls_codec::{Deserialize as _, Serialize as _},
    *,
};
use openmls_traits::signatures::Signer as _;
use support::{Authority, Log, Member, pair};
use uuid::Uuid;

type Spoil = fn(&mut Parsed);

/// A KeyPackage of a member, spoilt and signed again by its own key.
fn spoilt(of: &mut Member, spoil: Spoil) -> Vec<u8> {
    let good = of.key_package();
    let mut package = Parsed::parse(&good, good.len()).unwrap();
    spoil(&mut package);
    let key = of.identity.leaf_key(group::SUITES[0]).unwrap();
    forge::key_package(&package, &|content| key.sign(content).unwrap())
}

const SPOILT: &[(&str, Spoil)] = &[
    ("encryption_key has 5 bytes", |p| {
        p.leaf.encryption_key.truncate(5);
    }),
    ("encryption_key is a point of low order", |p| {
        p.leaf.encryption_key = vec![0; 32];
    }),
    ("init_key has 0 bytes", |p| p.init_key.clear()),
    ("init_key has 5 bytes", |p| p.init_key.truncate(5)),
    ("init_key is a point of low order", |p| {
        p.init_key = vec![0; 32];
    }),
    ("init_key is the leaf's", |p| {
        p.init_key = p.leaf.encryption_key.clone();
    }),
    ("version mls10", |p| p.leaf.capabilities.versions = vec![2]),
    ("own cipher suite", |p| {
        p.leaf.capabilities.suites = vec![3];
    }),
    ("own credential type", |p| {
        p.leaf.capabilities.credentials = vec![1];
    }),
    ("0xF1C0", |p| {
        p.leaf
            .capabilities
            .extensions
            .retain(|e| *e != POLICY_EXTENSION);
    }),
    ("default extension type", |p| {
        p.leaf.capabilities.extensions.push(1);
    }),
    ("default proposal type", |p| {
        p.leaf.capabilities.proposals.push(3);
    }),
    ("not in its capabilities", |p| {
        p.leaf.extensions.push((0xf0f0, vec![]));
    }),
    ("twice", |p| {
        p.extensions = vec![(LAST_RESORT, vec![]), (LAST_RESORT, vec![])];
    }),
    ("last_resort extension has content", |p| {
        p.extensions = vec![(LAST_RESORT, vec![1])];
    }),
    ("GREASE", |p| {
        p.leaf.capabilities.extensions.push(0x0a0a);
        p.leaf.extensions.push((0x0a0a, vec![1]));
    }),
];

fn staged(by: &mut Member, name: &GroupName, intent: &Intent) -> Plan {
    by.step(|step, context| {
        let mut record = commit::active(step, name)?;
        let id = *Uuid::new_v4().as_bytes();
        stage::stage(step, context, &mut record, intent, id)
    })
    .unwrap()
}

#[test]
fn bad_key_packages_are_left_out_by_name_and_the_others_are_added() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let mut bad: Vec<(Person, &str)> = Vec::new();
    let mut key_packages = Vec::new();
    for (why, spoil) in SPOILT {
        let mut owner = authority.member();
        key_packages.push(spoilt(&mut owner, *spoil));
        bad.push((owner.identity.person.clone(), why));
    }
    let mut good = authority.member();
    key_packages.insert(SPOILT.len() / 2, good.key_package());
    let intent = Intent {
        key_packages,
        ..Intent::default()
    };
    let plan = staged(&mut a, &log.name, &intent);
    assert_eq!(plan.added, [good.identity.person.clone()]);
    assert_eq!(plan.unusable.len(), bad.len());
    for ((named, said), (person, why)) in plan.unusable.iter().zip(&bad) {
        assert_eq!(named.as_ref(), Some(person), "{why}");
        assert!(said.contains(why), "{said}: {why}");
    }
    log.take_commit(&mut a);
    a.read(&log);
    b.read(&log);
    assert_eq!(a.authenticator(&log.name), b.authenticator(&log.name));
}

/// Adds a KeyPackage as a member does that looks at nothing; the Commit's bytes. With `merge` it goes on from there.
fn add_blindly(by: &mut Member, log: &Log, package: &[u8], added: &Person, merge: bool) -> Vec<u8> {
    let MlsMessageBodyIn::KeyPackage(package) = MlsMessageIn::tls_deserialize_exact(package)
        .unwrap()
        .extract()
    else {
        panic!("not a KeyPackage");
    };
    let (name, record) = (log.name.clone(), by.record(&log.name));
    let data = MessageData {
        message_id: Some([3; 16]),
        commit_info: Some(CommitInfo {
            added: members(vec![added.clone()]),
            seen_seq: record.head_seq,
            seen_chain: record.chain,
            ..CommitInfo::default()
        }),
    };
    by.step(|step, context| {
        let provider = step.provider();
        let mut mls_group = group::load(step, &name)?;
        mls_group.set_aad(data.encode());
        let package = package.validate(provider.crypto(), ProtocolVersion::Mls10);
        let key = context.identity.leaf_key(group::SUITES[0])?;
        let bundle = mls_group
            .commit_builder()
            .propose_adds([package.unwrap()])
            .load_psks(provider.storage())
            .unwrap()
            .build(provider.rand(), provider.crypto(), &key, |_| true)
            .unwrap()
            .stage_commit(provider)
            .unwrap();
        let commit = bundle.commit().tls_serialize_detached().unwrap();
        if merge {
            mls_group.merge_pending_commit(provider).unwrap();
            group::keep(step, mls_group);
        }
        Ok(commit)
    })
    .unwrap()
}

#[test]
fn members_refuse_a_commit_that_brings_a_leaf_that_breaks_a_rule() {
    let added_by_openmls: [(&str, Spoil); 4] = [
        ("encryption_key has 5 bytes", |p| {
            p.leaf.encryption_key.truncate(5);
        }),
        ("encryption_key is a point of low order", |p| {
            p.leaf.encryption_key = vec![0; 32];
        }),
        ("default extension type", |p| {
            p.leaf.capabilities.extensions.push(1);
        }),
        ("default proposal type", |p| {
            p.leaf.capabilities.proposals.push(1);
        }),
    ];
    for (why, spoil) in added_by_openmls {
        let authority = Authority::new();
        let (mut a, mut b, mut log) = pair(&authority);
        let mut owner = authority.member();
        let (package, person) = (spoilt(&mut owner, spoil), owner.identity.person.clone());
        let record = a.record(&log.name);
        let commit = add_blindly(&mut a, &log, &package, &person, false);
        let epoch = (record.epoch, record.epoch_seq);
        log.append(EntryKind::Commit, epoch, [3; 16], commit);
        let before = b.authenticator(&log.name);
        let page = b.read(&log);
        let skipped = page
            .entries
            .last()
            .unwrap()
            .skipped
            .clone()
            .unwrap_or_default();
        assert!(skipped.contains(why), "{skipped:?}: {why}");
        assert!(matches!(
            b.record(&log.name).state,
            GroupState::NeedsRejoin(_)
        ));
        assert_eq!(b.authenticator(&log.name), before, "nothing was merged");
    }
}

#[test]
fn a_leaf_that_nobody_can_encrypt_to_is_named_and_removed_by_whoever_commits() {
    let authority = Authority::new();
    let (mut a, _, log) = pair(&authority);
    let mut owner = authority.member();
    let package = spoilt(&mut owner, |p| p.leaf.encryption_key.truncate(5));
    let person = owner.identity.person.clone();
    add_blindly(&mut a, &log, &package, &person, true);
    let update = Intent {
        update: true,
        ..Intent::default()
    };
    let plan = staged(&mut a, &log.name, &update);
    assert_eq!(plan.removed, std::slice::from_ref(&person));
    let [(named, why)] = plan.unreachable.as_slice() else {
        panic!("{:?}", plan.unreachable);
    };
    assert_eq!(*named, person);
    assert!(why.contains("has 5 bytes"), "{why}");
}

/// The keys of a tree's parent nodes.
fn parent_keys(group: &MlsGroup) -> Vec<Vec<u8>> {
    let parents = group.treesync().full_parents();
    let bytes = parents.map(|(_, parent)| parent.tls_serialize_detached().unwrap());
    bytes
        .map(|bytes| Reader::new(&bytes).vector().unwrap().to_vec())
        .collect()
}

/// As openmls' storage in memory writes octets.
fn stored(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    numbers.join(",")
}

#[test]
fn a_parent_node_that_nobody_can_encrypt_to_is_refused_unless_it_was_there_before() {
    let authority = Authority::new();
    let (own, other) = (authority.identity(), authority.identity());
    let suite = group::SUITES[0];
    let provider = openmls_rust_crypto::OpenMlsRustCrypto::default();
    let (key, other) = (own.leaf_key(suite).unwrap(), other.leaf_key(suite).unwrap());
    let package = KeyPackage::builder()
        .leaf_node_capabilities(group::capabilities())
        .build(suite, &provider, &other, other.credential())
        .unwrap();
    let mut mls_group = MlsGroup::builder()
        .ciphersuite(suite)
        .with_capabilities(group::capabilities())
        .build(&provider, &key, key.credential())
        .unwrap();
    let added = [package.key_package().clone()];
    mls_group.add_members(&provider, &key, &added).unwrap();
    mls_group.merge_pending_commit(&provider).unwrap();
    let leaf = LeafNodeParameters::default();
    mls_group.self_update(&provider, &key, leaf).unwrap();
    mls_group.merge_pending_commit(&provider).unwrap();
    let keys = parent_keys(&mls_group);
    assert_eq!(keys.len(), 1);
    assert_eq!(leaves::unusable_parents(&mls_group).unwrap(), []);
    leaves::check_parents(&mls_group, &vec![]).unwrap();

    // No member makes such a path with openmls, so it is put where openmls keeps the tree.
    let (good, bad) = (stored(&keys[0]), stored(&[0; 32]));
    for value in provider.storage().values.write().unwrap().values_mut() {
        let text = String::from_utf8(value.clone()).unwrap();
        *value = text.replace(&good, &bad).into_bytes();
    }
    let spoilt = MlsGroup::load(provider.storage(), mls_group.group_id());
    let spoilt = spoilt.unwrap().unwrap();
    assert_eq!(parent_keys(&spoilt), [vec![0; 32]]);
    let before = leaves::unusable_parents(&spoilt).unwrap();
    assert!(leaves::check_parents(&spoilt, &vec![]).is_err());
    leaves::check_parents(&spoilt, &before).unwrap();
}

/// Why a leaf with GREASE is refused everywhere: when this fails, upstream has mended it, and the refusals go, with
/// `--refuse-grease-extensions` of the Delivery Service and their rows in `docs/limits.md`.
#[test]
fn openmls_refuses_a_leaf_with_a_grease_extension_that_it_lists() {
    let mut owner = Authority::new().member();
    let package = spoilt(&mut owner, |p| {
        p.leaf.capabilities.extensions.push(0x0a0a);
        p.leaf.extensions.push((0x0a0a, vec![1]));
    });
    let MlsMessageBodyIn::KeyPackage(package) = MlsMessageIn::tls_deserialize_exact(&package)
        .unwrap()
        .extract()
    else {
        panic!("not a KeyPackage");
    };
    let provider = openmls_rust_crypto::OpenMlsRustCrypto::default();
    let package = package.validate(provider.crypto(), ProtocolVersion::Mls10);
    let taken = package.is_ok_and(|package| {
        let leaf = package.leaf_node();
        let mut carried = leaf.extensions().iter().map(|e| e.extension_type());
        carried.all(|kind| leaf.capabilities().extensions().contains(&kind))
    });
    assert!(!taken, "openmls reads a listed GREASE extension as listed");
}
