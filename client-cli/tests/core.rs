//! The core alone: no services, a log made by hand, members with stores and certificates of their own.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::EntryKind,
};
use client_cli::core::{
    CoreError,
    apply::{self},
    group,
    identity::members,
    join,
    records::{GroupRecord, GroupState, Intent, Person},
};
use openmls::prelude::{
    tls_codec::{Deserialize as _, Serialize as _},
    *,
};
use support::{Authority, Log, Member, pair, stage};
use uuid::Uuid;

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
    let old_tree = a.tree(&log.name);
    let frame = log.invite(&mut a, c.key_package());
    let wrong = c.step(|step, context| {
        step.attempt(|| join::welcome(step, context, &frame, old_tree))
            .map(|_| ())
    });
    assert!(matches!(wrong, Err(CoreError::Mls(_))), "{wrong:?}");
    let right = a.tree(&log.name);
    c.step(|step, context| join::welcome(step, context, &frame, right))
        .unwrap();
    assert_eq!(a.authenticator(&log.name), c.authenticator(&log.name));
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
