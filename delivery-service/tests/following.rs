//! Following a group: what is read once and shared by many streams, with a poll that comes too late to help.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{SubscribeRequest, frame::Frame as Kind, *},
};
use support::{Group, World, forge::Device, owner, reason, send};
use tonic::Streaming;
use uuid::Uuid;

/// Longer than any test.
const NO_POLL: [&str; 2] = ["--head-poll-millis", "3600000"];

/// A group of these on a world of so many nodes.
async fn group_of(nodes: usize, size: usize) -> (World, Vec<Device>, Group) {
    let world = World::start(nodes, &NO_POLL).await;
    let devices: Vec<Device> = (0..size).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&Device> = devices.iter().collect();
    let mut group = Group::create(&world, all[0]).await;
    group.add(&world, all[0], &all, &all[1..]).await;
    (world, devices, group)
}

/// A stream that has caught up, on one of the nodes.
async fn follow(world: &World, node: usize, by: &Device) -> Streaming<Frame> {
    let request = SubscribeRequest {
        all_groups: true,
        ..SubscribeRequest::default()
    };
    let mut client = world.nodes[node].client.clone();
    let answer = client.subscribe(world.by(by, request)).await.unwrap();
    let mut stream = answer.into_inner();
    while !matches!(next(&mut stream).await.unwrap(), Kind::CaughtUp(_)) {}
    stream
}

async fn next(stream: &mut Streaming<Frame>) -> Result<Kind, tonic::Status> {
    let frame = tokio::time::timeout(Duration::from_secs(30), stream.message()).await;
    Ok(frame.expect("a frame in time")?.unwrap().frame.unwrap())
}

/// The seqs of the next entries, with what belongs to no log passed over.
async fn seqs(stream: &mut Streaming<Frame>) -> Result<Vec<u64>, tonic::Status> {
    loop {
        if let Kind::Entries(entries) = next(stream).await? {
            return Ok(entries.entries.iter().map(|entry| entry.seq).collect());
        }
    }
}

/// A group that never was, and one that the device is not in, among those that it follows.
#[tokio::test]
async fn a_cursor_of_an_unknown_group_ends_its_own_subscription_and_no_other() {
    let (world, devices, group) = group_of(1, 2).await;
    let stranger = world.device(Uuid::new_v4());
    let foreign = Group::create(&world, &stranger).await;
    let never = chancery_proto::common::v1::GroupRef {
        id: vec![7; 32].into(),
        ..group.reference()
    };
    let unknown = [never, foreign.reference()];
    let cursor = |group| Cursor {
        group: Some(group),
        ..Cursor::default()
    };
    let mut cursors: Vec<Cursor> = unknown.iter().cloned().map(cursor).collect();
    cursors.insert(1, cursor(group.reference()));
    let request = SubscribeRequest {
        cursors,
        ..SubscribeRequest::default()
    };
    let mut client = world.nodes[0].client.clone();
    let answer = client
        .subscribe(world.by(&devices[1], request))
        .await
        .unwrap();
    let mut stream = answer.into_inner();
    let (mut ended, mut read) = (Vec::new(), 0);
    loop {
        match next(&mut stream).await.unwrap() {
            Kind::Ended(end) => {
                assert_eq!((end.at_seq, end.why()), (0, EndedWhy::Unknown));
                ended.push(end.group.unwrap());
            }
            Kind::Entries(entries) => read += entries.entries.len(),
            Kind::CaughtUp(_) => break,
            _ => {}
        }
    }
    assert_eq!(ended.len(), 2);
    assert!(unknown.iter().all(|group| ended.contains(group)));
    assert!(read > 0);
    // And it is live.
    let message = group.message(Uuid::new_v4(), 1);
    let sent = send(&world, &devices[0], message).await.unwrap();
    assert_eq!(seqs(&mut stream).await.unwrap(), [sent.seq]);
}

/// The last entry of one group's log is gone from the table; streams that begin later, and those that are there.
#[tokio::test]
async fn a_group_that_cannot_be_read_ends_alone() {
    let (world, devices, group) = group_of(1, 2).await;
    let [a, b] = &devices[..] else { panic!() };
    let mut broken = Group::create(&world, a).await;
    broken.add(&world, a, &[a, b], &[b]).await;
    let mut there = follow(&world, 0, b).await;
    let id = hex::encode(&broken.id);
    let sql = format!(
        "DELETE FROM log WHERE group_id = '\\x{id}' AND seq = {}",
        broken.seq
    );
    owner(&world).await.batch_execute(&sql).await.unwrap();

    let request = SubscribeRequest {
        all_groups: true,
        ..SubscribeRequest::default()
    };
    let mut client = world.nodes[0].client.clone();
    let answer = client.subscribe(world.by(b, request)).await.unwrap();
    let mut begun = answer.into_inner();
    let (mut ended, mut read) = (Vec::new(), Vec::new());
    loop {
        match next(&mut begun).await.unwrap() {
            Kind::Ended(end) => ended.push(end),
            Kind::Entries(entries) => read.push(entries.group.unwrap()),
            Kind::CaughtUp(_) => break,
            _ => {}
        }
    }
    let [end] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(end.group, Some(broken.reference()));
    // The device was added by the entry that is gone: nothing before it is for its eyes.
    assert_eq!((end.at_seq, end.why()), (0, EndedWhy::Failed));
    assert!(read.iter().all(|of| *of == group.reference()) && !read.is_empty());
    // It stays quiet about the broken group whatever comes, and both streams hear of the other one.
    for _ in 1..=2 {
        let sent = send(&world, a, group.message(Uuid::new_v4(), 1))
            .await
            .unwrap();
        for stream in [&mut begun, &mut there] {
            assert_eq!(seqs(stream).await.unwrap(), [sent.seq]);
        }
    }
}

