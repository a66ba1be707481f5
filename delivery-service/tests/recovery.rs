//! Epochs reported, Commits voided, GroupInfos repaired, groups replaced: on PostgreSQL, with two nodes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{report_epoch_request::Report, *},
};
use prost::Message as _;
use support::{
    forge::Device,
    trio::{Trio, failure},
    *,
};
use uuid::Uuid;

#[tokio::test]
async fn a_commit_that_two_users_cannot_use_is_taken_back() {
    let mut trio = Trio::new().await;
    let before = trio.group.clone();
    let dave = trio.world.device(Uuid::from_u128(4));
    let reference = trio.world.publish(&dave).await;
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol, &dave], 7);
    let request = before.commit(before.info(&[&dave], &[]), &[reference], &tree);
    let payload = request.bundles[0].commit.to_vec();
    let bad = submit(&trio.world, &trio.alice, request.clone())
        .await
        .unwrap();
    assert_eq!(bad.outcome(), Outcome::Provisional);
    trio.group.accepted(&bad, tree.clone());
    // The committer goes on in its epoch; a late message of the old epoch stands.
    let said = trio.say(false).await;
    assert_eq!(said.outcome(), Outcome::Provisional);
    let late = Group {
        seq: trio.group.seq,
        chain: trio.group.chain,
        ..before.clone()
    };
    let late = send(&trio.world, &trio.bob, late.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    trio.group.sent(&late);
    // Dave is in, for now, and says so: a device that the Commit added settles nothing.
    assert_eq!(trio.confirms(&dave, bad.seq).await, Ok(before.epoch_seq));
    assert_eq!(
        trio.fails(&trio.bob, bad.seq, &payload).await,
        Ok(before.epoch_seq)
    );
    assert_eq!(
        trio.fails(&trio.carol, bad.seq, &payload).await,
        Ok(before.epoch_seq)
    );
    let (entry, void) = trio.void().await;
    assert_eq!((void.first_seq, void.last_seq), (bad.seq, late.seq));
    let reporters: Vec<_> = void.reports.iter().map(|r| r.reporter.clone()).collect();
    assert_eq!(
        reporters,
        [Some(trio.bob.device_ref()), Some(trio.carol.device_ref())]
    );
    assert_eq!(
        (entry.epoch, entry.epoch_seq),
        (before.epoch, before.epoch_seq)
    );

    // Everything is as before.
    let state = trio.state(&trio.bob).await.state.unwrap();
    assert_eq!(
        (state.epoch, state.epoch_seq),
        (before.epoch, before.epoch_seq)
    );
    assert_eq!(trio.state(&trio.bob).await.members.len(), 3);
    // A repeat learns it, and so does whoever is still in that epoch.
    let again = submit(&trio.world, &trio.alice, request).await.unwrap();
    assert_eq!(
        (again.outcome(), again.voided_by_seq, again.replayed),
        (Outcome::Voided, entry.seq, true)
    );
    let message = trio.group.message(Uuid::new_v4(), 1);
    let refused = send(&trio.world, &trio.alice, message).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::EpochVoided);
    assert_eq!(
        trio.confirms(&trio.bob, bad.seq).await,
        Err(Reason::EpochVoided)
    );
    // Dave reads to the VOID entry and no further, and has no Welcome.
    let seen = log(&trio.world, &dave, &trio.group).await.unwrap();
    assert_eq!(seen.last().unwrap().seq, entry.seq);
    let inbox = trio.world.by(&dave, ListWelcomesRequest::default());
    let inbox = trio.world.client().list_welcomes(inbox).await.unwrap();
    assert!(inbox.into_inner().message().await.unwrap().is_none());

    // Alice is barred until another's Commit has settled.
    let mut group = Group {
        seq: entry.seq,
        chain: entry.chain.as_ref().try_into().unwrap(),
        ..before
    };
    let refused = submit(
        &trio.world,
        &trio.alice,
        group.commit(group.info(&[], &[]), &[], &group.tree),
    )
    .await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::CommitterBarred);
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 9);
    let request = group.commit(group.info(&[], &[]), &[], &tree);
    let result = submit(&trio.world, &trio.bob, request).await.unwrap();
    assert_eq!(result.epoch, group.epoch + 1);
    group.accepted(&result, tree);
    let refused = submit(
        &trio.world,
        &trio.alice,
        group.commit(group.info(&[], &[]), &[], &group.tree),
    )
    .await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::CommitterBarred);
    trio.group = group;
    let carols = trio.group.message(Uuid::new_v4(), 1);
    let sent = send(&trio.world, &trio.carol, carols).await.unwrap();
    trio.group.sent(&sent);
    trio.commit().await;
}

