//! KeyPackages: checked at the door, claimed exactly once over all nodes, never sold again.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::collections::HashSet;

use chancery_proto::{common::v1::Reason, delivery::v1::*, signed};
use support::{
    World,
    forge::Device,
    key_packages::{claim, publish},
    reason,
};
use uuid::Uuid;

#[tokio::test]
async fn what_is_not_the_callers_or_not_valid_is_refused_and_nothing_is_kept() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let foreign = support::forge::Authority::new().device(a.user, 30);
    let good = || a.key_package(1, -60, 3_600, false);
    let mut tampered = good();
    *tampered.last_mut().unwrap() ^= 1;
    let cases = [
        (
            b.key_package(1, -60, 3_600, false),
            Reason::CredentialInvalid,
        ),
        (
            foreign.key_package(1, -60, 3_600, false),
            Reason::CredentialInvalid,
        ),
        (
            a.key_package(1, -7_200, -3_600, false),
            Reason::CredentialInvalid,
        ),
        (
            a.key_package(1, 3_600, 7_200, false),
            Reason::CredentialInvalid,
        ),
        (
            a.key_package(1, -60, 40 * 86_400, false),
            Reason::CredentialInvalid,
        ),
        (
            a.key_package(1, -60, 100 * 86_400, false),
            Reason::LimitExceeded,
        ),
        (
            a.key_package(0xFFFF, -60, 3_600, false),
            Reason::UnknownValue,
        ),
        (tampered, Reason::CredentialInvalid),
        (good()[..50].to_vec(), Reason::Malformed),
        ([good(), vec![0]].concat(), Reason::Malformed),
        (vec![0; 16_385], Reason::LimitExceeded),
    ];
    for (number, (bad, expected)) in cases.into_iter().enumerate() {
        let refused = publish(&world, &a, vec![good(), bad]).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "case {number}: {refused:?}");
    }
    let stock = publish(&world, &a, vec![]).await.unwrap();
    assert_eq!(stock, [], "all or nothing");
}

#[tokio::test]
async fn two_nodes_give_each_package_once_and_a_retried_publish_sells_nothing_again() {
    let world = World::start(2, &[]).await;
    let target = world.device(Uuid::new_v4());
    let packages: Vec<Vec<u8>> = (0..24)
        .map(|_| target.key_package(1, -60, 3_600, false))
        .collect();
    publish(&world, &target, packages.clone()).await.unwrap();
    let claimants: Vec<Device> = (0..30).map(|_| world.device(Uuid::new_v4())).collect();
    let of = [&target];
    let claims = claimants
        .iter()
        .enumerate()
        .map(|(n, by)| claim(&world, n % 2, by, &of, Uuid::new_v4()));
    let answers: Vec<Claim> = futures_util::future::join_all(claims)
        .await
        .into_iter()
        .flatten()
        .collect();
    let given: Vec<_> = answers
        .iter()
        .filter(|c| c.outcome() == ClaimOutcome::KeyPackage)
        .map(|c| c.key_package.clone())
        .collect();
    assert_eq!(given.len(), 24);
    assert_eq!(
        given.iter().collect::<HashSet<_>>().len(),
        24,
        "no KeyPackage twice"
    );
    assert_eq!(
        answers
            .iter()
            .filter(|c| c.outcome() == ClaimOutcome::Exhausted)
            .count(),
        6
    );
    publish(&world, &target, packages).await.unwrap();
    let late = claim(&world, 0, &claimants[0], &[&target], Uuid::new_v4()).await;
    assert_eq!(late[0].outcome(), ClaimOutcome::Exhausted);
}

#[tokio::test]
async fn a_repeated_claim_gets_the_same_answer_for_every_kind_of_answer() {
    let world = World::start(2, &[]).await;
    let by = world.device(Uuid::new_v4());
    let (one_time, last, empty, unknown, revoked) = (
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
    );
    let two = vec![
        one_time.key_package(1, -60, 3_600, false),
        one_time.key_package(1, -60, 3_600, false),
    ];
    publish(&world, &one_time, two).await.unwrap();
    publish(&world, &last, vec![last.key_package(1, -60, 3_600, true)])
        .await
        .unwrap();
    publish(&world, &empty, vec![]).await.unwrap();
    publish(
        &world,
        &revoked,
        vec![revoked.key_package(1, -60, 3_600, true)],
    )
    .await
    .unwrap();
    world.revoke(&revoked).await;
    let of = [&one_time, &last, &empty, &unknown, &revoked, &one_time];
    let id = Uuid::new_v4();
    let first = claim(&world, 0, &by, &of, id).await;
    let outcomes: Vec<ClaimOutcome> = first.iter().map(Claim::outcome).collect();
    use ClaimOutcome::{Exhausted, KeyPackage, Revoked, Unknown};
    assert_eq!(
        outcomes,
        [KeyPackage, KeyPackage, Exhausted, Unknown, Revoked],
        "one answer for each distinct device"
    );
    assert!(first[1].last_resort && !first[0].last_resort);
    let again = claim(&world, 1, &by, &of, id).await;
    assert_eq!(first, again);
    let other = claim(&world, 1, &by, &of, Uuid::new_v4()).await;
    assert_ne!(first[0].key_package, other[0].key_package);
    assert_eq!(
        first[1].key_package, other[1].key_package,
        "the last resort stays"
    );
}

