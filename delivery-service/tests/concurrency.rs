//! Many at once, and a database that goes away: the log is audited afterwards.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::collections::HashSet;

use chancery_proto::{common::v1::Reason, delivery::v1::*, status::Refusal};
use futures_util::future::join_all;
use support::{Group, World, forge, log, owner, reason, send, submit, waiting};
use uuid::Uuid;

/// Dense from the first, one Commit for each epoch.
fn audit(entries: &[Entry]) {
    let first = entries[0].seq;
    let seqs: Vec<u64> = entries.iter().map(|e| e.seq).collect();
    assert_eq!(
        seqs,
        (first..first + entries.len() as u64).collect::<Vec<_>>()
    );
    let epochs: Vec<u64> = entries
        .iter()
        .filter(|e| e.kind <= 2)
        .map(|e| e.epoch)
        .collect();
    assert_eq!(
        epochs.len(),
        epochs.iter().collect::<HashSet<_>>().len(),
        "two Commits for one epoch"
    );
    assert!(entries.is_sorted_by_key(|e| e.accepted_at_micros));
}

#[tokio::test]
async fn of_32_who_race_for_one_epoch_over_two_nodes_one_wins_and_all_learn_the_same_winner() {
    let world = World::start(2, &[]).await;
    let devices: Vec<forge::Device> = (0..32).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&forge::Device> = devices.iter().collect();
    let mut group = Group::create(&world, all[0]).await;
    group.add(&world, all[0], &all, &all[1..]).await;
    let tree = forge::tree(&all, 7);
    let races = all.iter().enumerate().map(|(n, device)| {
        let request = world.by(device, group.commit(group.info(&[], &[]), &[], &tree));
        let mut client = world.nodes[n % 2].client.clone();
        async move { client.submit_commit(request).await }
    });
    let mut winners = Vec::new();
    let mut told = HashSet::new();
    for answer in join_all(races).await {
        match answer {
            Ok(response) => winners.push(response.into_inner().results[0].seq),
            Err(status) => {
                let refusal = Refusal::from_status(&status);
                assert_eq!(refusal.reason, Some(Reason::StaleEpoch));
                told.insert(refusal.metadata["winner_seq"].clone());
            }
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(told, HashSet::from([winners[0].to_string()]));
    audit(&log(&world, all[0], &group).await.unwrap());
}

#[tokio::test]
async fn a_send_that_waited_behind_a_removal_sees_it() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    // Hold the group's lock, queue the removal first and the send behind it, then let go.
    let mut holder = owner(&world).await;
    let held = holder.transaction().await.unwrap();
    held.execute(
        "SELECT 1 FROM group_heads WHERE group_id = $1 FOR UPDATE",
        &[&group.id],
    )
    .await
    .unwrap();
    let tree = forge::tree(&[&a], 1);
    let removal = submit(&world, &a, group.commit(group.info(&[], &[&b]), &[], &tree));
    let message = send(&world, &b, group.message(Uuid::new_v4(), 1));
    let release = async {
        waiting(&world, 2).await;
        held.commit().await.unwrap();
    };
    let ordered = async {
        let message = async {
            waiting(&world, 1).await;
            message.await
        };
        tokio::join!(removal, message)
    };
    let ((removed, sent), ()) = tokio::join!(ordered, release);
    removed.unwrap();
    assert_eq!(reason(&sent.unwrap_err()), Reason::Group);
}

/// Field lessons: a number is given out before its COMMIT, and a lock that cannot be had in time is told as a refusal.
#[tokio::test]
async fn an_open_transaction_shows_no_number_and_whoever_waits_too_long_is_told_to_come_back() {
    let world = World::start(2, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let mut holder = owner(&world).await;
    // Somebody took the next number, wrote its entry, and has not come to COMMIT.
    let open = holder.transaction().await.unwrap();
    let next = i64::try_from(group.seq + 1).unwrap();
    for sql in [
        "SELECT 1 FROM group_heads WHERE group_id = $1 AND head_seq < $2 FOR NO KEY UPDATE",
        "INSERT INTO log SELECT group_id, $2::bigint, epoch, epoch_seq, kind, gen_random_uuid(), accepted_at, content_hash, chain, payload \
         FROM log WHERE group_id = $1 AND seq = $2::bigint - 1",
        "UPDATE group_heads SET head_seq = $2 WHERE group_id = $1",
    ] {
        open.execute(sql, &[&group.id, &next]).await.unwrap();
    }
    let message = group.message(Uuid::new_v4(), 1);
    let told = send(&world, &b, message.clone()).await.unwrap_err();
    assert_eq!(reason(&told), Reason::Busy, "it surely did not land");
    let seen = log(&world, &b, &group).await.unwrap();
    assert_eq!(seen.last().unwrap().seq, group.seq);
    open.rollback().await.unwrap();
    // The number is given once, to the same bytes.
    let sent = send(&world, &b, message.clone()).await.unwrap();
    assert_eq!((sent.seq, sent.replayed), (group.seq + 1, false));
    let again = send(&world, &b, message).await.unwrap();
    assert_eq!((again.seq, again.replayed), (sent.seq, true));
    audit(&log(&world, &b, &group).await.unwrap());
}

#[tokio::test]
async fn subscribers_see_every_entry_once_while_eight_write_and_streams_are_cut() {
    let world = World::start(2, &[]).await;
    let devices: Vec<forge::Device> = (0..8).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&forge::Device> = devices.iter().collect();
    let mut group = Group::create(&world, all[0]).await;
    group.add(&world, all[0], &all, &all[1..]).await;
    const EACH: u64 = 40;
    let last = 1 + EACH * all.len() as u64;
    let writers = join_all(all.iter().map(|device| async {
        for _ in 0..EACH {
            send(&world, device, group.message(Uuid::new_v4(), 1))
                .await
                .unwrap();
        }
    }));
    let readers = join_all((0..4usize).map(|n| follow(&world, n, all[n], &group, last)));
    let (_, seen) = tokio::join!(writers, readers);
    let expected = log(&world, all[0], &group).await.unwrap();
    audit(&expected);
    for entries in seen {
        assert_eq!(
            entries, expected,
            "each sees the one log, nothing missed or repeated"
        );
    }
}

/// Follows to `last`, cutting its own stream after a few frames each time, on alternating nodes.
async fn follow(
    world: &World,
    n: usize,
    device: &forge::Device,
    group: &Group,
    last: u64,
) -> Vec<Entry> {
    let mut seen: Vec<Entry> = Vec::new();
    let mut node = n;
    while seen.last().is_none_or(|e| e.seq < last) {
        let cursor = seen.last().map(|entry| Cursor {
            group: Some(group.reference()),
            seq: entry.seq,
            chain: entry.chain.clone(),
        });
        let request = SubscribeRequest {
            cursors: cursor.into_iter().collect(),
            all_groups: true,
            ..SubscribeRequest::default()
        };
        node += 1;
        let mut client = world.nodes[node % 2].client.clone();
        let mut stream = client
            .subscribe(world.by(device, request))
            .await
            .unwrap()
            .into_inner();
        let mut frames = 3 + n;
        while frames > 0 && seen.last().is_none_or(|e| e.seq < last) {
            let frame = stream.message().await.unwrap().unwrap();
            if let Some(frame::Frame::Entries(entries)) = frame.frame {
                seen.extend(entries.entries);
                frames -= 1;
            }
        }
    }
    seen
}

#[tokio::test]
async fn a_restored_older_database_is_history_changed_for_everybody() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let backup = world.db.copy().await;
    let lost = send(&world, &a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    world.db.restore(&backup).await;
    let cursor = |seq, chain: &[u8]| Cursor {
        group: Some(group.reference()),
        seq,
        chain: chain.to_vec().into(),
    };
    let subscribe = async |cursor: Cursor| {
        let request = SubscribeRequest {
            cursors: vec![cursor],
            ..SubscribeRequest::default()
        };
        let mut stream = repeat(|| open(&world, &a, request.clone())).await;
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ended without a status"),
                Err(status) => {
                    let refusal = Refusal::from_status(&status);
                    let hex: String = group.id.iter().map(|b| format!("{b:02x}")).collect();
                    assert_eq!(refusal.metadata["group"], hex, "which group to stop");
                    return refusal.reason.unwrap();
                }
            }
        }
    };
    // Longer than the log, and then of the same length but another entry.
    assert_eq!(
        subscribe(cursor(lost.seq, &lost.chain)).await,
        Reason::HistoryChanged
    );
    send(&world, &b, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    assert_eq!(
        subscribe(cursor(lost.seq, &lost.chain)).await,
        Reason::HistoryChanged
    );
    let request = ReadLogRequest {
        after_chain: lost.chain.clone(),
        ..group.read(lost.seq)
    };
    let refused = world
        .client()
        .read_log(world.by(&a, request))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::HistoryChanged);
    let mut saw = group.clone();
    saw.sent(&lost);
    let tree = forge::tree(&[&a, &b], 4);
    let refused = submit(&world, &a, saw.commit(saw.info(&[], &[]), &[], &tree))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::HistoryChanged);
}

