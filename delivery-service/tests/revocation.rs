//! Revoked devices: refused from the moment of the record, marked in their groups, removed by members; suspended ones cut off and let in again.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{frame::Frame as Kind, requested::What, *},
    status::Refusal,
};
use delivery_service::{ordering::group::DeviceKey, store};
use service_kit::db::{Db, PoolOptions, TxError};
use support::{forge::Device, *};
use tonic::Streaming;
use uuid::Uuid;

async fn trio(nodes: usize) -> (World, [Device; 3], Group) {
    let world = World::start(nodes, &[]).await;
    let devices = [1, 2, 3].map(|n| world.device(Uuid::from_u128(n)));
    let [a, b, c] = &devices;
    let mut group = Group::create(&world, a).await;
    group.add(&world, a, &[a, b, c], &[b, c]).await;
    (world, devices, group)
}

/// The end of the log, once it holds an entry of this kind at its end.
async fn marked(world: &World, by: &Device, group: &mut Group, count: usize) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let log = log(world, by, group).await.unwrap();
        let kind = EntryKind::RemovalRequested as u32;
        if log.iter().filter(|e| e.kind == kind).count() == count {
            let last = log.last().unwrap();
            group.seq = last.seq;
            group.chain = last.chain.as_ref().try_into().unwrap();
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "never marked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn subscribe(world: &World, by: &Device) -> Streaming<Frame> {
    let request = SubscribeRequest {
        all_groups: true,
        ..SubscribeRequest::default()
    };
    let request = world.by(by, request);
    let mut stream = world
        .client()
        .subscribe(request)
        .await
        .unwrap()
        .into_inner();
    while !matches!(next(&mut stream).await, Kind::CaughtUp(_)) {}
    stream
}

async fn next(stream: &mut Streaming<Frame>) -> Kind {
    let frame = tokio::time::timeout(Duration::from_secs(20), stream.message()).await;
    frame
        .expect("a frame in time")
        .unwrap()
        .unwrap()
        .frame
        .unwrap()
}

#[tokio::test]
async fn a_revoked_member_bars_messages_until_a_commit_removes_it() {
    let (world, [a, b, c], mut group) = trio(2).await;
    world.revoke(&c).await;
    marked(&world, &a, &mut group, 1).await;
    let message = group.message(Uuid::new_v4(), 1);
    let refused = send(&world, &b, message.clone()).await.unwrap_err();
    let refusal = Refusal::from_status(&refused);
    assert_eq!(refusal.reason, Some(Reason::PendingRemoval));
    assert_eq!(refusal.metadata["count"], "1");
    assert!(refusal.metadata["first"].contains(&c.device.to_string()));
    // Signed evidence, page by page.
    let request = ListPendingRemovalsRequest {
        group: Some(group.reference()),
        ..ListPendingRemovalsRequest::default()
    };
    let request = world.by(&b, request);
    let list = world.client().list_pending_removals(request).await.unwrap();
    let removals = list.into_inner().removals;
    assert_eq!(removals.len(), 1);
    assert_eq!(removals[0].device, Some(c.device_ref()));
    assert_eq!(removals[0].evidence.as_ref(), b"evidence");
    // A Commit that leaves it in is refused, and so is one that adds it.
    let tree = forge::tree(&[&a, &b, &c], 5);
    let request = group.commit(group.info(&[], &[]), &[], &tree);
    let refused = submit(&world, &a, request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::PendingRemoval);
    group.remove(&world, &b, &[&a, &b], &[&c]).await;
    let sent = send(&world, &b, group.message(Uuid::new_v4(), 1)).await;
    group.sent(&sent.unwrap());
    let tree = forge::tree(&[&a, &b, &c], 6);
    let request = group.commit(group.info(&[&c], &[]), &[], &tree);
    let refused = submit(&world, &a, request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::CommitInfoInvalid);
}

