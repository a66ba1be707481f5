//! Every task of a node in turn panics: the node ends with that task's name, within a moment.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use service_kit::lifecycle::{Shutdown, TaskEnded, spawn_short};
use support::{Group, World, hold, owner, waiting};
use uuid::Uuid;

/// What runs in a node from its start to the drain.
const TASKS: [&str; 13] = [
    "append_lane",
    "close_streams",
    "issuer_keys",
    "ops",
    "poll",
    "retention",
    "revocations",
    "shared_reader",
    "status_feed",
    "voids",
    "wake_hear",
    "wake_listeners",
    "wake_say",
];
/// What runs in it only when there is work.
const SIDING: &str = "append_siding";
const SOON: Duration = Duration::from_secs(20);

fn names(shutdown: &Shutdown) -> BTreeSet<&'static str> {
    let running = shutdown.running().into_iter();
    running
        .filter(|(_, count)| *count > 0)
        .map(|(name, _)| name)
        .collect()
}

async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap();
}

async fn ends_with(
    name: &'static str,
    shutdown: &Shutdown,
    served: impl Future<Output = anyhow::Result<()>>,
) {
    shutdown.panic_in(name);
    let served = tokio::time::timeout(SOON, served).await;
    let error = served.unwrap_or_else(|_| panic!("{name}: the node lives on"));
    let ended = error.unwrap_err().downcast::<TaskEnded>().unwrap();
    let panicked = true;
    assert_eq!(ended, TaskEnded { name, panicked });
}

#[tokio::test]
async fn a_task_that_panics_ends_the_node_and_is_named() {
    let world = World::start(0, &[]).await;
    let all = BTreeSet::from(TASKS);
    for name in TASKS {
        let (node, served) = world.serve(&[]).await;
        let served = spawn_short(served);
        until(|| names(&node.shutdown).is_superset(&all)).await;
        assert_eq!(
            names(&node.shutdown),
            all,
            "a task that is not in the table"
        );
        ends_with(name, &node.shutdown, async { served.await.unwrap() }).await;
    }
}

#[tokio::test]
async fn a_group_whose_turn_panics_is_not_left_waiting() {
    let mut world = World::start(0, &[]).await;
    let (node, served) = world.serve(&[]).await;
    let served = spawn_short(served);
    let shutdown = node.shutdown.clone();
    world.nodes.push(node);
    let a = world.device(Uuid::new_v4());
    let group = Group::create(&world, &a).await;
    let mut holder = owner(&world).await;
    let lock = hold(&mut holder, &group).await;
    let message = group.message(Uuid::new_v4(), 1);
    let sending = support::send(&world, &a, message);
    let panics = async {
        until(|| names(&shutdown).contains(SIDING)).await;
        waiting(&world, 1).await;
        ends_with(SIDING, &shutdown, async { served.await.unwrap() }).await;
    };
    let (sent, ()) = tokio::join!(sending, panics);
    sent.unwrap_err();
    drop(lock);
}

#[tokio::test]
async fn a_shutdown_waits_for_every_task() {
    let world = World::start(0, &[]).await;
    let (node, served) = world.serve(&[]).await;
    let served = spawn_short(served);
    until(|| names(&node.shutdown).len() == TASKS.len()).await;
    node.shutdown.begin();
    let served = tokio::time::timeout(SOON, served).await;
    served.unwrap().unwrap().unwrap();
    let left = names(&node.shutdown);
    assert!(left.is_subset(&BTreeSet::from(["ops"])), "{left:?}");
}
