//! What others propose: no kind of proposal stops a group, and whoever made it is named. Scenarios are also played with their repair undone, and must
//! fail then.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    commit_info::{CommitInfo, MessageData},
    delivery::v1::EntryKind,
    mutants::{self, Mutant},
};
use client_cli::core::{
    CoreError, commit, group, proposals,
    records::{self, Intent, JournalEntry},
};
use openmls::{
    prelude::{tls_codec::Deserialize as _, *},
    schedule::PreSharedKeyId,
};
use support::{Member, *};
use uuid::Uuid;

/// Three members: the first lies, the others are honest.
fn three() -> (Authority, [Member; 3], Log) {
    let authority = Authority::new();
    let (mut insider, mut b, mut log) = pair(&authority);
    let mut c = authority.member();
    log.add(&mut insider, &mut c);
    b.read(&log);
    (authority, [insider, b, c], log)
}

fn key_package(member: &mut Member) -> KeyPackage {
    let bytes = member.key_package();
    let message = MlsMessageIn::tls_deserialize_exact(&bytes).unwrap();
    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else {
        panic!("not a KeyPackage");
    };
    member
        .step(|step, _| {
            let crypto = openmls_traits::OpenMlsProvider::crypto(step.provider());
            Ok(package.validate(crypto, ProtocolVersion::Mls10).unwrap())
        })
        .unwrap()
}

fn propose(by: &mut Member, log: &mut Log, what: Propose) {
    let (name, id) = (log.name.clone(), *Uuid::new_v4().as_bytes());
    let record = by.record(&name);
    let payload = by
        .step(|step, context| {
            let mut mls_group = group::load(step, &name)?;
            let data = MessageData {
                message_id: Some(id),
                commit_info: None,
            };
            mls_group.set_aad(data.encode());
            let key = context.identity.leaf_key(mls_group.ciphersuite())?;
            let by_reference = ProposalOrRefType::Reference;
            let (message, _) = mls_group
                .propose(step.provider(), &key, what, by_reference)
                .unwrap();
            group::keep(step, mls_group);
            Ok(message.to_bytes().unwrap())
        })
        .unwrap();
    log.append(
        EntryKind::Proposal,
        (record.epoch, record.epoch_seq),
        id,
        payload,
    );
}

fn of_type(kind: u16, content: &[u8]) -> Propose {
    Propose::Custom(CustomProposal::new(kind, content.to_vec()))
}

/// Every kind of proposal that an insider may make alone: name, and whether an honest committer takes it in.
const KINDS: [(&str, bool); 11] = [
    ("psk that nobody has", false),
    ("add of a member", false),
    ("add of a device of another authority", false),
    ("policy", false),
    ("external_init", false),
    ("unknown type", false),
    ("unknown type of a draft", false),
    ("remove of a blank leaf", false),
    ("add", true),
    ("remove", true),
    ("update", true),
];

fn proposal(kind: &str, authority: &Authority, members: &mut [Member; 3], log: &Log) -> Propose {
    match kind {
        "psk that nobody has" => {
            let psk = PreSharedKeyId::external(b"nobody has it".to_vec(), vec![7; 32]);
            Propose::PreSharedKey(psk)
        }
        "add of a member" => Propose::Add(key_package(&mut members[2])),
        "add of a device of another authority" => {
            Propose::Add(key_package(&mut Authority::new().member()))
        }
        "policy" => Propose::GroupContextExtensions(other_window(&mut members[0], log)),
        // Their content is one vector, as that of an unknown type is.
        "external_init" => of_type(6, &[7; 32]),
        "unknown type" => of_type(0xF00D, b"whatever"),
        "unknown type of a draft" => of_type(9, b"whatever"),
        // The length of the vector is the first octet of the index.
        "remove of a blank leaf" => of_type(3, &[0, 0, 9]),
        "add" => Propose::Add(key_package(&mut authority.member())),
        "remove" => Propose::Remove(2),
        "update" => Propose::Update(LeafNodeParameters::default()),
        other => panic!("{other}"),
    }
}

fn known(member: &mut Member, log: &Log) -> Vec<proposals::Received> {
    member
        .step(|step, _| proposals::all(step, &log.name))
        .unwrap()
}

