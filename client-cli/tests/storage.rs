//! What a group costs a member's disk: by what changes, not by how many are in it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use client_cli::{
    core::{
        commit, group,
        records::{self, Intent},
    },
    store::Store,
};
use openmls::prelude::*;
use support::{Authority, Log, Member, pair, stage};

/// Enough that a tree which is written whole is seen, few enough for a build without optimisation.
const MEMBERS: usize = 400;
const PART: usize = 100;

/// KeyPackages of devices that nobody hears of again.
fn key_packages(authority: &Authority, count: usize) -> Vec<Vec<u8>> {
    let mut store = Store::in_memory().unwrap();
    let mut one = || {
        let identity = authority.identity();
        let made = store.step(|step| {
            let key = identity.leaf_key(group::SUITES[0])?;
            let made = KeyPackage::builder()
                .leaf_node_capabilities(group::capabilities())
                .build(group::SUITES[0], step.provider(), &key, key.credential());
            Ok::<_, client_cli::core::CoreError>(made.unwrap().key_package().clone())
        });
        MlsMessageOut::from(made.unwrap()).to_bytes().unwrap()
    };
    (0..count).map(|_| one()).collect()
}

fn change(by: &mut Member, log: &mut Log, intent: &Intent) {
    stage(by, &log.name, intent);
    log.take_commit(by);
    by.read(log);
}

/// Bytes that a member writes while it does something.
fn written(member: &mut Member, work: impl FnOnce(&mut Member)) -> u64 {
    let before = member.store.traffic().written_bytes;
    work(member);
    member.store.traffic().written_bytes - before
}

#[test]
fn messages_and_commits_write_what_they_change() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    for part in key_packages(&authority, MEMBERS).chunks(PART) {
        let intent = Intent {
            key_packages: part.to_vec(),
            ..Intent::default()
        };
        change(&mut a, &mut log, &intent);
    }
    b.read(&log);
    let update = Intent {
        update: true,
        ..Intent::default()
    };
    // Until past epochs have what they will have.
    for _ in 0..2 {
        change(&mut b, &mut log, &update);
        a.read(&log);
    }
    for member in [&mut a, &mut b] {
        // As the server says soon: until then what may be taken back is kept.
        let seq = log.entries.len() as u64;
        let settled = member.step(|step, _| Ok(records::settled(step, &log.name, seq)?));
        settled.unwrap();
    }
    let sent = written(&mut a, |a| log.send(a, "hello"));
    let received = written(&mut b, |b| drop(b.read(&log)));
    assert!(sent < 4 << 10, "{sent} for a message sent");
    assert!(received < 4 << 10, "{received} for a message received");
    change(&mut b, &mut log, &update);
    let commit_bytes = log.entries.last().unwrap().payload.len();
    let processed = written(&mut a, |a| drop(a.read(&log)));
    assert!(
        processed < 64 << 10,
        "{processed} for a Commit of {commit_bytes}"
    );
    assert_eq!(a.authenticator(&log.name), b.authenticator(&log.name));
}

#[test]
fn a_group_stays_loaded_until_another_process_writes() {
    let authority = Authority::new();
    let (mut a, _, mut log) = pair(&authority);
    for part in key_packages(&authority, 60).chunks(PART) {
        let intent = Intent {
            key_packages: part.to_vec(),
            ..Intent::default()
        };
        change(&mut a, &mut log, &intent);
    }
    let name = log.name.clone();
    let read = |a: &mut Member, log: &mut Log| {
        let before = a.store.traffic().read_bytes;
        log.send(a, "hello");
        a.store.traffic().read_bytes - before
    };
    read(&mut a, &mut log);
    let warm = read(&mut a, &mut log);
    // Somebody else sends with the same profile: what is loaded here is older than the store.
    let mut other = Member {
        ahead_seconds: 0,
        store: Store::open(a.folder()).unwrap(),
        identity: a.identity.clone(),
        trust: a.trust.clone(),
        keeper: None,
    };
    let cold = read(&mut other, &mut log);
    assert!(
        cold > 4 * warm,
        "{cold} without, {warm} with a loaded group"
    );
    assert!(read(&mut a, &mut log) > 4 * warm, "loaded again");
    assert!(read(&mut a, &mut log) < 2 * warm, "and once only");
    // No key was used twice: another member reads all of it.
    let texts = log.entries.len();
    let page = a.read(&log);
    assert_eq!(page.entries.last().map(|e| e.seq), Some(texts as u64));
    let failed = a.step(|step, context| {
        let record = commit::active(step, &name)?;
        commit::message(step, context, &record, [9; 16], b"undone")?;
        Err::<(), _>(client_cli::core::CoreError::Nothing)
    });
    assert!(failed.is_err());
    assert!(
        read(&mut a, &mut log) > 4 * warm,
        "what a failed step had is gone"
    );
}
