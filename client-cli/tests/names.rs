//! Who a message, a leaf and a request are from: nobody is named for what somebody else said, and nobody's certificate silences the others. Scenarios are
//! also played with their repair undone, and must fail then.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{EntryKind, GetGroupInfoResponse, LeaveRequestPayload, SendMessageRequest},
    mutants::{self, Mutant},
    signed,
};
use client_cli::core::{
    CoreError, commit, group, join,
    records::{self, GroupState, Intent, Person},
};
use openmls::prelude::*;
use openmls_traits::signatures::Signer as _;
use prost::Message as _;
use support::{Member, *};
use uuid::Uuid;

/// A leaf that is filled again between framing and arrival is two people's, one after the other.
fn a_late_message_is_its_framers(past_epochs: u8) {
    let authority = Authority::new();
    let (mut a, mut b) = (authority.member(), authority.member());
    let founding = group::Founding {
        past_epochs,
        ..group::Founding::default()
    };
    let mut log = create(&mut a, founding);
    log.add(&mut a, &mut b);
    let name = log.name.clone();
    let framed = b
        .step(|step, context| {
            let record = commit::active(step, &name)?;
            commit::message(step, context, &record, [5; 16], b"late")
        })
        .unwrap();
    let epoch = (framed.epoch, framed.epoch_seq);
    let (leaver, mut newcomer) = (b.identity.person.clone(), authority.member());
    let remove = Intent {
        remove: vec![leaver.clone()],
        ..Intent::default()
    };
    if past_epochs == 1 {
        let both = Intent {
            key_packages: vec![newcomer.key_package()],
            ..remove
        };
        stage(&mut a, &name, &both);
        log.take_commit(&mut a);
        a.read(&log);
    } else {
        stage(&mut a, &name, &remove);
        log.take_commit(&mut a);
        a.read(&log);
        log.add(&mut a, &mut newcomer);
    }
    let at_the_leaf = a
        .step(|step, _| group::look(step, &name, group::roster))
        .unwrap();
    assert_eq!(
        at_the_leaf[1].1, newcomer.identity.person,
        "the leaf is filled again"
    );
    let request = SendMessageRequest::decode(framed.request.as_slice()).unwrap();
    log.append(
        EntryKind::Application,
        epoch,
        [5; 16],
        request.message.to_vec(),
    );
    let entry = a.read(&log).entries.last().unwrap().clone();
    assert_eq!(entry.text, Some(b"late".to_vec()), "{entry:?}");
    assert_eq!(entry.sender, Some(leaver));
}

#[test]
fn a_late_message_is_attributed_to_who_framed_it() {
    for past_epochs in [1, 3] {
        holds_only_with(Mutant::SenderByCurrentLeaf, || {
            a_late_message_is_its_framers(past_epochs)
        });
    }
}

/// A leaf in the name of a listed domain that its authority did not sign.
#[test]
fn a_leaf_that_no_authority_of_its_domain_signed_is_refused() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let mut careless = authority.member();
    log.add(&mut a, &mut careless);
    b.read(&log);
    let other = Authority::new();
    let mut stranger = other.member();
    a.trust = other.trust.clone();
    let intent = Intent {
        key_packages: vec![stranger.key_package()],
        update: true,
        ..Intent::default()
    };
    // An honest client leaves it out, even one that has pinned that authority.
    let plan = try_stage(&mut a, &log, &intent).unwrap();
    assert!(plan.added.is_empty());
    let name = log.name.clone();
    a.step(|step, _| commit::drop_pending(step, &mut records::known(step, &name)?))
        .unwrap();
    // One that does not look commits it all the same, and everybody else refuses.
    mutants::set(Some(Mutant::ForeignAuthorityTaken));
    stage(&mut a, &name, &intent);
    mutants::set(None);
    log.take_commit(&mut a);
    let why = b
        .read(&log)
        .entries
        .last()
        .unwrap()
        .skipped
        .clone()
        .unwrap();
    assert!(why.contains("no authority of its domain"), "{why}");
    assert!(matches!(b.record(&name).state, GroupState::NeedsRejoin(_)));
    mutants::set(Some(Mutant::ForeignAuthorityTaken));
    let taken = careless.read(&log).entries.last().unwrap().clone();
    mutants::set(None);
    assert_eq!(taken.skipped, None, "without the rule it is merged");
}

