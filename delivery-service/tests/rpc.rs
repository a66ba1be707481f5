//! The rules of the wire contract through a real client, a real server and a real database.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{common::v1::Reason, delivery::v1::*, status::Refusal};
use support::{Group, World, forge, log, reason, send, submit, with_token};
use tonic::Code;
use uuid::Uuid;

/// Two users with a device each in a group; the first made it.
async fn pair(world: &World) -> (Group, forge::Device, forge::Device) {
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(world, &a).await;
    group.add(world, &a, &[&a, &b], &[&b]).await;
    (group, a, b)
}

#[tokio::test]
async fn a_commit_a_welcome_and_messages_make_one_log_that_all_read_alike() {
    let world = World::start(2, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    let added = group.add(&world, &a, &[&a, &b], &[&b]).await;
    assert_eq!((added.seq, added.epoch, added.epoch_seq), (1, 1, 1));
    assert_eq!(
        added.outcome(),
        Outcome::Standing,
        "nobody else was there to confirm it"
    );
    let request = world.by(&b, ListWelcomesRequest::default());
    let mut inbox = world
        .client()
        .list_welcomes(request)
        .await
        .unwrap()
        .into_inner();
    let welcome = inbox.message().await.unwrap().unwrap().welcomes.remove(0);
    assert_eq!(welcome.seq, 1);
    assert_eq!(welcome.chain, added.chain);
    assert_eq!(
        welcome.welcome,
        forge::welcome(&[welcome.key_package_ref.to_vec()])
    );
    for by in [&a, &b, &a] {
        send(&world, by, group.message(Uuid::new_v4(), 1))
            .await
            .unwrap();
    }
    let (of_a, of_b) = (
        log(&world, &a, &group).await.unwrap(),
        log(&world, &b, &group).await.unwrap(),
    );
    assert_eq!(of_a, of_b);
    assert_eq!(of_a.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert_chain(&group, &of_a);
}

/// Recomputes the chain as a client does.
fn assert_chain(group: &Group, entries: &[Entry]) {
    use sha2::{Digest as _, Sha256};
    let mut chain = chancery_proto::chain::start();
    for entry in entries {
        let Some(entry::Body::Payload(payload)) = &entry.body else {
            panic!("no payload");
        };
        chain = chancery_proto::chain::next(
            &chain,
            &chancery_proto::chain::ChainInput {
                group: &group.id,
                seq: entry.seq,
                epoch_seq: entry.epoch_seq,
                kind: entry.kind,
                message_id: &entry.message_id,
                accepted_at_micros: entry.accepted_at_micros,
                payload_sha256: &Sha256::digest(payload).into(),
            },
        );
        assert_eq!(entry.chain.as_ref(), chain);
    }
}

#[tokio::test]
async fn a_repeat_gets_the_first_answer_and_other_bytes_are_refused() {
    let world = World::start(2, &[]).await;
    let (mut group, a, b) = pair(&world).await;
    let message = group.message(Uuid::new_v4(), 1);
    let first = send(&world, &a, message.clone()).await.unwrap();
    let again = send(&world, &a, message.clone()).await.unwrap();
    assert_eq!((first.replayed, again.replayed), (false, true));
    assert_eq!((first.seq, &first.chain), (again.seq, &again.chain));
    let mut other = message.clone();
    let mut bytes = other.message.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    other.message = bytes.into();
    let refused = send(&world, &a, other).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MessageIdReused);

    group.sent(&first);
    let tree = forge::tree(&[&a, &b], 5);
    let commit = group.commit(group.info(&[], &[]), &[], &tree);
    let first = submit(&world, &b, commit.clone()).await.unwrap();
    group.accepted(&first, tree);
    // Epochs later, and after its removal, the committer still learns that its Commit landed.
    group.remove(&world, &a, &[&a], &[&b]).await;
    let again = submit(&world, &b, commit).await.unwrap();
    assert!(again.replayed);
    assert_eq!(
        (first.seq, first.epoch, first.chain),
        (again.seq, again.epoch, again.chain)
    );
    assert_eq!(log(&world, &a, &group).await.unwrap().len(), 4);
}

#[tokio::test]
async fn the_loser_of_an_epoch_learns_the_winner() {
    let world = World::start(2, &[]).await;
    let (group, a, b) = pair(&world).await;
    let tree = forge::tree(&[&a, &b], 5);
    let won = submit(&world, &a, group.commit(group.info(&[], &[]), &[], &tree))
        .await
        .unwrap();
    let lost = submit(&world, &b, group.commit(group.info(&[], &[]), &[], &tree))
        .await
        .unwrap_err();
    let refusal = Refusal::from_status(&lost);
    assert_eq!(
        (refusal.code, refusal.reason),
        (Code::Aborted, Some(Reason::StaleEpoch))
    );
    assert_eq!(refusal.metadata["winner_seq"], won.seq.to_string());
    assert_eq!(refusal.metadata["current_epoch"], "2");
    assert!(!refusal.outcome_unknown());
}

#[tokio::test]
async fn wrong_epochs_are_told_apart() {
    let world = World::start(2, &[]).await;
    let (mut group, a, b) = pair(&world).await;
    let mut future = group.clone();
    future.epoch = 9;
    let refused = send(&world, &a, future.message(Uuid::new_v4(), 1))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::EpochInFuture);
    let old = group.clone();
    for salt in [1, 2] {
        let tree = forge::tree(&[&a, &b], salt);
        let result = submit(&world, &a, group.commit(group.info(&[], &[]), &[], &tree))
            .await
            .unwrap();
        group.accepted(&result, tree);
        let late = send(&world, &b, old.message(Uuid::new_v4(), 1)).await;
        let proposal = send(&world, &b, old.message(Uuid::new_v4(), 2))
            .await
            .unwrap_err();
        assert_eq!(reason(&proposal), Reason::StaleEpoch);
        match (salt, late) {
            (1, Ok(accepted)) => group.sent(&accepted),
            (2, Err(refused)) => assert_eq!(reason(&refused), Reason::EpochTooOld),
            (_, other) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn after_a_removal_nothing_of_an_older_epoch_is_accepted_and_the_removed_read_no_further() {
    let world = World::start(2, &[]).await;
    let (mut group, a, b) = pair(&world).await;
    let before = group.clone();
    let removed = group.remove(&world, &a, &[&a], &[&b]).await;
    let late = send(&world, &a, before.message(Uuid::new_v4(), 1))
        .await
        .unwrap_err();
    assert_eq!(reason(&late), Reason::EpochTooOld);
    send(&world, &a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    let of_b = log(&world, &b, &group).await.unwrap();
    assert_eq!(
        of_b.last().unwrap().seq,
        removed.seq,
        "its removal is the last it reads"
    );
    let refused = send(&world, &b, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::Group);
    let payload = FetchPayloadRequest {
        group: Some(group.reference()),
        seq: removed.seq + 1,
    };
    let refused = world
        .client()
        .fetch_payload(world.by(&b, payload))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::Group);
    let info = GetGroupInfoRequest {
        group: Some(group.reference()),
    };
    let refused = world
        .client()
        .get_group_info(world.by(&b, info))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::Group);
    // Neither the tree now, nor that of the epoch that its removal began.
    for (current, epoch_seq) in [(true, 0), (false, removed.seq)] {
        let tree = FetchTreeRequest {
            group: Some(group.reference()),
            current,
            epoch_seq,
        };
        let refused = world
            .client()
            .fetch_tree(world.by(&b, tree))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), Reason::Group);
    }
}

