//! Trees: what a Commit changes is hashed from what is stored, and versions are kept as long as somebody needs them.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{
    common::v1::Reason, delivery::v1::*, suite::Suite, tree::Tree, wire::Write as _,
};
use support::{Group, World, forge, forge::Device, owner, reason, submit};
use tonic::Status;
use uuid::Uuid;

/// A tree as a joiner fetches it.
async fn fetch(world: &World, by: &Device, group: &Group, epoch_seq: u64) -> Result<Tree, Status> {
    let request = FetchTreeRequest {
        group: Some(group.reference()),
        epoch_seq,
        current: false,
    };
    let request = world.by(by, request);
    let mut stream = world.client().fetch_tree(request).await?.into_inner();
    let mut tree = Tree::default();
    while let Some(part) = stream.message().await? {
        tree.resize(part.tree_width).unwrap();
        for node in part.nodes {
            tree.set(node.index, node.node.as_deref()).unwrap();
        }
    }
    Ok(tree)
}

/// A Commit that changes nothing but the tree, of which only what changed is uploaded.
fn change(group: &Group, after: &Tree) -> SubmitCommitRequest {
    let mut request = group.commit(group.info(&[], &[]), &[], after);
    request.bundles[0].tree = Some(after.update_since(&group.tree));
    request
}

/// The tree with a parent above the first two leaves.
fn with_parent(tree: &Tree, salt: u8) -> Tree {
    let mut tree = tree.clone();
    tree.set(1, Some(&[1, 2, 1, salt, 0, 0])).unwrap();
    tree
}

async fn count(world: &World, sql: &str) -> i64 {
    owner(world).await.query_one(sql, &[]).await.unwrap().get(0)
}

/// A group of so many.
async fn crowd(world: &World, size: usize) -> (Vec<Device>, Group) {
    let devices: Vec<Device> = (0..size).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&Device> = devices.iter().collect();
    let mut group = Group::create(world, all[0]).await;
    group.add(world, all[0], &all, &all[1..]).await;
    (devices, group)
}

#[tokio::test]
async fn a_change_is_hashed_from_stored_hashes_and_writes_as_many_as_the_tree_is_deep() {
    let world = World::start(2, &[]).await;
    let (devices, mut group) = crowd(&world, 20).await;
    let after = with_parent(&group.tree, 1);
    let result = submit(&world, &devices[0], change(&group, &after)).await;
    group.accepted(&result.unwrap(), after);
    let newest = "SELECT count(*) FROM tree_hashes WHERE from_seq = 2";
    // The parent at 1, and 3, 7, 15 and the root at 31 above it.
    assert_eq!(count(&world, newest).await, 5);
    // A lie about the tree is refused by the same means.
    let after = with_parent(&group.tree, 2);
    let mut lie = change(&group, &with_parent(&group.tree, 3));
    let context = group.context(group.epoch + 1, &after);
    lie.bundles[0].group_info = forge::group_info(&context, &after).into();
    let refused = submit(&world, &devices[0], lie).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::TreeMismatch);
    // It is the stored hashes that are used: a wrong one beside the way is noticed, and a whole tree heals it.
    let spoil = "UPDATE tree_hashes SET hash = sha256('') WHERE node_index = 5";
    assert_eq!(owner(&world).await.execute(spoil, &[]).await.unwrap(), 1);
    let refused = submit(&world, &devices[0], change(&group, &after)).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::TreeMismatch);
    let whole = group.commit(group.info(&[], &[]), &[], &after);
    let result = submit(&world, &devices[0], whole).await.unwrap();
    group.accepted(&result, after);
    let after = with_parent(&group.tree, 4);
    let result = submit(&world, &devices[0], change(&group, &after)).await;
    group.accepted(&result.unwrap(), after);
    let fetched = fetch(&world, &devices[0], &group, group.epoch_seq).await;
    assert_eq!(fetched.unwrap(), group.tree);
}

#[tokio::test]
async fn hashes_that_an_older_node_did_not_write_are_made_again() {
    let world = World::start(1, &[]).await;
    let (devices, mut group) = crowd(&world, 5).await;
    let forget = "DELETE FROM tree_hashes WHERE from_seq = 1";
    owner(&world).await.execute(forget, &[]).await.unwrap();
    let after = with_parent(&group.tree, 1);
    let result = submit(&world, &devices[0], change(&group, &after)).await;
    group.accepted(&result.unwrap(), after);
    let newest = "SELECT count(*) FROM tree_hashes WHERE from_seq = 2";
    let all = group.tree.hashes(Suite::X25519Aes128).len();
    assert_eq!(count(&world, newest).await, i64::try_from(all).unwrap());
}

