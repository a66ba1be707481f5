//! The directory, revocation, the status feed, the operator's side.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::collections::BTreeSet;

use chancery_proto::{
    auth::v1::*,
    certificate::Anchors,
    common::v1::{DeviceRef, Reason},
    signed,
};
use prost::Message as _;
use support::{AS, DOMAIN, DS, Device, World, now, reason};
use tonic::{Status, Streaming};

fn person(handle: &str, name: &str) -> User {
    User {
        handle: handle.into(),
        display_name: name.into(),
        organisation: "Interior".into(),
        ..User::default()
    }
}

async fn search(world: &World, by: &Device, query: &str) -> Vec<String> {
    let (mut handles, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = SearchDirectoryRequest {
            query: query.into(),
            page_size: 2,
            page_token,
        };
        let page = world
            .client()
            .search_directory(by.by(world, request).await)
            .await
            .unwrap()
            .into_inner();
        handles.extend(page.users.into_iter().map(|user| user.handle));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return handles;
        }
    }
}

#[tokio::test]
async fn people_are_found_by_the_beginnings_of_their_words() {
    let world = World::start(1, &[]).await;
    let request = ImportUsersRequest {
        users: vec![
            person("anna.meier@interior.example", "Anna Meier-Łukasz"),
            person("anton@interior.example", "Anton Berg"),
            person("b1@interior.example", "Béatrice Anders"),
            person("zoe@interior.example", "Zoë O'Neil"),
            person("percent@interior.example", "100% _wild\\card"),
        ],
    };
    let done = world.admin().import_users(request).await.unwrap();
    assert_eq!(done.into_inner().created, 5);
    let by = Device::enroll(&world, "zz").await;
    let cases: [(&str, &[&str]); 9] = [
        (
            "an",
            &[
                "anna.meier@interior.example",
                "anton@interior.example",
                "b1@interior.example",
            ],
        ),
        ("ANNA mei", &["anna.meier@interior.example"]),
        ("łuk", &["anna.meier@interior.example"]),
        ("bé and", &["b1@interior.example"]),
        ("neil", &["zoe@interior.example"]),
        ("anna.m", &["anna.meier@interior.example"]),
        ("eier", &[]),
        ("%%", &[]),
        ("__", &[]),
    ];
    for (query, expected) in cases {
        assert_eq!(search(&world, &by, query).await, expected, "{query:?}");
    }
    // Too short; and a zero octet, which no text of the database can hold.
    for query in ["a", "alice\0"] {
        let request = SearchDirectoryRequest {
            query: query.into(),
            ..SearchDirectoryRequest::default()
        };
        let refused = world
            .client()
            .search_directory(by.by(&world, request).await)
            .await;
        assert_eq!(reason(&refused.unwrap_err()), Reason::Malformed);
    }
}

#[tokio::test]
async fn a_second_import_renames_and_keeps_the_id() {
    let world = World::start(1, &[]).await;
    let import = |name: &str| ImportUsersRequest {
        users: vec![person("anna@x", name)],
    };
    world.admin().import_users(import("Anna")).await.unwrap();
    let list = || async {
        let request = ListUsersRequest::default();
        world
            .admin()
            .list_users(request)
            .await
            .unwrap()
            .into_inner()
    };
    let before = list().await.users.remove(0);
    let again = world.admin().import_users(import("Annabel")).await.unwrap();
    assert_eq!(again.into_inner().updated, 1);
    let after = list().await.users.remove(0);
    assert_eq!(
        (before.user, after.display_name.as_str()),
        (after.user, "Annabel")
    );
    let by = Device::enroll(&world, "zz").await;
    assert!(search(&world, &by, "anna ").await.len() == 1);
    assert_eq!(search(&world, &by, "annab").await, ["anna@x"]);
    for bad in ["", "two words", "new\nline"] {
        let request = ImportUsersRequest {
            users: vec![person("good@x", "Good"), person(bad, "Bad")],
        };
        let refused = world.admin().import_users(request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Malformed);
    }
    assert_eq!(list().await.users.len(), 2, "all or nothing");
}

async fn devices(world: &World, by: &Device, of: &Device) -> Vec<(DeviceRef, DeviceState)> {
    let request = GetDevicesRequest {
        users: vec![of.user.clone()],
    };
    let mut parts = world
        .client()
        .get_devices(by.by(world, request).await)
        .await
        .unwrap()
        .into_inner();
    let mut found = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        for device in part.devices {
            let state = device.state();
            found.push((device.device.unwrap(), state));
        }
    }
    found
}