#[tokio::test]
async fn strangers_and_unknown_groups_get_the_same_answer() {
    let world = World::start(2, &[]).await;
    let (group, _, _) = pair(&world).await;
    let stranger = world.device(Uuid::new_v4());
    let mut unknown = group.clone();
    unknown.id = vec![9; 32];
    let mut answers = Vec::new();
    for group in [&group, &unknown] {
        let sent = send(&world, &stranger, group.message(Uuid::new_v4(), 1))
            .await
            .unwrap_err();
        let read = log(&world, &stranger, group).await.unwrap_err();
        answers.push((
            reason(&sent),
            sent.message().to_owned(),
            reason(&read),
            read.message().to_owned(),
        ));
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[0].0, Reason::Group);
}

#[tokio::test]
async fn a_commit_that_lies_about_the_roster_is_refused() {
    let world = World::start(2, &[]).await;
    let (group, a, b) = pair(&world).await;
    let stranger = world.device(Uuid::new_v4());
    let newcomer = world.device(Uuid::new_v4());
    let reference = world.publish(&newcomer).await;
    let tree = forge::tree(&[&a, &b, &newcomer], 0);
    let refs = [reference];
    let mut other_user = group.info(&[&newcomer], &[]);
    other_user.added[0].user = [1; 16];
    let mut other_log = group.info(&[&newcomer], &[]);
    other_log.seen_chain = [1; 32];
    let mut proposals = group.info(&[&newcomer], &[]);
    proposals.proposals = vec![1];
    let cases = [
        (
            group.commit(group.info(&[&b], &[]), &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(group.info(&[&stranger], &[]), &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(other_user, &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(group.info(&[&newcomer], &[&stranger]), &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(group.info(&[&newcomer], &[&a]), &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(proposals, &refs, &tree),
            Reason::CommitInfoInvalid,
        ),
        (
            group.commit(other_log, &refs, &tree),
            Reason::HistoryChanged,
        ),
        (
            group.commit(group.info(&[&newcomer], &[]), &[], &tree),
            Reason::WelcomeMismatch,
        ),
        (
            group.commit(group.info(&[&newcomer], &[]), &[vec![1; 32]], &tree),
            Reason::WelcomeMismatch,
        ),
        (
            group.commit(group.info(&[], &[]), &refs, &tree),
            Reason::WelcomeMismatch,
        ),
    ];
    for (number, (request, expected)) in cases.into_iter().enumerate() {
        let refused = submit(&world, &a, request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "case {number}: {refused:?}");
    }
    let mut wrong_epoch = group.commit(group.info(&[], &[]), &[], &tree);
    wrong_epoch.bundles[0].group_info = forge::group_info(&group.context(7, &tree), &tree).into();
    let refused = submit(&world, &a, wrong_epoch).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::GroupInfoMismatch);
    let mut wrong_tree = group.commit(group.info(&[], &[]), &[], &tree);
    wrong_tree.bundles[0].tree = Some(forge::tree(&[&a, &b], 9).to_update());
    let refused = submit(&world, &a, wrong_tree).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TreeMismatch);
    // None of it left a trace.
    assert_eq!(log(&world, &a, &group).await.unwrap().len(), 1);
    let good = group.commit(group.info(&[&newcomer], &[]), &refs, &tree);
    submit(&world, &a, good).await.unwrap();
}

#[tokio::test]
async fn malformed_and_misplaced_bytes_are_refused_by_name() {
    let world = World::start(2, &[]).await;
    let (group, a, _) = pair(&world).await;
    let good = group.message(Uuid::new_v4(), 1);
    for end in 0..good.message.len() {
        let mut cut = good.clone();
        cut.message = good.message.slice(..end);
        let refused = send(&world, &a, cut).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{end}");
    }
    let mut trailing = good.clone();
    trailing.message = [good.message.as_ref(), &[0]].concat().into();
    let refused = send(&world, &a, trailing).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::Malformed);
    let refused = send(&world, &a, group.message(Uuid::new_v4(), 3))
        .await
        .unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::UnsupportedWireFormat,
        "a Commit through SendMessage"
    );
    let mut foreign = good.clone();
    foreign.message =
        forge::private(&[1; 32], group.epoch, 1, &forge::data(Uuid::new_v4(), None)).into();
    let refused = send(&world, &a, foreign).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::Malformed,
        "another group's message"
    );
    let mut relabelled = good.clone();
    relabelled.message_id = Uuid::new_v4().as_bytes().to_vec().into();
    let refused = send(&world, &a, relabelled).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::CommitInfoInvalid);
    let mut large = good.clone();
    large.message = vec![0; 1_048_577].into();
    let refused = send(&world, &a, large).await.unwrap_err();
    let refusal = Refusal::from_status(&refused);
    assert_eq!(refusal.reason, Some(Reason::LimitExceeded));
    assert_eq!(refusal.metadata["limit"], "message_bytes");
    send(&world, &a, good).await.unwrap();
}