#[tokio::test]
async fn a_tree_that_grows_and_shrinks_comes_back_as_it_was() {
    let world = World::start(2, &[]).await;
    let devices: Vec<Device> = (0..9).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&Device> = devices.iter().collect();
    let mut group = Group::create(&world, all[0]).await;
    for size in [2, 3, 5, 9, 4, 1, 2] {
        let here = group
            .tree
            .nodes()
            .filter(|(index, _)| index % 2 == 0)
            .count();
        let mut refs = Vec::new();
        for device in all.get(here..size).unwrap_or_default() {
            refs.push(world.publish(device).await);
        }
        let added = all.get(here..size).unwrap_or_default();
        let removed = all.get(size..here).unwrap_or_default();
        let after = forge::tree(&all[..size], 1);
        let mut request = group.commit(group.info(added, removed), &refs, &after);
        request.bundles[0].tree = Some(after.update_since(&group.tree));
        let result = submit(&world, all[0], request).await.unwrap();
        group.accepted(&result, after);
        let fetched = fetch(&world, all[0], &group, group.epoch_seq).await;
        assert_eq!(fetched.unwrap(), group.tree, "{size} members");
    }
}

#[tokio::test]
async fn old_versions_are_kept_for_a_welcome_that_waits_and_no_longer() {
    let world = World::start(1, &[]).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    let added = group.add(&world, &a, &[&a, &b], &[&b]).await;
    let joined = group.tree.clone();
    let versions = "SELECT count(*) FROM tree_nodes WHERE node_index = 1";
    for salt in 1..=6 {
        // Each of them commits in turn, which settles the epoch of the other.
        let by = if salt % 2 == 1 { &b } else { &a };
        let after = with_parent(&group.tree, salt);
        let result = submit(&world, by, change(&group, &after)).await.unwrap();
        group.accepted(&result, after);
        if salt == 3 {
            // The Welcome waits still: its tree is whole, older ones need not be.
            assert_eq!(fetch(&world, &b, &group, added.seq).await.unwrap(), joined);
            let older = fetch(&world, &a, &group, 0).await.unwrap_err();
            assert_eq!(reason(&older), Reason::EpochTooOld);
            assert_eq!(count(&world, versions).await, 3);
            let acknowledge = AckWelcomesRequest {
                welcomes: vec![WelcomeRef {
                    group: Some(group.reference()),
                    seq: added.seq,
                }],
            };
            let request = world.by(&b, acknowledge);
            world.client().ack_welcomes(request).await.unwrap();
        }
    }
    let gone = fetch(&world, &b, &group, added.seq).await.unwrap_err();
    assert_eq!(reason(&gone), Reason::EpochTooOld);
    assert!(count(&world, versions).await <= 4, "versions are pruned");
    let now = fetch(&world, &b, &group, group.epoch_seq).await.unwrap();
    assert_eq!(now, group.tree);
}

#[tokio::test]
async fn large_nodes_are_spread_over_parts_that_every_client_takes() {
    let world = World::start(1, &[]).await;
    let (devices, mut group) = crowd(&world, 8).await;
    let mut after = group.tree.clone();
    // As large as a parent gets that names some ten thousand unmerged leaves.
    for index in (1..15).step_by(2) {
        let mut node = vec![1, 2];
        node.put_vector(&vec![7; 100_000]);
        node.put(&[0, 0]);
        after.set(index, Some(&node)).unwrap();
    }
    let result = submit(&world, &devices[0], change(&group, &after)).await;
    group.accepted(&result.unwrap(), after);
    let request = FetchTreeRequest {
        group: Some(group.reference()),
        epoch_seq: group.epoch_seq,
        current: false,
    };
    let request = world.by(&devices[1], request);
    let mut parts = world
        .client()
        .fetch_tree(request)
        .await
        .unwrap()
        .into_inner();
    let mut nodes = 0;
    while let Some(part) = parts.message().await.unwrap() {
        let bytes: usize = part
            .nodes
            .iter()
            .filter_map(|n| Some(n.node.as_ref()?.len()))
            .sum();
        assert!(bytes <= 256 * 1024, "{bytes} in a part");
        nodes += part.nodes.len();
    }
    assert_eq!(nodes, 15);
    let fetched = fetch(&world, &devices[1], &group, group.epoch_seq).await;
    assert_eq!(fetched.unwrap(), group.tree);
}