/// A Commit of one is merged by another, and both are in one epoch.
fn commits(by: &mut Member, reader: &mut Member, log: &mut Log, intent: &Intent) -> JournalEntry {
    stage(by, &log.name, intent);
    log.take_commit(by);
    by.read(log);
    let entry = reader.read(log).entries.last().unwrap().clone();
    assert_eq!(entry.skipped, None);
    assert_eq!(by.authenticator(&log.name), reader.authenticator(&log.name));
    entry
}

fn update() -> Intent {
    Intent {
        update: true,
        ..Intent::default()
    }
}

/// Whatever is proposed, the others commit, speak, and remove the proposer; and they know whose proposal it was.
fn every_kind_is_outlived(revoked: bool) {
    for (kind, taken) in KINDS {
        let (authority, mut members, mut log) = three();
        let what = proposal(kind, &authority, &mut members, &log);
        let [insider, b, c] = &mut members;
        propose(insider, &mut log, what);
        let entry = b.read(&log).entries.last().unwrap().clone();
        let offender = insider.identity.person.clone();
        assert_eq!(entry.sender, Some(offender.clone()), "{kind}");
        c.read(&log);
        let found = known(b, &log);
        assert_eq!(found.len(), 1, "{kind}");
        assert_eq!(found[0].proposer, Some(offender.clone()), "{kind}");
        assert_eq!(found[0].refused.is_none(), taken, "{kind}: {found:?}");
        assert_eq!(entry.note.is_none(), taken, "{kind}: {:?}", entry.note);
        if revoked {
            b.step(|step, _| {
                records::change(step, &log.name, |r| r.revoked.push(offender.clone()))
            })
            .unwrap();
            let entry = commits(b, c, &mut log, &Intent::default());
            assert_eq!(entry.removed, [offender], "{kind}");
        } else if kind != "remove" {
            let entry = commits(b, c, &mut log, &update());
            assert_eq!(entry.added.len(), usize::from(kind == "add"), "{kind}");
            let remove = Intent {
                remove: vec![offender.clone()],
                ..Intent::default()
            };
            assert_eq!(
                commits(c, b, &mut log, &remove).removed,
                [offender],
                "{kind}"
            );
        } else {
            stage(b, &log.name, &update());
            log.take_commit(b);
            let entry = b.read(&log).entries.last().unwrap().clone();
            assert_eq!(entry.removed, std::slice::from_ref(&c.identity.person));
            continue;
        }
        assert!(
            known(&mut members[1], &log).is_empty(),
            "{kind}: the epoch is over"
        );
        log.send(&mut members[1], "we go on");
        assert_eq!(
            members[2].read(&log).entries.last().unwrap().text,
            Some(b"we go on".to_vec())
        );
    }
}

#[test]
fn no_kind_of_proposal_stops_a_group() {
    holds_only_with(Mutant::ProposalsUnjudged, || every_kind_is_outlived(false));
}

#[test]
fn a_revoked_proposer_is_removed_whatever_it_proposed() {
    holds_only_with(Mutant::ProposalsUnjudged, || every_kind_is_outlived(true));
}

/// Two honest members may propose what cannot stand in one Commit.
fn conflicts_are_sorted_out() {
    for case in [
        "one device twice",
        "one target twice",
        "an update of a leaf that goes",
        "two updates",
    ] {
        let (authority, [mut a, mut b, mut c], mut log) = three();
        let mut newcomer = authority.member();
        let (added, removed) = match case {
            "one device twice" => {
                let packages = [key_package(&mut newcomer), key_package(&mut newcomer)];
                let [first, second] = packages;
                propose(&mut a, &mut log, Propose::Add(first));
                b.read(&log);
                propose(&mut b, &mut log, Propose::Add(second));
                (1, 0)
            }
            "one target twice" => {
                propose(&mut a, &mut log, Propose::Remove(1));
                propose(&mut a, &mut log, Propose::Remove(1));
                (0, 1)
            }
            "an update of a leaf that goes" => {
                propose(
                    &mut b,
                    &mut log,
                    Propose::Update(LeafNodeParameters::default()),
                );
                propose(&mut a, &mut log, Propose::Remove(1));
                (0, 1)
            }
            _ => {
                propose(
                    &mut b,
                    &mut log,
                    Propose::Update(LeafNodeParameters::default()),
                );
                propose(
                    &mut b,
                    &mut log,
                    Propose::Update(LeafNodeParameters::default()),
                );
                (0, 0)
            }
        };
        c.read(&log);
        stage(&mut c, &log.name, &Intent::default());
        log.take_commit(&mut c);
        let entry = c.read(&log).entries.last().unwrap().clone();
        assert_eq!(
            (entry.added.len(), entry.removed.len()),
            (added, removed),
            "{case}"
        );
    }
}