#[tokio::test]
async fn tokens_are_checked_on_every_path() {
    let world = World::start(2, &[]).await;
    let (group, a, _) = pair(&world).await;
    let other = forge::Authority::new();
    let cases = [
        (None, Reason::TokenMissing),
        (Some("nonsense".to_owned()), Reason::TokenInvalid),
        (
            Some(other.token(&a, "ds:interior.example", 300)),
            Reason::TokenInvalid,
        ),
        (
            Some(world.authority.token(&a, "as:interior.example", 300)),
            Reason::TokenInvalid,
        ),
        (
            Some(world.authority.token(&a, "ds:interior.example", -300)),
            Reason::TokenExpired,
        ),
    ];
    for (token, expected) in cases {
        let unary = match &token {
            None => tonic::Request::new(group.message(Uuid::new_v4(), 1)),
            Some(token) => with_token(group.message(Uuid::new_v4(), 1), token),
        };
        let refused = world.client().send_message(unary).await.unwrap_err();
        assert_eq!(reason(&refused), expected);
        let stream = match &token {
            None => tonic::Request::new(SubscribeRequest::default()),
            Some(token) => with_token(SubscribeRequest::default(), token),
        };
        let refused = world.client().subscribe(stream).await.unwrap_err();
        assert_eq!(reason(&refused), expected);
    }
}

