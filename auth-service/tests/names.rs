//! Which names are one person, on the wire and after a migration from when upper and lower case of ASCII was all that
//! was equal.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use auth_service::{MIGRATIONS, migration, names};
use chancery_proto::{auth::v1::*, common::v1::Reason};
use service_kit::{migrate::Migrations, test_db::TestDb};
use support::{Device, World, reason};
use uuid::Uuid;

const ELODIE: [&str; 4] = [
    "élodie@a.example",
    "ÉLODIE@A.example",
    "e\u{301}lodie@a.example",
    "E\u{301}LODIE@a.example",
];

fn invitation(handle: &str, name: &str) -> CreateInvitationRequest {
    CreateInvitationRequest {
        handle: handle.into(),
        display_name: name.into(),
        ..CreateInvitationRequest::default()
    }
}

async fn everybody(world: &World) -> Vec<User> {
    let request = ListUsersRequest::default();
    let listed = world.admin().list_users(request).await.unwrap();
    listed.into_inner().users
}

#[tokio::test]
async fn one_person_is_invited_imported_and_found_under_every_spelling() {
    let world = World::start(1, &[]).await;
    let mut people = Vec::new();
    for handle in ELODIE {
        let made = world
            .admin()
            .create_invitation(invitation(handle, "E\u{301}lodie  Durand"))
            .await;
        people.push(made.unwrap().into_inner().user);
        let user = User {
            handle: handle.into(),
            display_name: "Élodie Durand".into(),
            ..User::default()
        };
        let request = ImportUsersRequest { users: vec![user] };
        let done = world.admin().import_users(request).await.unwrap();
        assert_eq!(done.into_inner().updated, 1, "{handle}");
    }
    people.dedup();
    assert_eq!(people.len(), 1);
    let shown = everybody(&world).await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].display_name, "Élodie Durand");
    let by = Device::enroll(&world, "zz").await;
    for query in [
        "élo",
        "ÉLO",
        "e\u{301}lo",
        "E\u{301}LODIE@a.ex",
        "durand élodie",
    ] {
        let request = SearchDirectoryRequest {
            query: query.into(),
            ..SearchDirectoryRequest::default()
        };
        let found = world
            .client()
            .search_directory(by.by(&world, request).await)
            .await;
        assert_eq!(found.unwrap().into_inner().users.len(), 1, "{query:?}");
    }
}

#[tokio::test]
async fn names_that_are_none_are_refused_by_field() {
    let world = World::start(1, &[]).await;
    for (handle, name) in [
        ("a\u{202e}b", "A"),
        ("a\u{200b}b", "A"),
        ("★", "A"),
        ("a", "gro.live\u{202e}"),
        ("a", "A\u{9b}2J"),
        ("a", "A\nB"),
    ] {
        let refused = world
            .admin()
            .create_invitation(invitation(handle, name))
            .await;
        assert_eq!(
            reason(&refused.unwrap_err()),
            Reason::Malformed,
            "{handle:?} {name:?}"
        );
    }
    assert_eq!(everybody(&world).await, Vec::new());
}

/// A database as it was before handles had keys.
async fn before_keys() -> TestDb {
    const OLD: Migrations = Migrations {
        service: MIGRATIONS.service,
        steps: before(MIGRATIONS.steps),
    };
    TestDb::create(&OLD).await
}

const fn before(
    steps: &'static [service_kit::migrate::Step],
) -> &'static [service_kit::migrate::Step] {
    let (old, _) = steps.split_at(3);
    old
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_lists_whose_handles_were_equal_and_loses_nobody() {
    let db = before_keys().await;
    let url = db.owner_url();
    let people: Vec<(Uuid, &str)> = [
        ELODIE[0],
        ELODIE[1],
        ELODIE[2],
        "bob",
        "★",
        "élodie@a.example~2",
        "deleted:x",
    ]
    .map(|handle| (Uuid::new_v4(), handle))
    .to_vec();
    let (insert, known) = (url.clone(), people.clone());
    let migrate = move || {
        let mut client = postgres::Client::connect(&insert, postgres::NoTls).unwrap();
        for (age, (user, handle)) in known.iter().enumerate() {
            let age = i32::try_from(age).unwrap();
            client
                .execute(
                    "INSERT INTO users (user_id, handle, display_name, organisation, created_at) \
                     VALUES ($1, $2, $2, '', timestamptz '2026-01-01' + make_interval(days => $3))",
                    &[user, handle, &age],
                )
                .unwrap();
        }
        let renamed = migration::run(&insert, None).unwrap();
        // Said each time, and nothing changes a second time.
        assert_eq!(migration::run(&insert, None).unwrap(), renamed);
        let rows = client
            .query("SELECT user_id, handle, handle_key FROM users", &[])
            .unwrap();
        let handles: Vec<(Uuid, String, String)> = rows
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect();
        (renamed, handles)
    };
    let (renamed, handles) = tokio::task::spawn_blocking(migrate).await.unwrap();
    assert_eq!(handles.len(), people.len(), "nobody is lost");
    let why: Vec<_> = renamed
        .iter()
        .map(|r| (r.user, r.former_handle.as_str(), r.why))
        .collect();
    let (id, oldest) = (|index: usize| people[index].0, people[0].0);
    use migration::Why::{HeldBy, NotAllowed};
    assert_eq!(
        why,
        [
            (id(1), ELODIE[1], HeldBy(oldest)),
            (id(2), ELODIE[2], HeldBy(oldest)),
            (id(4), "★", NotAllowed),
        ]
    );
    for (user, handle, key) in &handles {
        assert_eq!(
            names::handle_key(handle).unwrap(),
            *key,
            "{user}: reached by what is shown"
        );
        let kept = renamed.iter().all(|r| r.user != *user);
        let was = people.iter().find(|(known, _)| known == user).unwrap().1;
        assert_eq!(*handle == was, kept, "{handle}");
    }
    let mut keys: Vec<_> = handles.iter().map(|(_, _, key)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), people.len());
}