#[tokio::test]
async fn everything_is_refused_to_a_revoked_device_and_its_stream_reads_nothing_more() {
    let (world, [a, b, c], mut group) = trio(1).await;
    let mut stream = subscribe(&world, &c).await;
    let reference = world.publish(&c).await;
    world.revoke(&c).await;
    // Accepted after the record: her stream must not carry it.
    let sent = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    let after = sent.map(|sent| sent.seq).unwrap_or(u64::MAX);
    let ended = loop {
        match tokio::time::timeout(Duration::from_secs(20), stream.message()).await {
            Ok(Ok(Some(frame))) => {
                if let Some(Kind::Entries(entries)) = frame.frame {
                    assert!(entries.entries.iter().all(|entry| entry.seq < after));
                }
            }
            Ok(Ok(None)) => panic!("ended without a status"),
            Ok(Err(status)) => break status,
            Err(_) => panic!("the stream goes on"),
        }
    };
    assert_eq!(reason(&ended), Reason::DeviceRevoked);
    let revoked = |status: tonic::Status| assert_eq!(reason(&status), Reason::DeviceRevoked);
    revoked(log(&world, &c, &group).await.unwrap_err());
    let message = group.message(Uuid::new_v4(), 1);
    revoked(send(&world, &c, message).await.unwrap_err());
    let inbox = world.by(&c, ListWelcomesRequest::default());
    revoked(world.client().list_welcomes(inbox).await.unwrap_err());
    let info = GetGroupInfoRequest {
        group: Some(group.reference()),
    };
    revoked(
        world
            .client()
            .get_group_info(world.by(&c, info))
            .await
            .unwrap_err(),
    );
    let subscribe = world.by(&c, SubscribeRequest::default());
    let mut refused = world
        .client()
        .subscribe(subscribe)
        .await
        .unwrap()
        .into_inner();
    revoked(refused.message().await.unwrap_err());
    // Its KeyPackages are gone, and no Commit brings it into another group.
    let claim = ClaimKeyPackagesRequest {
        claim_id: vec![1; 16].into(),
        devices: vec![c.device_ref()],
        suites: vec![1],
        ..ClaimKeyPackagesRequest::default()
    };
    let mut claims = world
        .client()
        .claim_key_packages(world.by(&a, claim))
        .await
        .unwrap()
        .into_inner();
    let claims = claims.message().await.unwrap().unwrap().claims;
    assert_eq!(claims[0].outcome(), ClaimOutcome::Revoked);
    let other = Group::create(&world, &b).await;
    let tree = forge::tree(&[&b, &c], 1);
    let request = other.commit(other.info(&[&c], &[]), &[reference], &tree);
    let refused = submit(&world, &b, request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::CommitInfoInvalid);
    marked(&world, &a, &mut group, 1).await;
}

#[tokio::test]
async fn one_live_device_at_a_time_is_asked_to_remove() {
    let (world, [a, b, c], mut group) = trio(2).await;
    let mut streams = vec![
        (&a, subscribe(&world, &a).await),
        (&b, subscribe(&world, &b).await),
    ];
    world.revoke(&c).await;
    marked(&world, &a, &mut group, 1).await;
    // Nobody answers: each is asked once, the second after the first one's turn.
    let mut deadlines = Vec::new();
    for (device, stream) in &mut streams {
        let (deadline, item) = loop {
            if let Kind::Requested(requested) = next(stream).await
                && let Some(What::Remove(item)) = requested.what
            {
                break (requested.deadline_micros, item);
            }
        };
        assert_eq!(item.devices, [c.device_ref()], "{}", device.device);
        deadlines.push(deadline);
    }
    let apart = deadlines[0].abs_diff(deadlines[1]);
    assert!(apart >= 1_900_000, "asked {apart} microseconds apart");
    group.remove(&world, &a, &[&a, &b], &[&c]).await;
}

#[tokio::test]
async fn members_of_a_new_epoch_are_asked_to_report_it() {
    let (world, [a, b, c], mut group) = trio(1).await;
    let sent = send(&world, &b, group.message(Uuid::new_v4(), 1)).await;
    group.sent(&sent.unwrap());
    let mut stream = subscribe(&world, &c).await;
    let tree = forge::tree(&[&a, &b, &c], 5);
    let request = group.commit(group.info(&[], &[]), &[], &tree);
    let result = submit(&world, &a, request).await.unwrap();
    loop {
        if let Kind::Requested(requested) = next(&mut stream).await
            && let Some(What::Report(item)) = requested.what
        {
            assert_eq!(item.epoch_seq, result.seq);
            return;
        }
    }
}

