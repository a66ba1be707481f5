//! What a claim is answered while the owner publishes, replaces and deletes: a repeat gets what the first got.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    common::v1::Reason, delivery::v1::*, key_package::KeyPackage, policy::POLICY_EXTENSION,
};
use support::{
    World,
    forge::{Device, Parts},
    key_packages::{claim, publish, replace, stock},
    reason,
};
use uuid::Uuid;

fn last_resort(device: &Device) -> Vec<u8> {
    device.key_package(1, -60, 3_600, true)
}

async fn delete(world: &World, device: &Device, package: &[u8]) {
    let reference = KeyPackage::parse(package, package.len()).unwrap();
    let request = DeleteKeyPackagesRequest {
        refs: vec![reference.reference().unwrap().into()],
    };
    let request = world.by(device, request);
    world.client().delete_key_packages(request).await.unwrap();
}

#[tokio::test]
async fn a_repeated_claim_gets_the_last_resort_that_its_owner_took_away_meanwhile() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    for way in ["published", "replaced", "deleted"] {
        let (old, other) = (last_resort(&owner), last_resort(&owner));
        publish(&world, &owner, vec![old.clone()]).await.unwrap();
        let id = Uuid::new_v4();
        let first = claim(&world, 0, &by, &[&owner], id).await;
        assert_eq!(&*first[0].key_package, old, "{way}");
        match way {
            "published" => drop(publish(&world, &owner, vec![other.clone()]).await.unwrap()),
            "replaced" => drop(
                replace(&world, &owner, &[1], vec![other.clone()])
                    .await
                    .unwrap(),
            ),
            _ => delete(&world, &owner, &old).await,
        }
        assert_eq!(claim(&world, 0, &by, &[&owner], id).await, first, "{way}");
        let next = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
        if way == "deleted" {
            assert_eq!(next[0].outcome(), ClaimOutcome::Exhausted);
        } else {
            assert_eq!(
                &*next[0].key_package, other,
                "{way}: the old one is given no more"
            );
        }
    }
}

#[tokio::test]
async fn a_late_publish_brings_back_no_last_resort_that_was_replaced() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let (old, other) = (last_resort(&owner), last_resort(&owner));
    publish(&world, &owner, vec![old.clone()]).await.unwrap();
    claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    publish(&world, &owner, vec![other.clone()]).await.unwrap();
    publish(&world, &owner, vec![old]).await.unwrap();
    let given = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert_eq!(&*given[0].key_package, other);
    // The same for a replacement that is repeated after its last resort was given out.
    let third = last_resort(&owner);
    replace(&world, &owner, &[1], vec![third.clone()])
        .await
        .unwrap();
    claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    replace(&world, &owner, &[1], vec![third.clone()])
        .await
        .unwrap();
    let given = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert_eq!(&*given[0].key_package, third);
}

#[tokio::test]
async fn claims_of_a_last_resort_are_counted_until_another_takes_its_place() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    publish(&world, &owner, vec![last_resort(&owner)])
        .await
        .unwrap();
    for _ in 0..3 {
        claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    }
    let one_time = owner.key_package(1, -60, 3_600, false);
    publish(&world, &owner, vec![one_time]).await.unwrap();
    let counted = stock(&world, &owner).await;
    assert_eq!((counted[0].one_time, counted[0].last_resort_claims), (1, 3));
    publish(&world, &owner, vec![last_resort(&owner)])
        .await
        .unwrap();
    let counted = stock(&world, &owner).await;
    assert!(counted[0].last_resort && counted[0].last_resort_claims == 0);
}

#[tokio::test]
async fn a_claim_beside_a_replacement_gets_a_key_package_that_a_repeat_gets_too() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    publish(&world, &owner, vec![last_resort(&owner)])
        .await
        .unwrap();
    for _ in 0..10 {
        let id = Uuid::new_v4();
        let of = [&owner];
        let (first, _) = tokio::join!(
            claim(&world, 0, &by, &of, id),
            publish(&world, &owner, vec![last_resort(&owner)]),
        );
        assert_eq!(first[0].outcome(), ClaimOutcome::KeyPackage);
        assert!(!first[0].key_package.is_empty());
        assert_eq!(claim(&world, 0, &by, &of, id).await, first);
    }
}