/// Where nobody commits whose Commit could settle, the maker of a voided one would wait for ever.
#[tokio::test]
async fn a_bar_ends_by_itself_in_the_end() {
    let mut trio = Trio::with(&["--bar-seconds", "2"]).await;
    let before = trio.group.clone();
    let (bad, payload) = trio.commit().await;
    for by in [&trio.bob, &trio.carol] {
        trio.fails(by, bad.seq, &payload).await.unwrap();
    }
    let (entry, _) = trio.void().await;
    let group = Group {
        seq: entry.seq,
        chain: entry.chain.as_ref().try_into().unwrap(),
        ..before
    };
    let commit = || group.commit(group.info(&[], &[]), &[], &group.tree);
    let refused = submit(&trio.world, &trio.alice, commit()).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::CommitterBarred);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        match submit(&trio.world, &trio.alice, commit()).await {
            Ok(again) => return assert_eq!(again.epoch, group.epoch + 1),
            Err(refused) => assert_eq!(reason(&refused), Reason::CommitterBarred),
        }
        assert!(tokio::time::Instant::now() < deadline, "barred for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn whoever_a_bad_commit_is_built_on_against_still_has_a_voice() {
    let mut trio = Trio::new().await;
    let (bad, payload) = trio.commit().await;
    // Nobody can follow; its maker removes everybody who could say so.
    let tree = forge::tree(&[&trio.alice], 1);
    let info = trio.group.info(&[], &[&trio.bob, &trio.carol]);
    let request = trio.group.commit(info, &[], &tree);
    let second = submit(&trio.world, &trio.alice, request).await.unwrap();
    assert_eq!(second.epoch, bad.epoch + 1);
    trio.fails(&trio.bob, bad.seq, &payload).await.unwrap();
    // One voice is not enough, though nobody else is in the roster any more.
    trio.failures_looked_at(bad.seq).await;
    trio.fails(&trio.carol, bad.seq, &payload).await.unwrap();
    let (_, void) = trio.void().await;
    assert_eq!((void.first_seq, void.last_seq), (bad.seq, second.seq));
    assert_eq!(void.reports.len(), 2);
    assert_eq!(trio.state(&trio.bob).await.members.len(), 3);
}

#[tokio::test]
async fn a_settled_epoch_is_never_voided_and_one_voice_is_not_enough() {
    let mut trio = Trio::new().await;
    // One user fails; the other confirms later.
    let (commit, payload) = trio.commit().await;
    let settled = trio.fails(&trio.bob, commit.seq, &payload).await.unwrap();
    assert!(settled < commit.seq);
    trio.failures_looked_at(commit.seq).await;
    assert_eq!(
        trio.state(&trio.bob).await.state.unwrap().epoch_seq,
        commit.seq
    );
    assert_eq!(trio.confirms(&trio.carol, commit.seq).await, Ok(commit.seq));
    // Too late: it stands for ever.
    assert_eq!(
        trio.fails(&trio.carol, commit.seq, &payload).await,
        Ok(commit.seq)
    );
    // An entry confirms as well as a report; the committer's own does not.
    let (commit, payload) = trio.commit().await;
    trio.say(false).await;
    let state = trio.state(&trio.bob).await.state.unwrap();
    assert!(state.settled_seq < commit.seq);
    assert!(trio.fails(&trio.alice, commit.seq, &payload).await.unwrap() < commit.seq);
    trio.say(true).await;
    let state = trio.state(&trio.bob).await.state.unwrap();
    assert_eq!(state.settled_seq, commit.seq);
    // Different hashes of one epoch are a fork, and are shown.
    assert!(trio.state(&trio.bob).await.healthy);
    trio.confirms(&trio.bob, commit.seq).await.unwrap();
    let other = Report::StateHash(vec![8; 32].into());
    trio.report(&trio.carol, other, commit.seq).await.unwrap();
    assert!(!trio.state(&trio.bob).await.healthy);
}