async fn revoke(world: &World, by: &Device, request: RevokeDeviceRequest) -> Result<u64, Status> {
    let request = by.by(world, request).await;
    let answer = world.client().revoke_device(request).await?;
    Ok(answer.into_inner().seq)
}

#[tokio::test]
async fn a_revoked_device_is_refused_at_once_and_shown_for_ever() {
    let world = World::start(1, &[]).await;
    let laptop = Device::enroll(&world, "alice").await;
    let phone = Device::enroll(&world, "alice").await;
    let bob = Device::enroll(&world, "bob").await;
    let token = phone.token(&world, AS).await.unwrap();

    // Another user's device, another's signature, a time that is over or too far.
    let foreign = revoke(&world, &bob, bob.revocation(&phone.device, now() + 60)).await;
    assert_eq!(reason(&foreign.unwrap_err()), Reason::Device);
    for request in [
        phone.revocation(&phone.device, now() + 60),
        laptop.revocation(&phone.device, now() - 600),
        laptop.revocation(&phone.device, now() + 3_600),
        laptop.revocation(&phone.device, i64::MIN),
        laptop.revocation(&phone.device, i64::MAX),
    ] {
        let refused = revoke(&world, &laptop, request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::ProofInvalid);
    }
    let request = laptop.revocation(&phone.device, now() + 60);
    let seq = revoke(&world, &laptop, request.clone()).await.unwrap();
    let again = revoke(&world, &laptop, request).await.unwrap();
    assert_eq!((seq, again), (1, 1));

    let refused = phone.token(&world, DS).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::DeviceRevoked);
    let late = world
        .client()
        .get_users(support::with_token(GetUsersRequest::default(), &token))
        .await;
    assert_eq!(reason(&late.unwrap_err()), Reason::DeviceRevoked);
    assert_eq!(
        devices(&world, &bob, &laptop).await,
        [
            (laptop.device.clone(), DeviceState::Active),
            (phone.device.clone(), DeviceState::Revoked)
        ]
    );
    let check = |certificate: &[u8]| CheckCertificateRequest {
        certificate: certificate.to_vec().into(),
        ..CheckCertificateRequest::default()
    };
    for (certificate, verdict) in [
        (
            phone.certificate.as_slice(),
            check_certificate_response::Verdict::Revoked,
        ),
        (
            &laptop.certificate,
            check_certificate_response::Verdict::Valid,
        ),
        (b"x", check_certificate_response::Verdict::Unknown),
    ] {
        let request = bob.by(&world, check(certificate)).await;
        let seen = world.client().check_certificate(request).await.unwrap();
        assert_eq!(seen.into_inner().verdict(), verdict);
    }
}

async fn watch(
    world: &World,
    after_seq: u64,
    history_id: &[u8],
) -> Streaming<WatchDeviceStatusResponse> {
    let request = WatchDeviceStatusRequest {
        after_seq,
        history_id: history_id.to_vec().into(),
        ..WatchDeviceStatusRequest::default()
    };
    let stream = world.client().watch_device_status(request).await;
    stream.unwrap().into_inner()
}

/// The next status, verified against the pinned root; heartbeats are verified and passed over.
async fn next(
    stream: &mut Streaming<WatchDeviceStatusResponse>,
    pending: &mut Vec<SignedStatus>,
    anchors: &Anchors,
) -> DeviceStatus {
    loop {
        while pending.is_empty() {
            let part = stream.message().await.unwrap().unwrap();
            pending.extend(part.items);
        }
        let item = pending.remove(0);
        let (label, content) = match item.content.unwrap() {
            signed_status::Content::Status(bytes) => (signed::STATUS, bytes),
            signed_status::Content::Heartbeat(bytes) => (signed::HEARTBEAT, bytes),
        };
        let key = anchors.verify_status(&item.chain, now()).unwrap();
        assert!(signed::verify(&key, label, &content, &item.signature));
        if label == signed::STATUS {
            return DeviceStatus::decode(content).unwrap();
        }
    }
}