#[tokio::test]
async fn replacing_touches_the_suites_that_come_with_it_and_no_other() {
    let world = World::start(1, &[]).await;
    let device = world.device(Uuid::new_v4());
    let of_suite = |suite: u16, last_resort: bool| {
        let mut parts = Parts {
            suites: vec![1, 3],
            ..Parts::default()
        };
        if last_resort {
            parts.extensions = vec![(chancery_proto::key_package::LAST_RESORT, vec![])];
        }
        device.key_package_of(&parts, suite, -60, 3_600)
    };
    let both = vec![
        of_suite(1, false),
        of_suite(1, true),
        of_suite(3, false),
        of_suite(3, true),
    ];
    publish(&world, &device, both).await.unwrap();
    let refused = replace(&world, &device, &[3], vec![of_suite(1, false)]).await;
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), Reason::Malformed, "{refused:?}");
    let kept = stock(&world, &device).await;
    assert!(
        kept.iter().all(|s| s.one_time == 1 && s.last_resort),
        "{kept:?}"
    );
    let left = replace(
        &world,
        &device,
        &[3],
        vec![of_suite(3, false), of_suite(3, false)],
    )
    .await;
    let left = left.unwrap();
    assert_eq!(
        (left[0].suite, left[0].one_time, left[0].last_resort),
        (1, 1, true)
    );
    assert_eq!(
        (left[1].suite, left[1].one_time, left[1].last_resort),
        (3, 2, false)
    );
}

/// Puts a KeyPackage into stock as an older program took it.
async fn stock_unchecked(world: &World, owner: &Device, package: &[u8], days: i32) {
    let parsed = KeyPackage::parse(package, package.len()).unwrap();
    let sql = "INSERT INTO key_packages (domain_id, device_id, ref, suite, last_resort, not_after, body) \
               SELECT domain_id, device_id, $2, 1, $3, now() + $4 * interval '1 day', $5 FROM devices WHERE device_id = $1";
    let reference = parsed.reference().unwrap();
    let database = support::owner(world).await;
    let stored = database
        .execute(
            sql,
            &[
                &owner.device,
                &reference,
                &parsed.last_resort,
                &f64::from(days),
                &package,
            ],
        )
        .await
        .unwrap();
    assert_eq!(stored, 1);
}

#[tokio::test]
async fn a_key_package_that_cannot_be_used_hides_none_behind_it() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let good = owner.key_package(1, -60, 3_600, false);
    publish(&world, &owner, vec![good.clone()]).await.unwrap();
    let spoilt = Parts {
        encryption_key: vec![1; 5],
        ..Parts::default()
    };
    let spoilt = owner.key_package_of(&spoilt, 1, -60, 3_600);
    // Its end is nearer, so that it would be given first.
    stock_unchecked(&world, &owner, &spoilt, 0).await;
    let database = support::owner(&world).await;
    let sql = "UPDATE key_packages SET not_after = now() + interval '10 minutes' WHERE body = $1";
    database.execute(sql, &[&spoilt]).await.unwrap();
    let given = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert_eq!(&*given[0].key_package, good);
    let none = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert_eq!(none[0].outcome(), ClaimOutcome::Unsupported);
    publish(&world, &owner, vec![last_resort(&owner)])
        .await
        .unwrap();
    let given = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert!(given[0].last_resort, "{given:?}");
}

#[tokio::test]
async fn a_claim_that_asks_for_more_gets_the_first_that_can_do_it() {
    let world = World::start(1, &[]).await;
    let (by, owner) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let able = Parts {
        listed_extensions: vec![POLICY_EXTENSION, 0xf0f0],
        ..Parts::default()
    };
    let able = owner.key_package_of(&able, 1, -60, 7_200);
    let plain = owner.key_package(1, -60, 3_600, false);
    publish(&world, &owner, vec![plain.clone(), able.clone()])
        .await
        .unwrap();
    let request = |id: Uuid| ClaimKeyPackagesRequest {
        claim_id: id.as_bytes().to_vec().into(),
        devices: vec![owner.device_ref()],
        suites: vec![3, 1],
        required: Some(RequiredCapabilities {
            extensions: vec![0xf0f0],
            ..RequiredCapabilities::default()
        }),
        ..ClaimKeyPackagesRequest::default()
    };
    for expected in [ClaimOutcome::KeyPackage, ClaimOutcome::Unsupported] {
        let request = world.by(&by, request(Uuid::new_v4()));
        let mut stream = world
            .client()
            .claim_key_packages(request)
            .await
            .unwrap()
            .into_inner();
        let claims = stream.message().await.unwrap().unwrap().claims;
        assert_eq!(claims[0].outcome(), expected);
        if expected == ClaimOutcome::KeyPackage {
            assert_eq!(&*claims[0].key_package, able);
        }
    }
    let rest = claim(&world, 0, &by, &[&owner], Uuid::new_v4()).await;
    assert_eq!(&*rest[0].key_package, plain);
}