/// In a domain that the policy does not list nobody can be refused: what such a leaf says is nobody's, and the others go on.
fn an_unverified_leaf_is_marked() {
    let authority = Authority::new();
    let (mut a, mut b) = (authority.member(), authority.member());
    let trust = std::mem::take(&mut a.trust);
    let mut log = create(&mut a, group::Founding::default());
    a.trust = trust;
    log.add(&mut a, &mut b);
    let other = Authority::new();
    let mut stranger = other.member();
    a.trust = other.trust.clone();
    log.add(&mut a, &mut stranger);
    let page = b.read(&log);
    let entry = page.entries.last().unwrap();
    assert_eq!(entry.skipped, None, "honest members do not fork");
    assert!(
        entry
            .note
            .as_ref()
            .unwrap()
            .contains("no pinned root signed")
    );
    let claimed = stranger.identity.person.clone();
    assert_eq!(
        b.record(&log.name).distrusted,
        std::slice::from_ref(&claimed)
    );
    log.send(&mut stranger, "I resign");
    let entry = b.read(&log).entries.last().unwrap().clone();
    assert_eq!(
        (entry.sender, entry.unverified_sender),
        (None, Some(claimed))
    );
    log.send(&mut b, "that was nobody");
}

#[test]
fn an_unverified_leaf_speaks_for_nobody_and_silences_nobody() {
    holds_only_with(Mutant::UnverifiedNamed, an_unverified_leaf_is_marked);
    holds_only_with(Mutant::UnverifiedLeafSilences, an_unverified_leaf_is_marked);
}

/// A certificate that ends names its device all the same, and costs nobody else anything.
fn a_certificate_ends() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let mut ends = authority.member_as(authority.identity_until(Some(3_600)));
    log.add(&mut a, &mut ends);
    b.read(&log);
    let mut joiner = authority.member();
    for member in [&mut a, &mut b, &mut joiner] {
        member.ahead_seconds = 7_200;
    }
    log.add(&mut b, &mut joiner);
    a.read(&log);
    ends.read(&log);
    assert!(joiner.record(&log.name).distrusted.is_empty());
    log.send(&mut joiner, "whoever joins later may speak");
    log.send(&mut ends, "and is spoken to");
    let entry = joiner.read(&log).entries.last().unwrap().clone();
    assert_eq!(entry.sender, Some(ends.identity.person.clone()));
}

#[test]
fn a_certificate_that_has_ended_silences_nobody() {
    holds_only_with(Mutant::EndedCertificateUnverified, a_certificate_ends);
}

/// A GroupInfo of another policy, as an insider makes it on a branch of its own.
fn another_policy_is_not_used() {
    let authority = Authority::new();
    let (mut a, mut b, log) = pair(&authority);
    let name = log.name.clone();
    let extensions = other_window(&mut a, &log);
    let (group_info, tree) = a
        .step(|step, context| {
            let mut mls_group = group::load(step, &name)?;
            let key = context.identity.leaf_key(mls_group.ciphersuite())?;
            let provider = step.provider();
            mls_group
                .commit_builder()
                .propose_group_context_extensions(extensions)
                .unwrap()
                .load_psks(openmls_traits::OpenMlsProvider::storage(provider))
                .unwrap()
                .build(
                    openmls_traits::OpenMlsProvider::rand(provider),
                    openmls_traits::OpenMlsProvider::crypto(provider),
                    &key,
                    |_| true,
                )
                .unwrap()
                .stage_commit(provider)
                .unwrap();
            mls_group.merge_pending_commit(provider).unwrap();
            let info = group::export_group_info(step, context, &mls_group)?;
            Ok((info, RatchetTreeIn::from(mls_group.export_ratchet_tree())))
        })
        .unwrap();
    let before = b.record(&name);
    let info = GetGroupInfoResponse {
        group_info: group_info.into(),
        epoch_seq: 2,
        head_seq: before.head_seq,
        chain: before.chain.to_vec().into(),
        ..GetGroupInfoResponse::default()
    };
    let came_back = b.step(|step, context| {
        join::external(step, context, &name, &info, tree, [3; 16]).map(|_| ())
    });
    let Err(CoreError::OtherPolicy(differs)) = came_back else {
        panic!("{came_back:?}");
    };
    assert!(differs.contains("past_epochs 9"), "{differs}");
    assert!(
        differs.contains(&a.identity.person.device_uri()),
        "{differs}"
    );
    assert_eq!(b.record(&name), before, "nothing is changed");
}