#[tokio::test]
async fn the_feed_is_dense_signed_and_followed_live_on_every_node() {
    let world = World::start(2, &[]).await;
    let anchors = world.anchors().await;
    let mut devices = Vec::new();
    for n in 0..12 {
        devices.push(Device::enroll(&world, &format!("user{n}")).await);
    }
    let mut live = watch(&world, 0, b"").await;
    let mut revoking = tokio::task::JoinSet::new();
    for (n, device) in devices.iter().enumerate() {
        let mut admin = world.nodes[n % 2].admin.clone();
        let request = AdminRevokeDeviceRequest {
            device: Some(device.device.clone()),
        };
        revoking.spawn(async move { admin.admin_revoke_device(request).await.unwrap() });
    }
    let (mut pending, mut seen) = (Vec::new(), Vec::new());
    for seq in 1..=12 {
        let status = next(&mut live, &mut pending, &anchors).await;
        assert_eq!((status.seq, status.change()), (seq, StatusChange::Revoked));
        seen.push(status);
    }
    revoking.join_all().await;
    let revoked: BTreeSet<_> = seen
        .iter()
        .map(|status| match status.subject.clone().unwrap() {
            device_status::Subject::Device(device) => device.id,
            device_status::Subject::User(_) => panic!("a user"),
        })
        .collect();
    let all: BTreeSet<_> = devices.iter().map(|d| d.device.id.clone()).collect();
    assert_eq!(revoked, all);
    // From a cursor: only the rest.
    let history = seen[0].history_id.clone();
    let mut later = watch(&world, 9, &history).await;
    assert_eq!(next(&mut later, &mut Vec::new(), &anchors).await, seen[9]);
    // A cursor of another life of the database, or beyond the end.
    for (seq, history) in [(9, &[7; 16][..]), (13, &history)] {
        let request = WatchDeviceStatusRequest {
            after_seq: seq,
            history_id: history.to_vec().into(),
            ..WatchDeviceStatusRequest::default()
        };
        let refused = world.client().watch_device_status(request).await;
        assert_eq!(reason(&refused.unwrap_err()), Reason::HistoryChanged);
    }
}

#[tokio::test]
async fn silence_is_broken_by_heartbeats_and_a_restore_ends_the_feed() {
    let world = World::start(1, &["--heartbeat-seconds", "1"]).await;
    let mut stream = watch(&world, 0, b"").await;
    let mut heartbeats = 0;
    while heartbeats < 2 {
        let part = stream.message().await.unwrap().unwrap();
        heartbeats += part.items.len();
    }
    let url = world.db.owner_url();
    tokio::task::spawn_blocking(move || service_kit::migrate::renew_incarnation(&url).unwrap())
        .await
        .unwrap();
    let ended = loop {
        match stream.message().await {
            Ok(part) => assert!(part.is_some(), "ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&ended), Reason::HistoryChanged);
}

#[tokio::test]
async fn every_change_is_in_the_audit_log_and_the_log_only_grows() {
    let world = World::start(1, &[]).await;
    let device = Device::enroll(&world, "alice").await;
    let request = AdminRevokeDeviceRequest {
        device: Some(device.device.clone()),
    };
    world.admin().admin_revoke_device(request).await.unwrap();
    let audit = world
        .admin()
        .list_audit(ListAuditRequest::default())
        .await
        .unwrap()
        .into_inner();
    let seen: Vec<_> = audit
        .entries
        .iter()
        .map(|e| (e.seq, e.action.as_str()))
        .collect();
    assert_eq!(seen, [(1, "invite"), (2, "enroll"), (3, "revoke")]);
    let db = service_kit::db::Db::connect(&world.db.url(), &Default::default()).unwrap();
    let client = db.client().await.unwrap();
    for sql in ["DELETE FROM audit", "UPDATE audit SET actor = 'nobody'"] {
        let refused = client.batch_execute(sql).await.unwrap_err();
        let text = refused.as_db_error().unwrap().message();
        assert!(text.contains("only grows"), "{text}");
    }
    let unknown = AdminRevokeDeviceRequest {
        device: Some(DeviceRef {
            domain: DOMAIN.into(),
            id: vec![9; 16].into(),
        }),
    };
    let refused = world.admin().admin_revoke_device(unknown).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::Device);
}

#[tokio::test]
async fn invitations_are_listed_page_by_page() {
    let world = World::start(1, &[]).await;
    for n in 0..5 {
        world.invite(&format!("user{n}")).await;
    }
    Device::enroll(&world, "user5").await;
    let (mut handles, mut used, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = ListInvitationsRequest {
            page_size: 2,
            page_token,
        };
        let page = world
            .admin()
            .list_invitations(request)
            .await
            .unwrap()
            .into_inner();
        for invitation in page.invitations {
            used += usize::from(invitation.used_at != 0);
            handles.push(invitation.handle);
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = (0..6).map(|n| format!("user{n}")).collect();
    assert_eq!((handles, used), (expected, 1));
}
