//! Every path that ends access ends in the feed, and refuses the device from then on.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    auth::v1::{
        DeleteUserRequest, DeviceStatus, GetUsersRequest, ReinstateUserRequest,
        SearchDirectoryRequest, StatusChange, SuspendUserRequest, WatchDeviceStatusRequest,
        device_status::Subject, signed_status::Content,
    },
    common::v1::{Reason, UserRef},
};
use prost::Message as _;
use support::*;

/// The whole feed, in order.
async fn feed(world: &World) -> Vec<DeviceStatus> {
    let request = WatchDeviceStatusRequest::default();
    let answer = world.client().watch_device_status(request).await;
    let mut stream = answer.unwrap().into_inner();
    let mut statuses = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        for item in part.items {
            if let Some(Content::Status(bytes)) = item.content {
                statuses.push(DeviceStatus::decode(bytes).unwrap());
            }
        }
        if part.caught_up {
            break;
        }
    }
    statuses
}

async fn suspend(world: &World, user: &UserRef) -> u64 {
    let user = Some(user.clone());
    let request = SuspendUserRequest { user };
    let answer = world.admin().suspend_user(request).await.unwrap();
    answer.into_inner().seq
}

#[tokio::test]
async fn a_suspended_user_gets_no_token_until_reinstated() {
    let world = World::start(1, &[]).await;
    let device = Device::enroll(&world, "alice").await;
    let token = device.token(&world, AS).await.unwrap();
    assert_eq!(suspend(&world, &device.user).await, 1);
    assert_eq!(suspend(&world, &device.user).await, 1, "a repeat");
    let refused = device.token(&world, DS).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::UserSuspended);
    let users = GetUsersRequest {
        users: vec![device.user.clone()],
    };
    let refused = world.client().get_users(with_token(users, &token)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::UserSuspended);
    let request = ReinstateUserRequest {
        user: Some(device.user.clone()),
    };
    world.admin().reinstate_user(request).await.unwrap();
    device.token(&world, DS).await.unwrap();
    let feed = feed(&world).await;
    let user = Some(Subject::User(device.user.clone()));
    assert!(feed.iter().all(|status| status.subject == user));
    let changes: Vec<_> = feed.iter().map(DeviceStatus::change).collect();
    assert_eq!(changes, [StatusChange::Suspended, StatusChange::Reinstated]);
}

#[tokio::test]
async fn a_deleted_user_has_no_devices_no_names_and_no_way_back() {
    let world = World::start(1, &[]).await;
    let alice = Device::enroll(&world, "alice").await;
    let second = Device::enroll(&world, "alice").await;
    let bob = Device::enroll(&world, "bob").await;
    let unused = world.invite("alice").await;
    let request = DeleteUserRequest {
        user: Some(alice.user.clone()),
    };
    let seq = world.admin().delete_user(request.clone()).await.unwrap();
    assert_eq!(seq.into_inner().seq, 3);
    for device in [&alice, &second] {
        let refused = device.token(&world, DS).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::DeviceRevoked);
    }
    let again = world.admin().delete_user(request).await.unwrap_err();
    assert_eq!(reason(&again), Reason::User);
    let key = Key::new();
    let refused = world.client().enroll(key.request(&unused, now())).await;
    assert!(refused.is_err());
    let search = SearchDirectoryRequest {
        query: "alice".into(),
        ..SearchDirectoryRequest::default()
    };
    let request = bob.by(&world, search).await;
    let found = world.client().search_directory(request).await.unwrap();
    assert!(found.into_inner().users.is_empty());
    // Members of groups need a signed statement about each device.
    let statuses = feed(&world).await;
    let devices: Vec<_> = statuses
        .iter()
        .filter_map(|status| match &status.subject {
            Some(Subject::Device(device)) => Some(device.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(devices, [alice.device.clone(), second.device.clone()]);
    assert!(statuses.iter().all(|s| s.change() == StatusChange::Deleted));
    // The handle is free, and is another person.
    let new = Device::enroll(&world, "alice").await;
    assert_ne!(new.user, alice.user);
}

#[tokio::test]
async fn the_end_of_a_certificate_is_said_once() {
    let world = World::start(2, &["--expiry-look-seconds", "1"]).await;
    let device = Device::enroll(&world, "alice").await;
    Device::enroll(&world, "bob").await;
    let id = uuid::Uuid::from_slice(&device.device.id).unwrap();
    let mut live = world
        .client()
        .watch_device_status(WatchDeviceStatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    world
        .sql(&format!(
            "UPDATE device_keys SET not_after = now() - interval '1 second' WHERE device_id = '{id}'"
        ))
        .await;
    let status = loop {
        let part = live.message().await.unwrap().unwrap();
        let status = part.items.into_iter().find_map(|item| match item.content {
            Some(Content::Status(bytes)) => Some(DeviceStatus::decode(bytes).unwrap()),
            _ => None,
        });
        if let Some(status) = status {
            break status;
        }
    };
    assert_eq!(status.change(), StatusChange::Expired);
    assert_eq!(status.subject, Some(Subject::Device(device.device.clone())));
    let refused = device.token(&world, DS).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::CredentialInvalid);
    assert_eq!(feed(&world).await.len(), 1);
}