#[tokio::test]
async fn a_revoked_device_is_refused_everywhere() {
    let world = World::start(2, &[]).await;
    let (group, a, b) = pair(&world).await;
    world.revoke(&b).await;
    let refused = send(&world, &b, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::DeviceRevoked);
    let refused = log(&world, &b, &group).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::DeviceRevoked);
    send(&world, &a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_device_that_lost_its_state_comes_back_by_an_external_commit() {
    let world = World::start(2, &[]).await;
    let (mut group, a, b) = pair(&world).await;
    let context = group.context(group.epoch, &group.tree);
    let join = |signed_over: &[u8], who: &forge::Device, info| {
        let external = forge::External {
            removes: vec![1],
            leaf: who.external_leaf(&group.id, 1),
            ..forge::External::default()
        };
        let (mut request, tree) = group.external(who, 1, &info, external.clone());
        let bundle = &mut request.bundles[0];
        let id = Uuid::from_slice(&bundle.message_id).unwrap();
        let data = forge::data(id, Some(info));
        let frame = (group.id.as_slice(), group.epoch);
        bundle.commit = who
            .external_commit(frame, &data, signed_over, &external)
            .into();
        (request, tree)
    };
    let stranger = world.device(Uuid::new_v4());
    let refused = submit(
        &world,
        &stranger,
        join(&context, &stranger, group.info(&[&stranger], &[])).0,
    )
    .await
    .unwrap_err();
    assert_eq!(reason(&refused), Reason::Group);
    let refused = submit(&world, &b, join(&context, &a, group.info(&[&b], &[&b])).0)
        .await
        .unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::CredentialInvalid,
        "another device's leaf"
    );
    let refused = submit(
        &world,
        &b,
        join(b"another context", &b, group.info(&[&b], &[&b])).0,
    )
    .await
    .unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::CredentialInvalid,
        "a signature over another context"
    );
    let refused = submit(&world, &b, join(&context, &b, group.info(&[&b], &[])).0)
        .await
        .unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::CommitInfoInvalid,
        "its old self stays"
    );
    let refused = submit(
        &world,
        &b,
        join(&context, &b, group.info(&[&b], &[&a, &b])).0,
    )
    .await
    .unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::CommitInfoInvalid,
        "removes another"
    );
    let (request, tree) = join(&context, &b, group.info(&[&b], &[&b]));
    let joined = submit(&world, &b, request).await.unwrap();
    assert_eq!(joined.outcome(), Outcome::Provisional);
    group.accepted(&joined, tree);
    let confirmed = send(&world, &a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    assert_eq!(confirmed.outcome(), Outcome::Standing, "sending settles");
    let of_b = log(&world, &b, &group).await.unwrap();
    assert_eq!(of_b.iter().map(|e| e.seq).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(of_b[1].kind, EntryKind::ExternalCommit as u32);
}

#[tokio::test]
async fn creating_is_idempotent_and_an_id_is_used_once() {
    let world = World::start(2, &[]).await;
    let a = world.device(Uuid::new_v4());
    let group = Group::create(&world, &a).await;
    let again = world
        .client()
        .create_group(world.by(&a, group.create_request()))
        .await
        .unwrap();
    assert!(again.into_inner().replayed);
    let b = world.device(Uuid::new_v4());
    let mut stolen = group.clone();
    stolen.tree = forge::tree(&[&b], 0);
    let refused = world
        .client()
        .create_group(world.by(&b, stolen.create_request()))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::GroupExists);
    let mut of_another = group.clone();
    of_another.id = vec![3; 16];
    let refused = world
        .client()
        .create_group(world.by(&b, of_another.create_request()))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::CredentialInvalid);
}