/// Repeats while the outcome is unknown, as a client does.
async fn repeat<T, F: Future<Output = Result<T, tonic::Status>>>(mut call: impl FnMut() -> F) -> T {
    loop {
        match call().await {
            Ok(value) => return value,
            Err(status) => assert!(
                Refusal::from_status(&status).outcome_unknown(),
                "{status:?}"
            ),
        }
    }
}

async fn open(
    world: &World,
    by: &forge::Device,
    request: SubscribeRequest,
) -> Result<tonic::Streaming<Frame>, tonic::Status> {
    let response = world.client().subscribe(world.by(by, request)).await?;
    Ok(response.into_inner())
}

#[tokio::test]
async fn a_database_that_goes_away_and_comes_back_loses_and_repeats_nothing() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let requests: Vec<_> = (0..20).map(|_| group.message(Uuid::new_v4(), 1)).collect();
    let sending = join_all(
        requests
            .iter()
            .map(|request| repeat(|| send(&world, &a, request.clone()))),
    );
    let outage = async {
        for _ in 0..3 {
            world.db.interrupt().await;
            world.db.resume().await;
        }
    };
    let (answers, ()) = tokio::join!(sending, outage);
    let seqs: HashSet<u64> = answers.iter().map(|a| a.seq).collect();
    assert_eq!(seqs.len(), 20);
    let entries = log(&world, &b, &group).await.unwrap();
    audit(&entries);
    assert_eq!(entries.len(), 21, "each message once");
}

