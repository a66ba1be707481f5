//! A ministry revokes a thousand devices at once: live traffic goes on meanwhile. `--nocapture` prints how long messages took before and during.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::{Duration, Instant};

use delivery_service::store;
use service_kit::db::{Db, PoolOptions};
use support::*;
use uuid::Uuid;

const DEVICES: u32 = 5;

/// The value below which 99 of a hundred lie.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread")]
async fn live_traffic_goes_on_while_many_are_revoked() {
    println!("{}", revoke_all_of(40).await);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: `cargo test -p delivery-service --test mass_revocation -- --ignored --nocapture`"]
async fn live_traffic_goes_on_while_a_thousand_are_revoked() {
    println!("{}", revoke_all_of(200).await);
}

/// Revokes every device but one of so many groups, while a group that has none of them talks; how long its messages took.
async fn revoke_all_of(groups: u32) -> String {
    let world = World::start(2, &[]).await;
    let mut lost = Vec::new();
    for group in 0..groups {
        let owner = world.device(Uuid::from_u128(group.into()));
        let others: Vec<_> = (0..DEVICES)
            .map(|n| world.device(Uuid::from_u128(u128::from(10_000 + group * 10 + n))))
            .collect();
        let mut one = Group::create(&world, &owner).await;
        let added: Vec<_> = others.iter().collect();
        let all: Vec<_> = std::iter::once(&owner).chain(&others).collect();
        one.add(&world, &owner, &all, &added).await;
        lost.extend(others);
    }
    // Traffic of a group that nobody is revoked in.
    let (a, b) = (
        world.device(Uuid::from_u128(1_001)),
        world.device(Uuid::from_u128(1_002)),
    );
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let say = async || {
        let began = Instant::now();
        send(&world, &b, group.message(Uuid::new_v4(), 1))
            .await
            .unwrap();
        began.elapsed()
    };
    let mut before = Vec::new();
    for _ in 0..200 {
        before.push(say().await);
    }
    let db = Db::connect(&world.db.url(), &PoolOptions::default()).unwrap();
    for device in &lost {
        world.revoke(device).await;
    }
    let mut during = Vec::new();
    let began = Instant::now();
    loop {
        during.push(say().await);
        let client = db.client().await.unwrap();
        let left = store::revocations::unmarked_groups(&client, &[], 1)
            .await
            .unwrap();
        if left.is_empty() && during.len() >= 200 {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "the sweep does not end"
        );
    }
    let (before, during) = (p99(&mut before), p99(&mut during));
    // Not a measurement: it only must not stand still.
    assert!(during < Duration::from_secs(2), "{during:?}");
    format!(
        "{} devices of {groups} groups revoked: p99 of a message {before:?} before, {during:?} during",
        lost.len()
    )
}