#[test]
fn a_return_takes_no_other_policy() {
    holds_only_with(Mutant::ReturnPolicyUnchecked, another_policy_is_not_used);
}

fn leave_request(of: &Member, log: &Log, joined_seq: u64, expires_at: i64) -> Vec<u8> {
    let person: &Person = &of.identity.person;
    let content = signed::leave(
        (&log.name.domain, &log.name.id),
        (&person.domain, &person.device),
        joined_seq,
        expires_at,
    );
    let key = of.identity.leaf_key(group::SUITES[0]).unwrap();
    let signature = key
        .sign(&signed::to_be_signed(signed::LEAVE, &content))
        .unwrap();
    LeaveRequestPayload {
        device: Some(DeviceRef {
            domain: person.domain.clone(),
            id: person.device.to_vec().into(),
        }),
        joined_seq,
        expires_at,
        signature: signature.into(),
    }
    .encode_to_vec()
}

fn old_requests_are_refused() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let name = log.name.clone();
    let person = b.identity.person.clone();
    let remove = Intent {
        remove: vec![person.clone()],
        ..Intent::default()
    };
    stage(&mut a, &name, &remove);
    log.take_commit(&mut a);
    a.read(&log);
    b.read(&log);
    log.add(&mut a, &mut b);
    let joined = b.record(&name).joined_seq;
    let asks = |log: &mut Log, a: &mut Member, joined_seq, expires_at| {
        let payload = leave_request(&b, log, joined_seq, expires_at);
        let record = a.record(&log.name);
        let id = *Uuid::new_v4().as_bytes();
        log.append(
            EntryKind::LeaveRequest,
            (record.epoch, record.epoch_seq),
            id,
            payload,
        );
        a.read(log);
        a.record(&log.name).leaving
    };
    // Of an earlier membership, one that has ended, and a good one.
    assert!(asks(&mut log, &mut a, 1, now() + 100).is_empty());
    assert!(asks(&mut log, &mut a, joined, now() - 100).is_empty());
    assert_eq!(asks(&mut log, &mut a, joined, now() + 100), [person]);
}

#[test]
fn a_leave_request_holds_for_the_membership_that_it_names() {
    holds_only_with(Mutant::OldLeaveHonoured, old_requests_are_refused);
}

/// Whoever asked to leave says nothing more, and is removed by the next Commit.
#[test]
fn a_leaver_is_silent_and_goes() {
    let authority = Authority::new();
    let (mut a, mut b, mut log) = pair(&authority);
    let joined = b.record(&log.name).joined_seq;
    let payload = leave_request(&b, &log, joined, now() + 100);
    let record = a.record(&log.name);
    log.append(
        EntryKind::LeaveRequest,
        (record.epoch, record.epoch_seq),
        [8; 16],
        payload,
    );
    a.read(&log);
    b.read(&log);
    let name = log.name.clone();
    assert_eq!(b.record(&name).state_name(), "leaving");
    let said = b.step(|step, context| {
        let record = commit::active(step, &name)?;
        commit::message(step, context, &record, [9; 16], b"no")
    });
    assert!(matches!(said, Err(CoreError::State(state)) if state == "leaving"));
    stage(&mut a, &name, &Intent::default());
    log.take_commit(&mut a);
    a.read(&log);
    b.read(&log);
    assert_eq!(b.record(&name).state, GroupState::Removed);
}