#[tokio::test]
async fn a_stream_ends_with_its_token_its_device_and_its_node_and_says_why() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let ended = async |mut stream: tonic::Streaming<Frame>| loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("no status"),
            Err(status) => return reason(&status),
        }
    };
    let request = || SubscribeRequest {
        all_groups: true,
        ..SubscribeRequest::default()
    };
    // Past its end, within the leeway by five seconds.
    let short = support::with_token(
        request(),
        &world.authority.token(&a, "ds:interior.example", -55),
    );
    let stream = world.client().subscribe(short).await.unwrap().into_inner();
    assert_eq!(ended(stream).await, Reason::TokenExpired);
    let stream = world
        .client()
        .subscribe(world.by(&b, request()))
        .await
        .unwrap()
        .into_inner();
    world.revoke(&b).await;
    assert_eq!(ended(stream).await, Reason::DeviceRevoked);
    let stream = world
        .client()
        .subscribe(world.by(&a, request()))
        .await
        .unwrap()
        .into_inner();
    world.nodes[0].shutdown.begin();
    assert_eq!(ended(stream).await, Reason::ShuttingDown);
}

#[tokio::test]
async fn a_removed_member_gets_its_removal_then_the_end() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let request = SubscribeRequest {
        all_groups: true,
        device_inbox: true,
        ..SubscribeRequest::default()
    };
    let mut stream = world
        .client()
        .subscribe(world.by(&b, request))
        .await
        .unwrap()
        .into_inner();
    let removed = group.remove(&world, &a, &[&a], &[&b]).await;
    send(&world, &a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    let (mut seqs, mut welcome_first) = (Vec::new(), None);
    loop {
        match stream.message().await.unwrap().unwrap().frame.unwrap() {
            frame::Frame::Welcome(_) => welcome_first = welcome_first.or(Some(seqs.is_empty())),
            frame::Frame::Entries(entries) => seqs.extend(entries.entries.iter().map(|e| e.seq)),
            frame::Frame::Ended(ended) => {
                assert_eq!(
                    (ended.at_seq, ended.why()),
                    (removed.seq, EndedWhy::Removed)
                );
                break;
            }
            _ => {}
        }
    }
    assert_eq!(seqs, [1, removed.seq]);
    assert_eq!(welcome_first, Some(true));
}
