//! Loops over devices: one that fails holds up no other, and leaves nothing behind.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::collections::BTreeSet;

use chancery_proto::{
    auth::v1::{
        DeviceStatus, StatusChange, WatchDeviceStatusRequest, WatchDeviceStatusResponse,
        device_status::Subject, signed_status::Content,
    },
    common::v1::DeviceRef,
};
use prost::Message as _;
use service_kit::items::fault;
use support::{Device, World};
use tonic::Streaming;

async fn next_expired(feed: &mut Streaming<WatchDeviceStatusResponse>) -> (u64, DeviceRef) {
    loop {
        let part = feed.message().await.unwrap().unwrap();
        for item in part.items {
            let Some(Content::Status(bytes)) = item.content else {
                continue;
            };
            let status = DeviceStatus::decode(bytes).unwrap();
            assert_eq!(status.change(), StatusChange::Expired);
            match status.subject.unwrap() {
                Subject::Device(device) => return (status.seq, device),
                Subject::User(user) => panic!("{user:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_whose_end_cannot_be_said_holds_up_no_other() {
    let world = World::start(1, &["--expiry-look-seconds", "1"]).await;
    let alice = Device::enroll(&world, "alice").await;
    let bob = Device::enroll(&world, "bob").await;
    let id = |device: &Device| uuid::Uuid::from_slice(&device.device.id).unwrap();
    let feed = WatchDeviceStatusRequest::default();
    let feed = world.client().watch_device_status(feed).await;
    let mut feed = feed.unwrap().into_inner();
    // It fails after the feed has given out a number for it.
    let (first, second) = (id(&alice), id(&bob));
    world
        .sql(&format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
             CREATE TRIGGER refuse BEFORE UPDATE ON devices FOR EACH ROW WHEN (NEW.device_id = '{first}') EXECUTE FUNCTION refuse(); \
             UPDATE device_keys SET not_after = now() - interval '2 seconds' WHERE device_id = '{first}'; \
             UPDATE device_keys SET not_after = now() - interval '1 second' WHERE device_id = '{second}'"
        ))
        .await;
    assert_eq!(next_expired(&mut feed).await, (1, bob.device.clone()));
    world.sql("DROP TRIGGER refuse ON devices").await;
    assert_eq!(next_expired(&mut feed).await, (2, alice.device.clone()));
    let all = BTreeSet::from(["certificate_expiry"]);
    assert_eq!(fault::loops(), all, "a loop without a test");
}
