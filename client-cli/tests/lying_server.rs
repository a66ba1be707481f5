//! A server that lies: it cannot make a member evict anybody, roll back what is settled, or have it take back what nobody signed for.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    auth::v1::{SignedStatus, StatusChange, signed_status},
    common::v1::DeviceRef,
    delivery::v1::{EntryKind, FailureReport, LeaveRequestPayload, VoidPayload},
};
use client_cli::core::{
    records::{GroupState, Intent, Trouble},
    recovery,
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use support::{Member, *};

/// The server puts something into the log by itself.
fn by_server(log: &mut Log, reader: &mut Member, kind: EntryKind, payload: Vec<u8>) {
    let record = reader.record(&log.name);
    let id = *uuid::Uuid::new_v4().as_bytes();
    log.append(kind, (record.epoch, record.epoch_seq), id, payload);
    reader.read(log);
}

#[test]
fn nobody_is_evicted_without_the_signature_of_the_authentication_service_or_of_the_leaver() {
    let authority = Authority::new();
    let (mut a, b, mut log) = pair(&authority);
    let (name, person) = (log.name.clone(), b.identity.person.clone());
    let good = authority.status(&person, StatusChange::Revoked);
    let of_another = Authority::new().status(&person, StatusChange::Revoked);
    let other = authority.member().identity.person;
    let elsewhere = authority.status(&other, StatusChange::Revoked);
    let harmless = authority.status(&person, StatusChange::Suspended);
    // The signed bytes of one status, with the subject of another.
    let Some(signed_status::Content::Status(bytes)) = &good.content else {
        panic!()
    };
    let mut changed = bytes.to_vec();
    *changed.last_mut().unwrap() ^= 1;
    let forged = SignedStatus {
        content: Some(signed_status::Content::Status(changed.into())),
        ..good.clone()
    };
    let leave = LeaveRequestPayload {
        device: Some(DeviceRef {
            domain: person.domain.clone(),
            id: person.device.to_vec().into(),
        }),
        joined_seq: 1,
        expires_at: now() + 100,
        signature: vec![7; 64].into(),
    };
    let lies = [
        (EntryKind::RemovalRequested, Vec::new()),
        (EntryKind::RemovalRequested, b"evict them".to_vec()),
        (EntryKind::RemovalRequested, of_another.encode_to_vec()),
        (EntryKind::RemovalRequested, elsewhere.encode_to_vec()),
        (EntryKind::RemovalRequested, harmless.encode_to_vec()),
        (EntryKind::RemovalRequested, forged.encode_to_vec()),
        (EntryKind::LeaveRequest, leave.encode_to_vec()),
    ];
    for (n, (kind, payload)) in lies.into_iter().enumerate() {
        by_server(&mut log, &mut a, kind, payload);
        let record = a.record(&name);
        assert!(
            record.revoked.is_empty() && record.leaving.is_empty(),
            "{n}"
        );
        assert_eq!(record.state, GroupState::Active, "{n}");
    }
    // With the true signature it is noted, and the next Commit removes it.
    by_server(
        &mut log,
        &mut a,
        EntryKind::RemovalRequested,
        good.encode_to_vec(),
    );
    assert_eq!(a.record(&name).revoked, [person]);
    stage(&mut a, &name, &Intent::default());
    log.take_commit(&mut a);
    a.read(&log);
    assert!(a.record(&name).revoked.is_empty());
}

#[test]
fn only_so_many_are_removed_in_an_hour() {
    let authority = Authority::new();
    let (mut a, _, mut log) = pair(&authority);
    let name = log.name.clone();
    // The limit of these members is ten.
    let mut others: Vec<Member> = (0..12).map(|_| authority.member()).collect();
    for other in &mut others {
        log.add(&mut a, other);
    }
    for other in &others {
        let status = authority.status(&other.identity.person, StatusChange::Revoked);
        by_server(
            &mut log,
            &mut a,
            EntryKind::RemovalRequested,
            status.encode_to_vec(),
        );
    }
    assert_eq!(a.record(&name).revoked.len(), 10);
}

/// A Commit by `b` that `a` has merged; its place and hash.
fn merged(a: &mut Member, b: &mut Member, log: &mut Log) -> (u64, [u8; 32]) {
    let update = Intent {
        update: true,
        ..Intent::default()
    };
    b.read(log);
    stage(b, &log.name, &update);
    log.take_commit(b);
    a.read(log);
    b.read(log);
    let last = log.entries.last().unwrap();
    (last.entry.seq, Sha256::digest(&last.payload).into())
}

fn void(seq: u64, last: u64, reports: Vec<FailureReport>) -> Vec<u8> {
    VoidPayload {
        first_seq: seq,
        last_seq: last,
        reports,
        committer: None,
    }
    .encode_to_vec()
}

fn report(by: &mut Member, log: &Log, seq: u64, sha256: [u8; 32]) -> FailureReport {
    let trouble = Trouble {
        seq,
        sha256,
        reason: 1,
        reported_at: None,
    };
    by.step(|step, context| recovery::report(step, context, &log.name, &trouble))
        .unwrap()
}

#[test]
fn a_void_is_believed_only_with_the_signatures_of_enough_users() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let (mut c, mut d) = (authority.member(), authority.member());
    log.add(&mut a, &mut c);
    log.add(&mut a, &mut d);
    b.read(&log);
    c.read(&log);
    let name = log.name.clone();
    let (seq, sha256) = merged(&mut a, &mut b, &mut log);
    c.read(&log);
    d.read(&log);
    let of = |by: &mut Member| report(by, &log, seq, sha256);
    let (by_b, by_c, by_d) = (of(&mut b), of(&mut c), of(&mut d));
    let another = report(&mut c, &log, seq, [9; 32]);
    let mut unsigned = by_d.clone();
    unsigned.signature = vec![7; 64].into();
    for reports in [
        vec![],
        vec![by_c.clone()],
        vec![by_c.clone(), by_c.clone()],
        // The committer's own does not count.
        vec![by_c.clone(), by_b],
        vec![by_c.clone(), unsigned],
        vec![by_d.clone(), another],
    ] {
        let payload = void(seq, seq, reports);
        // Each lie on the same state: what it does to it is not kept.
        let before = a.record(&name);
        let lied = a.step(|step, context| {
            let mut record = before.clone();
            let mut written = client_cli::core::records::entry(step, &name, seq)?.unwrap();
            recovery::voided(step, context, &mut record, &payload, &mut written)?;
            Ok(record.state)
        });
        assert!(
            matches!(lied.unwrap(), GroupState::Alarm(_)),
            "believed without good reports"
        );
    }
    // Two users, neither the committer's: it comes back by an external Commit.
    by_server(
        &mut log,
        &mut a,
        EntryKind::Void,
        void(seq, seq, vec![by_c, by_d]),
    );
    assert!(matches!(a.record(&name).state, GroupState::NeedsRejoin(_)));
}

#[test]
fn what_the_server_called_settled_is_never_taken_back() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let name = log.name.clone();
    let (seq, sha256) = merged(&mut a, &mut b, &mut log);
    a.step(|step, _| Ok(client_cli::core::records::settled(step, &name, seq)?))
        .unwrap();
    let own = report(&mut a, &log, seq, sha256);
    by_server(&mut log, &mut a, EntryKind::Void, void(seq, seq, vec![own]));
    let record = a.record(&name);
    assert!(matches!(record.state, GroupState::Alarm(_)));
    // Silence, never obedience: nothing more is read or sent.
    log.send(&mut b, "whatever");
    a.read(&log);
    assert_eq!(a.record(&name).head_seq, record.head_seq);
    let refused = a.step(|step, _| client_cli::core::commit::active(step, &name).map(|_| ()));
    assert!(refused.is_err());
}