#[tokio::test]
async fn one_claimant_cannot_drain_a_stock_and_the_owner_is_told() {
    let world = World::start(1, &["--claims-per-target-hour-items", "3"]).await;
    let (target, greedy, honest) = (
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
        world.device(Uuid::new_v4()),
    );
    let mut packages: Vec<Vec<u8>> = (0..6)
        .map(|_| target.key_package(1, -60, 3_600, false))
        .collect();
    packages.push(target.key_package(1, -60, 3_600, true));
    publish(&world, &target, packages).await.unwrap();
    let mut last_resorts = 0;
    for _ in 0..10 {
        let answer = claim(&world, 0, &greedy, &[&target], Uuid::new_v4()).await;
        last_resorts += usize::from(answer[0].last_resort);
    }
    assert_eq!(last_resorts, 7);
    let answer = claim(&world, 0, &honest, &[&target], Uuid::new_v4()).await;
    assert!(!answer[0].last_resort, "others are not affected");
    let request = world.by(&target, GetKeyPackageStockRequest {});
    let stock = world
        .client()
        .get_key_package_stock(request)
        .await
        .unwrap()
        .into_inner()
        .stock;
    assert_eq!((stock[0].one_time, stock[0].last_resort_claims), (2, 7));
}

#[tokio::test]
async fn among_several_each_gets_what_it_would_get_alone() {
    let world = World::start(1, &["--claims-per-target-hour-items", "1"]).await;
    let by = world.device(Uuid::new_v4());
    let targets: Vec<Device> = (0..5).map(|_| world.device(Uuid::new_v4())).collect();
    let [plain, revoked, suspended, drained, held] = &targets[..] else {
        unreachable!("five");
    };
    for target in &targets {
        let one_time = |_| target.key_package(1, -60, 3_600, false);
        publish(&world, target, (0..2).map(one_time).collect())
            .await
            .unwrap();
    }
    claim(&world, 0, &by, &[drained], Uuid::new_v4()).await;
    world.revoke(revoked).await;
    let mut database = support::owner(&world).await;
    let sql =
        "INSERT INTO suspended SELECT domain_id, user_id, false FROM devices WHERE device_id = $1";
    database.execute(sql, &[&suspended.device]).await.unwrap();
    // Whoever claims for the last one is not done yet.
    let other = database.transaction().await.unwrap();
    let sql = "SELECT 1 FROM key_packages WHERE device_id = $1 FOR UPDATE";
    other.execute(sql, &[&held.device]).await.unwrap();
    let of: Vec<&Device> = targets.iter().collect();
    let id = Uuid::new_v4();
    let (claims, ()) = tokio::join!(claim(&world, 0, &by, &of, id), async {
        support::waiting(&world, 1).await;
        other.rollback().await.unwrap();
    });
    let outcomes: Vec<ClaimOutcome> = claims.iter().map(Claim::outcome).collect();
    use ClaimOutcome::{Exhausted, KeyPackage, Revoked, Suspended};
    assert_eq!(
        outcomes,
        [KeyPackage, Revoked, Suspended, Exhausted, KeyPackage]
    );
    assert_eq!(claims, claim(&world, 0, &by, &of, id).await, "repeated");
    // A revocation takes what was not claimed.
    let left = "SELECT count(*) FROM key_packages WHERE claim_id IS NULL AND device_id = $1";
    for (target, expected) in targets.iter().zip([1, 0, 2, 1, 1]) {
        let row = database.query_one(left, &[&target.device]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), expected);
    }
    let user = claims[0].user.as_ref().unwrap();
    assert_eq!(&*user.id, plain.user.as_bytes());
}

#[tokio::test]
async fn replacing_takes_the_device_keys_word() {
    let world = World::start(1, &[]).await;
    let device = world.device(Uuid::new_v4());
    let old = vec![
        device.key_package(1, -60, 3_600, false),
        device.key_package(1, -60, 3_600, false),
    ];
    publish(&world, &device, old).await.unwrap();
    let packages = vec![device.key_package(1, -60, 3_600, false)];
    let expires = time::OffsetDateTime::now_utc().unix_timestamp() + 60;
    let content = signed::replace(support::forge::DOMAIN, &[1], &packages, expires);
    let request = |signature: Vec<u8>| PublishKeyPackagesRequest {
        key_packages: packages.iter().cloned().map(Into::into).collect(),
        replace_suites: vec![1],
        replace_signature: signature.into(),
        replace_expires_at: expires,
    };
    let unsigned = world.by(&device, request(vec![0; 64]));
    let refused = world
        .client()
        .publish_key_packages(unsigned)
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::ProofInvalid);
    let signature = device.sign(&signed::to_be_signed(signed::REPLACE, &content));
    let good = world.by(&device, request(signature));
    let stock = world
        .client()
        .publish_key_packages(good)
        .await
        .unwrap()
        .into_inner()
        .stock;
    assert_eq!(stock[0].one_time, 1);
}

#[tokio::test]
async fn ten_thousand_devices_may_be_claimed_at_once_and_one_more_is_refused() {
    let world = World::start(1, &[]).await;
    let by = world.device(Uuid::new_v4());
    let reference = |_| chancery_proto::common::v1::DeviceRef {
        domain: support::forge::DOMAIN.into(),
        id: Uuid::new_v4().as_bytes().to_vec().into(),
    };
    let request = |devices: usize| ClaimKeyPackagesRequest {
        claim_id: vec![1; 16].into(),
        devices: (0..devices).map(reference).collect(),
        suites: vec![1],
        ..ClaimKeyPackagesRequest::default()
    };
    let refused = world
        .client()
        .claim_key_packages(world.by(&by, request(10_001)))
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::LimitExceeded);
    let mut stream = world
        .client()
        .claim_key_packages(world.by(&by, request(10_000)))
        .await
        .unwrap()
        .into_inner();
    let mut answered = 0;
    while let Some(part) = stream.message().await.unwrap() {
        answered += part.claims.len();
    }
    assert_eq!(answered, 10_000);
}
