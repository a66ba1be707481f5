//! Every task of a node in turn panics: the node ends with that task's name, within a moment.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use service_kit::lifecycle::TaskEnded;
use support::World;

/// What runs in a node from its start to the drain.
const TASKS: [&str; 2] = ["certificate_expiry", "ops"];
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_task_that_panics_ends_the_node_and_is_named() {
    let world = World::start(0, &[]).await;
    for name in TASKS {
        let (node, served) = world.serve(&[]).await;
        let served = service_kit::lifecycle::spawn_short(served);
        let begins = async {
            while node.shutdown.running().len() < TASKS.len() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, begins).await.unwrap();
        let running: BTreeSet<_> = node.shutdown.running().into_keys().collect();
        let all = BTreeSet::from(TASKS);
        assert_eq!(running, all, "a task that is not in the table");
        node.shutdown.panic_in(name);
        let ended = tokio::time::timeout(SOON, served).await;
        let error = ended.expect("the node lives on").unwrap().unwrap_err();
        let ended = error.downcast::<TaskEnded>().unwrap();
        let panicked = true;
        assert_eq!(ended, TaskEnded { name, panicked });
    }
}
