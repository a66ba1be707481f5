//! The past of the status feed: each item names the one before, a cursor names the last one, and where a database with another past is put in place of
//! the one that was followed, nobody is told that nothing happened.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{auth::v1::*, common::v1::Reason, signed};
use prost::Message as _;
use support::{Device, World, reason};
use tonic::{Status, Streaming};

type Feed = Streaming<WatchDeviceStatusResponse>;

async fn watch(world: &World, after_seq: u64, item_sha256: &[u8]) -> Result<Feed, Status> {
    let request = WatchDeviceStatusRequest {
        after_seq,
        item_sha256: item_sha256.to_vec().into(),
        ..WatchDeviceStatusRequest::default()
    };
    let answer = world.client().watch_device_status(request).await;
    answer.map(tonic::Response::into_inner)
}

/// Statuses, as they were signed, up to the next heartbeat, and that.
async fn until_heartbeat(feed: &mut Feed) -> Result<(Vec<Vec<u8>>, StatusHeartbeat), Status> {
    let mut statuses = Vec::new();
    loop {
        let part = feed.message().await?.unwrap();
        for item in part.items {
            match item.content.unwrap() {
                signed_status::Content::Status(bytes) => statuses.push(bytes.to_vec()),
                signed_status::Content::Heartbeat(bytes) => {
                    return Ok((statuses, StatusHeartbeat::decode(bytes).unwrap()));
                }
            }
        }
    }
}

async fn revoke(world: &World, device: &Device) {
    let request = AdminRevokeDeviceRequest {
        device: Some(device.device.clone()),
    };
    world.admin().admin_revoke_device(request).await.unwrap();
}

async fn devices(world: &World, count: usize) -> Vec<Device> {
    let mut devices = Vec::new();
    for n in 0..count {
        devices.push(Device::enroll(world, &format!("user{n}")).await);
    }
    devices
}

#[tokio::test]
async fn every_item_names_the_one_before_and_the_heartbeat_the_last() {
    let world = World::start(1, &[]).await;
    for device in devices(&world, 3).await {
        revoke(&world, &device).await;
    }
    let mut feed = watch(&world, 0, b"").await.unwrap();
    let (statuses, heartbeat) = until_heartbeat(&mut feed).await.unwrap();
    assert_eq!(statuses.len(), 3);
    let (mut previous, mut at_micros) = (Vec::new(), 0);
    for bytes in statuses {
        let status = DeviceStatus::decode(bytes.as_slice()).unwrap();
        assert_eq!(status.previous_sha256, previous);
        assert!(status.at_micros >= at_micros);
        (previous, at_micros) = (signed::status_sha256(&bytes).to_vec(), status.at_micros);
    }
    assert_eq!(
        (heartbeat.seq, heartbeat.item_sha256.to_vec()),
        (3, previous)
    );
}

#[tokio::test]
async fn an_item_is_never_older_than_the_one_before() {
    let world = World::start(1, &[]).await;
    let devices = devices(&world, 2).await;
    revoke(&world, &devices[0]).await;
    let mut feed = watch(&world, 0, b"").await.unwrap();
    let (statuses, _) = until_heartbeat(&mut feed).await.unwrap();
    // As if the clock had been an hour ahead when it was signed.
    let mut ahead = DeviceStatus::decode(statuses[0].as_slice()).unwrap();
    ahead.at_micros += 3_600_000_000;
    let hex: String = ahead
        .encode_to_vec()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    world
        .sql(&format!("UPDATE status_feed SET status = '\\x{hex}'"))
        .await;
    revoke(&world, &devices[1]).await;
    let mut feed = watch(&world, 1, b"").await.unwrap();
    let (statuses, _) = until_heartbeat(&mut feed).await.unwrap();
    let second = DeviceStatus::decode(statuses[0].as_slice()).unwrap();
    assert_eq!(second.at_micros, ahead.at_micros);
}

#[tokio::test]
async fn a_cursor_that_names_another_item_is_of_another_past() {
    let world = World::start(1, &[]).await;
    for device in devices(&world, 2).await {
        revoke(&world, &device).await;
    }
    let mut feed = watch(&world, 0, b"").await.unwrap();
    let (statuses, _) = until_heartbeat(&mut feed).await.unwrap();
    let hashes: Vec<_> = statuses.iter().map(|s| signed::status_sha256(s)).collect();
    for (after_seq, hash, expected) in [
        (1, &hashes[0][..], None),
        (2, &hashes[1], None),
        // A cursor without a hash, of a reader that keeps none.
        (2, b"", None),
        (2, &hashes[0], Some(Reason::HistoryChanged)),
        (1, &[7; 32], Some(Reason::HistoryChanged)),
        (3, &hashes[1], Some(Reason::HistoryChanged)),
        (2, b"short", Some(Reason::Malformed)),
    ] {
        let refused = watch(&world, after_seq, hash).await.err();
        let refused = refused.map(|status| reason(&status));
        assert_eq!(refused, expected, "{after_seq} {hash:02x?}");
    }
}

/// The database behind a running stream is another one, or a replica that took over with less than all: what the reader has seen is compared.
#[tokio::test]
async fn a_stream_whose_past_is_gone_ends_with_its_name() {
    let swaps = [
        // Shorter than what was sent.
        "DELETE FROM status_feed WHERE seq = 2; UPDATE service_state SET status_seq = 1",
        // The last number was given to something else.
        "UPDATE status_feed SET status = '\\x0102' WHERE seq = 2",
        // And others came after it.
        "UPDATE status_feed SET status = '\\x0102' WHERE seq = 2; \
         INSERT INTO status_feed SELECT 3, status, signature, chain FROM status_feed WHERE seq = 1; UPDATE service_state SET status_seq = 3",
    ];
    for swap in swaps {
        let world = World::start(1, &["--heartbeat-seconds", "1"]).await;
        for device in devices(&world, 2).await {
            revoke(&world, &device).await;
        }
        let mut feed = watch(&world, 0, b"").await.unwrap();
        let (statuses, _) = until_heartbeat(&mut feed).await.unwrap();
        assert_eq!(statuses.len(), 2);
        world.sql(swap).await;
        let ended = loop {
            match until_heartbeat(&mut feed).await {
                // One that was under way.
                Ok((statuses, _)) => assert!(statuses.is_empty(), "{swap}"),
                Err(status) => break status,
            }
        };
        assert_eq!(reason(&ended), Reason::HistoryChanged, "{swap}");
    }
}