#[test]
fn what_cannot_stand_together_is_sorted_out_before_a_commit() {
    holds_only_with(Mutant::ProposalConflictsKept, conflicts_are_sorted_out);
}

/// The proposals that the insider's Commit names are known to everybody, so that everybody gives the same answer.
#[test]
fn a_commit_that_names_a_refused_proposal_is_refused_by_all_alike() {
    let (_authority, [mut a, mut b, mut c], mut log) = three();
    let extensions = other_window(&mut a, &log);
    propose(
        &mut a,
        &mut log,
        Propose::GroupContextExtensions(extensions),
    );
    for member in [&mut b, &mut c] {
        member.read(&log);
        assert!(known(member, &log)[0].refused.is_some());
    }
    let (name, id) = (log.name.clone(), *Uuid::new_v4().as_bytes());
    let record = a.record(&name);
    let payload = a
        .step(|step, context| {
            let mut mls_group = group::load(step, &name)?;
            let data = MessageData {
                message_id: Some(id),
                commit_info: Some(CommitInfo {
                    proposals: vec![3],
                    seen_seq: b.record(&name).head_seq,
                    seen_chain: b.record(&name).chain,
                    ..Default::default()
                }),
            };
            mls_group.set_aad(data.encode());
            let key = context.identity.leaf_key(mls_group.ciphersuite())?;
            let (commit, ..) = mls_group
                .commit_to_pending_proposals(step.provider(), &key)
                .unwrap();
            Ok(commit.to_bytes().unwrap())
        })
        .unwrap();
    log.append(
        EntryKind::Commit,
        (record.epoch, record.epoch_seq),
        id,
        payload,
    );
    for member in [&mut b, &mut c] {
        let why = member
            .read(&log)
            .entries
            .last()
            .unwrap()
            .skipped
            .clone()
            .unwrap();
        assert!(why.contains("the policy names nobody"), "{why}");
    }
}

/// The check that others' Commits go through is the last before an own one is sent: here the proposal was not judged when it came.
#[test]
fn an_own_commit_is_checked_like_everybody_elses() {
    let (_authority, [mut a, mut b, _c], mut log) = three();
    let extensions = other_window(&mut a, &log);
    propose(
        &mut a,
        &mut log,
        Propose::GroupContextExtensions(extensions),
    );
    mutants::set(Some(Mutant::ProposalsUnjudged));
    b.read(&log);
    let built = try_stage(&mut b, &log, &update());
    mutants::set(None);
    assert!(matches!(built, Err(CoreError::Malformed(why)) if why.contains("policy")));
    assert_eq!(b.record(&log.name).pending, None);
    // Without it there is a Commit, and the proposal is given up.
    stage(&mut b, &log.name, &update());
    assert!(known(&mut b, &log)[0].refused.is_some());
}

/// What the server refuses with a proposal is built again without.
#[test]
fn a_proposal_that_the_server_refuses_is_given_up() {
    let (authority, [mut a, mut b, _c], mut log) = three();
    propose(
        &mut a,
        &mut log,
        Propose::Add(key_package(&mut authority.member())),
    );
    b.read(&log);
    stage(&mut b, &log.name, &update());
    let name = log.name.clone();
    let seqs = b.record(&name).pending.unwrap().proposals;
    assert_eq!(seqs, [3]);
    b.step(|step, _| {
        let mut record = records::known(step, &name)?;
        commit::drop_pending(step, &mut record)?;
        proposals::refuse(step, &mut record, &seqs, "no")?;
        Ok(records::put_group(step, &record)?)
    })
    .unwrap();
    let record = b.record(&name);
    assert!(record.proposals.is_empty());
    // It stands in the way of nothing: not of a message in the same epoch, and not of the next Commit.
    b.step(|step, context| commit::message(step, context, &record, [7; 16], b"all the same"))
        .unwrap();
    let plan = try_stage(&mut b, &log, &update()).unwrap();
    assert!(plan.added.is_empty());
}