#[tokio::test]
async fn a_pipeline_answers_each_message_and_goes_on_after_a_refusal() {
    let world = World::start(2, &[]).await;
    let (group, a, b) = pair(&world).await;
    let mut requests: Vec<SendMessageRequest> =
        (0..50).map(|_| group.message(Uuid::new_v4(), 1)).collect();
    requests.push(requests[7].clone());
    requests[20] = group.message(Uuid::new_v4(), 3);
    let ids: Vec<_> = requests.iter().map(|r| r.message_id.clone()).collect();
    let stream = world.by(&a, tokio_stream::iter(requests));
    let mut answers = world
        .client()
        .send_messages(stream)
        .await
        .unwrap()
        .into_inner();
    let (mut seqs, mut refused) = (Vec::new(), Vec::new());
    for id in &ids {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.message_id, id);
        match answer.answer.unwrap() {
            send_messages_response::Answer::Accepted(accepted) => seqs.push(accepted.seq),
            send_messages_response::Answer::Refused(refusal) => refused.push(refusal.reason()),
        }
    }
    assert_eq!(answers.message().await.unwrap(), None);
    assert_eq!(refused, [Reason::UnsupportedWireFormat]);
    assert_eq!(seqs.pop(), Some(seqs[7]), "the repeat got the first answer");
    assert_eq!(seqs, (2..51).collect::<Vec<u64>>());
    assert_eq!(log(&world, &b, &group).await.unwrap().len(), 50);
}

/// Field lesson: a bulk add is accepted and then cannot be delivered. The client here has gRPC's default limit of 4 MiB for what it receives.
#[tokio::test]
async fn a_bulk_add_reaches_everybody_within_default_limits() {
    let world = World::start(2, &[]).await;
    let a = world.device(Uuid::new_v4());
    let joiners: Vec<_> = (0..500).map(|_| world.device(Uuid::new_v4())).collect();
    let mut group = Group::create(&world, &a).await;
    let added: Vec<_> = joiners.iter().collect();
    let mut everybody = vec![&a];
    everybody.extend(&added);
    let result = group.add(&world, &a, &everybody, &added).await;
    let id = Uuid::new_v4();
    send(&world, &a, group.message(id, 1)).await.unwrap();
    for joiner in [&joiners[0], &joiners[499]] {
        let request = world.by(joiner, ListWelcomesRequest::default());
        let mut inbox = world
            .client()
            .list_welcomes(request)
            .await
            .unwrap()
            .into_inner();
        let welcome = inbox.message().await.unwrap().unwrap().welcomes.remove(0);
        assert!(welcome.welcome.len() < 1_000, "cut for one joiner");
        let entries = log(&world, joiner, &group).await.unwrap();
        let seqs: Vec<_> = entries.iter().map(|entry| entry.seq).collect();
        assert_eq!(seqs, [result.seq, result.seq + 1]);
        let request = FetchTreeRequest {
            group: Some(group.reference()),
            epoch_seq: result.epoch_seq,
            ..FetchTreeRequest::default()
        };
        let mut parts = world
            .client()
            .fetch_tree(world.by(joiner, request))
            .await
            .unwrap()
            .into_inner();
        let mut leaves = 0;
        while let Some(part) = parts.message().await.unwrap() {
            leaves += part.nodes.iter().filter(|n| n.index % 2 == 0).count();
        }
        assert_eq!(leaves, 501);
    }
}