#[tokio::test]
async fn every_follower_gets_the_same_entries_and_then_the_state() {
    let (world, devices, group) = group_of(1, 5).await;
    let mut streams = Vec::new();
    for device in &devices {
        streams.push(follow(&world, 0, device).await);
    }
    for n in 1..=3 {
        let message = group.message(Uuid::new_v4(), 1);
        let sent = send(&world, &devices[0], message.clone()).await.unwrap();
        assert_eq!(sent.seq, group.seq + n);
        for stream in &mut streams {
            let Kind::Entries(entries) = next(stream).await.unwrap() else {
                panic!("entries come first");
            };
            let [entry] = &entries.entries[..] else {
                panic!("one at a time");
            };
            assert_eq!((entry.seq, &entry.chain), (sent.seq, &sent.chain));
            assert_eq!(
                entry.body,
                Some(entry::Body::Payload(message.message.clone()))
            );
            let Kind::State(state) = next(stream).await.unwrap() else {
                panic!("the state comes behind them");
            };
            assert_eq!((state.head_seq, &state.chain), (sent.seq, &sent.chain));
        }
    }
}

#[tokio::test]
async fn a_revoked_follower_gets_nothing_that_was_accepted_later() {
    let (world, devices, mut group) = group_of(1, 3).await;
    let [a, b, c] = &devices[..] else { panic!() };
    let mut stays = follow(&world, 0, b).await;
    let mut gone = follow(&world, 0, c).await;
    send(&world, a, group.message(Uuid::new_v4(), 1))
        .await
        .map(|sent| group.sent(&sent))
        .unwrap();
    assert_eq!(seqs(&mut gone).await.unwrap(), [group.seq]);
    assert_eq!(seqs(&mut stays).await.unwrap(), [group.seq]);
    world.revoke(c).await;
    // No poll tells the streams: only who shares the entry does. It is one that no barrier holds up.
    let seq = world.leave(b, &group, 1).await;
    assert_eq!(seqs(&mut stays).await.unwrap(), [seq]);
    let end = seqs(&mut gone).await.unwrap_err();
    assert_eq!(reason(&end), Reason::DeviceRevoked);
}

#[tokio::test]
async fn a_removed_follower_gets_its_removal_and_no_more() {
    let (world, devices, mut group) = group_of(1, 3).await;
    let [a, b, c] = &devices[..] else { panic!() };
    let mut stays = follow(&world, 0, b).await;
    let mut gone = follow(&world, 0, c).await;
    group.remove(&world, a, &[a, b], &[c]).await;
    let removed_at = group.seq;
    let sent = send(&world, a, group.message(Uuid::new_v4(), 1))
        .await
        .unwrap();
    assert_eq!(seqs(&mut gone).await.unwrap(), [removed_at]);
    let Kind::Ended(ended) = next(&mut gone).await.unwrap() else {
        panic!("its end follows");
    };
    assert_eq!((ended.at_seq, ended.why()), (removed_at, EndedWhy::Removed));
    let mut seen = Vec::new();
    while seen.last() != Some(&sent.seq) {
        seen.extend(seqs(&mut stays).await.unwrap());
    }
    assert_eq!(seen, [removed_at, sent.seq]);
    // Whoever comes back goes on behind the gap, on the same stream.
    group.sent(&sent);
    group.add(&world, a, &[a, b, c], &[c]).await;
    assert_eq!(seqs(&mut gone).await.unwrap(), [group.seq]);
}

#[tokio::test]
async fn nodes_wake_each_other() {
    let (world, devices, group) = group_of(2, 2).await;
    let mut stream = follow(&world, 1, &devices[1]).await;
    let mut writer = world.nodes[0].client.clone();
    let mut seen = Vec::new();
    // The nodes need a moment to learn of one another; what was said before that is read with what comes after.
    while seen.is_empty() {
        let message = group.message(Uuid::new_v4(), 1);
        writer
            .send_message(world.by(&devices[0], message))
            .await
            .unwrap();
        let more = tokio::time::timeout(Duration::from_millis(200), seqs(&mut stream)).await;
        seen.extend(more.map_or_else(|_| Vec::new(), Result::unwrap));
    }
    let first: Vec<u64> = (group.seq + 1..).take(seen.len()).collect();
    assert_eq!(seen, first);
}

#[tokio::test]
async fn a_follower_that_reads_late_misses_nothing() {
    let (world, devices, group) = group_of(1, 2).await;
    let mut late = follow(&world, 0, &devices[1]).await;
    // More than its connection holds, and more than is kept for who is a little late.
    let (count, mut seen) = (1_000, Vec::new());
    for _ in 0..count {
        let message = group.message(Uuid::new_v4(), 1);
        send(&world, &devices[0], message).await.unwrap();
    }
    while seen.len() < count {
        seen.extend(seqs(&mut late).await.unwrap());
    }
    let all: Vec<u64> = (group.seq + 1..).take(count).collect();
    assert_eq!(seen, all);
}