#[tokio::test]
async fn a_removal_in_flight_and_a_revocation_of_many_end_in_the_same_state() {
    let world = World::start(2, &[]).await;
    let a = world.device(Uuid::from_u128(1));
    let others: Vec<Device> = (2..62).map(|n| world.device(Uuid::from_u128(n))).collect();
    let mut group = Group::create(&world, &a).await;
    let added: Vec<&Device> = others.iter().collect();
    let all: Vec<&Device> = std::iter::once(&a).chain(&others).collect();
    group.add(&world, &a, &all, &added).await;
    for device in &others {
        world.revoke(device).await;
    }
    marked(&world, &a, &mut group, others.len()).await;
    let mut removals = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListPendingRemovalsRequest {
            group: Some(group.reference()),
            page_token,
        };
        let request = world.by(&a, request);
        let page = world.client().list_pending_removals(request).await.unwrap();
        let page = page.into_inner();
        removals.extend(page.removals);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(removals.len(), others.len());
    // All but one are removed: the bar stays. With the last one it goes.
    let tree = forge::tree(&[&a, &others[0]], 3);
    let request = group.commit(group.info(&[], &added[1..]), &[], &tree);
    let refused = submit(&world, &a, request).await.unwrap_err();
    assert_eq!(Refusal::from_status(&refused).metadata["count"], "1");
    group.remove(&world, &a, &[&a], &added).await;
    let sent = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    group.sent(&sent.unwrap());
}

#[tokio::test]
async fn a_suspended_user_is_cut_off_and_comes_back_as_it_was() {
    let (world, [a, _, c], mut group) = trio(1).await;
    world.publish(&c).await;
    let mut stream = subscribe(&world, &c).await;
    let db = Db::connect(&world.db.url(), &PoolOptions::default()).unwrap();
    let user = c.user;
    let change = async |suspend: bool| {
        db.run_tx("suspend", move |tx| {
            Box::pin(async move {
                let domain = store::devices::domain_id(tx, forge::DOMAIN).await?;
                if suspend {
                    store::revocations::suspend(tx, domain, user, false, 1).await?;
                } else {
                    store::revocations::reinstate(tx, domain, user, 2).await?;
                }
                Ok::<_, TxError<delivery_service::error::Error>>(())
            })
        })
        .await
        .unwrap();
    };
    change(true).await;
    let ended = loop {
        match tokio::time::timeout(Duration::from_secs(20), stream.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Err(status)) => break status,
            _ => panic!("the stream goes on, or ended without a status"),
        }
    };
    assert_eq!(reason(&ended), Reason::UserSuspended);
    let refused = log(&world, &c, &group).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::UserSuspended);
    let claim = async |n: u8| {
        let request = ClaimKeyPackagesRequest {
            claim_id: vec![n; 16].into(),
            devices: vec![c.device_ref()],
            suites: vec![1],
            ..ClaimKeyPackagesRequest::default()
        };
        let request = world.by(&a, request);
        let mut claims = world.client().claim_key_packages(request).await.unwrap();
        let part = claims.get_mut().message().await.unwrap().unwrap();
        part.claims[0].outcome()
    };
    assert_eq!(claim(1).await, ClaimOutcome::Suspended);
    // Nobody has to remove it, and messages go on.
    let sent = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    group.sent(&sent.unwrap());
    change(false).await;
    let seen = log(&world, &c, &group).await.unwrap();
    assert_eq!(seen.last().unwrap().seq, group.seq);
    assert_eq!(claim(1).await, ClaimOutcome::KeyPackage);
}

#[tokio::test]
async fn an_unknown_device_may_be_revoked_and_the_last_leaver_closes_the_group() {
    let (world, [a, b, c], mut group) = trio(1).await;
    let db = Db::connect(&world.db.url(), &PoolOptions::default()).unwrap();
    let nobody = Uuid::from_u128(99);
    db.run_tx("revoke", move |tx| {
        Box::pin(async move {
            let domain = store::devices::domain_id(tx, forge::DOMAIN).await?;
            let key = DeviceKey {
                domain,
                device: nobody,
            };
            store::revocations::revoke(tx, key, b"evidence").await?;
            Ok::<_, TxError<delivery_service::error::Error>>(())
        })
    })
    .await
    .unwrap();
    let mut stream = subscribe(&world, &a).await;
    for device in [&b, &c, &a] {
        let joined_seq = if device.device == a.device { 0 } else { 1 };
        group.seq = world.leave(device, &group, joined_seq).await;
    }
    let refused = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::GroupClosed);
    let ended = loop {
        if let Kind::Ended(ended) = next(&mut stream).await {
            break ended;
        }
    };
    assert_eq!((ended.why(), ended.at_seq), (EndedWhy::Left, group.seq));
}