#[tokio::test]
async fn the_only_other_user_is_enough_and_a_later_success_takes_a_failure_back() {
    let world = World::start(2, &["--void-after-seconds", "1"]).await;
    let [alice, bob] = [1, 2].map(|n| world.device(Uuid::from_u128(n)));
    let mut group = Group::create(&world, &alice).await;
    group.add(&world, &alice, &[&alice, &bob], &[&bob]).await;
    let said = send(&world, &bob, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    group.sent(&said);
    let mut trio = Trio {
        carol: world.device(Uuid::from_u128(3)),
        world,
        alice,
        bob,
        group,
    };
    let commit = |trio: &Trio| {
        let tree = forge::tree(&[&trio.alice, &trio.bob], 3);
        let request = trio.group.commit(trio.group.info(&[], &[]), &[], &tree);
        (request.bundles[0].commit.to_vec(), request, tree)
    };
    let before = trio.group.clone();
    let (payload, request, tree) = commit(&trio);
    let result = submit(&trio.world, &trio.alice, request).await.unwrap();
    trio.group.accepted(&result, tree);
    trio.fails(&trio.bob, result.seq, &payload).await.unwrap();
    let (void, _) = trio.void().await;
    trio.group = Group {
        seq: void.seq,
        chain: void.chain.as_ref().try_into().unwrap(),
        ..before
    };
    // Alice is barred, and there is nobody else who could confirm what Bob commits: it stands at once, and she is let in again.
    let (_, request, tree) = commit(&trio);
    let result = submit(&trio.world, &trio.bob, request).await.unwrap();
    assert_eq!(result.outcome(), Outcome::Standing);
    trio.group.accepted(&result, tree);
    // She commits, Bob fails at first and comes to it after all.
    let (payload, request, tree) = commit(&trio);
    let result = submit(&trio.world, &trio.alice, request).await.unwrap();
    trio.group.accepted(&result, tree);
    let failed = trio.fails(&trio.bob, result.seq, &payload).await.unwrap();
    assert!(failed < result.seq);
    assert_eq!(trio.confirms(&trio.bob, result.seq).await, Ok(result.seq));
    trio.failures_looked_at(result.seq).await;
    let state = trio.state(&trio.bob).await.state.unwrap();
    assert_eq!(state.epoch_seq, result.seq);
}

#[tokio::test]
async fn a_failure_is_signed_names_its_commit_and_comes_from_a_member() {
    let mut trio = Trio::new().await;
    let (commit, payload) = trio.commit().await;
    let seq = commit.seq;
    let stranger = trio.world.device(Uuid::from_u128(9));
    assert_eq!(
        trio.fails(&stranger, seq, &payload).await,
        Err(Reason::Group)
    );
    assert_eq!(
        trio.fails(&trio.bob, seq, b"another").await,
        Err(Reason::ProofInvalid)
    );
    // Signed by Carol, sent by Bob.
    let Report::Failure(carols) = failure(&trio.group, &trio.carol, seq, &payload) else {
        panic!()
    };
    let forged = FailureReport {
        reporter: Some(trio.bob.device_ref()),
        ..carols.clone()
    };
    let refused = trio.report(&trio.bob, Report::Failure(forged), seq).await;
    assert_eq!(refused, Err(Reason::ProofInvalid));
    let refused = trio.report(&trio.bob, Report::Failure(carols), seq).await;
    assert_eq!(refused, Err(Reason::Malformed));
    for epoch_seq in [seq + 1, seq - 1] {
        let refused = trio.confirms(&trio.bob, epoch_seq).await;
        assert_eq!(refused, Err(Reason::UnknownValue), "{epoch_seq}");
    }
    let short = Report::StateHash(vec![7; 31].into());
    assert_eq!(
        trio.report(&trio.bob, short, seq).await,
        Err(Reason::Malformed)
    );
}

#[tokio::test]
async fn a_void_inside_a_void_and_a_resync_inside_one() {
    let mut trio = Trio::new().await;
    let before = trio.group.clone();
    let (first, payload) = trio.commit().await;
    // Carol comes back from outside on top of it, Alice commits once more: all of it is provisional.
    let (request, tree) = trio.group.comes_back(&trio.carol, 2);
    let external = submit(&trio.world, &trio.carol, request).await.unwrap();
    assert_eq!(external.outcome(), Outcome::Provisional);
    trio.group.accepted(&external, tree);
    trio.fails(&trio.bob, first.seq, &payload).await.unwrap();
    // Carol was a member before the first Commit and after it; that her membership was renewed since takes her voice away no more than a removal would.
    let settled = trio.fails(&trio.carol, first.seq, &payload).await;
    assert!(settled.unwrap() < first.seq);
    let (void, what) = trio.void().await;
    assert_eq!((what.first_seq, what.last_seq), (first.seq, external.seq));
    let state = trio.state(&trio.carol).await;
    assert_eq!(state.members.len(), 3);
    assert_eq!(state.state.unwrap().epoch_seq, before.epoch_seq);
    // She is a member by her old leaf again, may read everything, and commits.
    let seen = log(&trio.world, &trio.carol, &trio.group).await.unwrap();
    assert_eq!(seen.last().unwrap().seq, void.seq);
    let mut group = Group {
        seq: void.seq,
        chain: void.chain.as_ref().try_into().unwrap(),
        ..before
    };
    let tree = forge::tree(&[&trio.alice, &trio.bob, &trio.carol], 13);
    let request = group.commit(group.info(&[], &[]), &[], &tree);
    let result = submit(&trio.world, &trio.carol, request).await.unwrap();
    group.accepted(&result, tree);
    trio.group = group;
}

#[tokio::test]
async fn a_false_group_info_is_repaired_by_a_member_who_signs_for_it() {
    let mut trio = Trio::new().await;
    trio.commit().await;
    let group = &trio.group;
    let leaves = [&trio.alice, &trio.bob, &trio.carol];
    let tree = forge::tree(&leaves, 21);
    let put = |signer: &Device, place: u32, epoch: u64, epoch_seq: u64| PutGroupInfoRequest {
        group: Some(group.reference()),
        epoch_seq,
        group_info: forge::signed_group_info(&group.context(epoch, &tree), signer, place).into(),
        tree: Some(tree.to_update()),
    };
    let call = async |by: &Device, request: PutGroupInfoRequest| {
        let request = trio.world.by(by, request);
        match trio.world.client().put_group_info(request).await {
            Ok(answer) => Ok(answer.into_inner().group_state_hash),
            Err(status) => Err(reason(&status)),
        }
    };
    let (epoch, seq) = (group.epoch, group.epoch_seq);
    let good = || put(&trio.bob, 1, epoch, seq);
    // Not by another's name, not of another epoch, not with a part of a tree, not by a stranger.
    let refused = call(&trio.carol, good()).await;
    assert_eq!(refused, Err(Reason::CredentialInvalid));
    let forged = put(&trio.carol, 1, epoch, seq);
    assert_eq!(
        call(&trio.bob, forged).await,
        Err(Reason::CredentialInvalid)
    );
    let old = put(&trio.bob, 1, epoch - 1, seq);
    assert_eq!(call(&trio.bob, old).await, Err(Reason::StaleEpoch));
    let mut part = good();
    part.tree.as_mut().unwrap().full = false;
    assert_eq!(call(&trio.bob, part).await, Err(Reason::Malformed));
    let mut other = good();
    other.tree = Some(forge::tree(&leaves, 22).to_update());
    assert_eq!(call(&trio.bob, other).await, Err(Reason::TreeMismatch));
    let stranger = trio.world.device(Uuid::from_u128(9));
    let mut strange = leaves.to_vec();
    strange[1] = &stranger;
    let strange = forge::tree(&strange, 21);
    let request = PutGroupInfoRequest {
        group_info: forge::signed_group_info(&group.context(epoch, &strange), &stranger, 1).into(),
        tree: Some(strange.to_update()),
        ..good()
    };
    assert_eq!(call(&stranger, request).await, Err(Reason::Group));

    let hash = call(&trio.bob, good()).await.unwrap();
    assert_eq!(call(&trio.bob, good()).await, Ok(hash.clone()), "a repeat");
    let request = GetGroupInfoRequest {
        group: Some(group.reference()),
    };
    let request = trio.world.by(&trio.carol, request);
    let stored = trio.world.client().get_group_info(request).await.unwrap();
    let stored = stored.into_inner();
    assert_eq!(stored.group_info, good().group_info);
    assert_eq!(stored.group_state_hash, hash);
    let request = FetchTreeRequest {
        group: Some(group.reference()),
        epoch_seq: seq,
        current: false,
    };
    let request = trio.world.by(&trio.carol, request);
    let mut parts = trio.world.client().fetch_tree(request).await.unwrap();
    let nodes = parts.get_mut().message().await.unwrap().unwrap().nodes;
    let fetched: Vec<_> = nodes
        .into_iter()
        .map(|n| (n.index, n.node.unwrap().to_vec()))
        .collect();
    let expected: Vec<_> = tree.nodes().map(|(i, n)| (i, n.to_vec())).collect();
    assert_eq!(fetched, expected);
    // The log's entry says so too.
    let entry = log(&trio.world, &trio.carol, group).await.unwrap();
    let entry = entry.iter().find(|e| e.seq == seq).unwrap();
    assert_eq!(entry.group_state_hash, hash);
}

#[tokio::test]
async fn the_first_successor_closes_a_group() {
    let trio = Trio::new().await;
    let successor = |by: &Device, head_seq: u64| {
        let group = Group {
            id: Uuid::new_v4().as_bytes().repeat(2),
            epoch: 0,
            epoch_seq: 0,
            seq: 0,
            chain: [0; 32],
            tree: forge::tree(&[by], 0),
            policy: trio.group.policy.clone(),
        };
        let request = CreateGroupRequest {
            replaces: Some(Replaces {
                group: Some(trio.group.reference()),
                head_seq,
            }),
            ..group.create_request()
        };
        (group, request)
    };
    let create = async |by: &Device, request: CreateGroupRequest| {
        let request = trio.world.by(by, request);
        match trio.world.client().create_group(request).await {
            Ok(answer) => Ok(answer.into_inner().replayed),
            Err(status) => Err(reason(&status)),
        }
    };
    let stranger = trio.world.device(Uuid::from_u128(9));
    let (_, request) = successor(&stranger, 0);
    assert_eq!(create(&stranger, request).await, Err(Reason::Group));
    let (_, ahead) = successor(&trio.bob, trio.group.seq + 1);
    assert_eq!(create(&trio.bob, ahead).await, Err(Reason::HistoryChanged));
    let (first, request) = successor(&trio.bob, trio.group.seq);
    assert_eq!(create(&trio.bob, request.clone()).await, Ok(false));
    assert_eq!(create(&trio.bob, request).await, Ok(true));
    let (_, second) = successor(&trio.carol, trio.group.seq);
    assert_eq!(create(&trio.carol, second).await, Err(Reason::GroupClosed));
    let entries = log(&trio.world, &trio.carol, &trio.group).await.unwrap();
    let last = entries.last().unwrap();
    let Some(entry::Body::Payload(payload)) = last.body.clone() else {
        panic!("no payload")
    };
    let replaced = ReplacedPayload::decode(payload).unwrap();
    assert_eq!(last.kind, EntryKind::Replaced as u32);
    assert_eq!(replaced.successor, Some(first.reference()));
    assert_eq!(replaced.by, Some(trio.bob.device_ref()));
    let message = trio.group.message(Uuid::new_v4(), 1);
    let refused = send(&trio.world, &trio.carol, message).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::GroupClosed);
}
