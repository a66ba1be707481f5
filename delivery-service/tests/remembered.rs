//! What a node remembers spares it questions, and is never taken for the truth.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{common::v1::Reason, delivery::v1::*};
use support::{Group, World, forge, hold, log, owner, reason, send, submit, waiting};
use tonic::Status;
use uuid::Uuid;

/// Nobody gives up waiting for a lock here.
const PATIENT: &[&str] = &["--append-lock-millis", "20000"];

/// A settled group of two, and a first message of each: nodes that take turns know it now.
struct Pair {
    world: World,
    alice: forge::Device,
    bob: forge::Device,
    group: Group,
}

impl Pair {
    async fn new(nodes: usize) -> Self {
        let world = World::start(nodes, PATIENT).await;
        let (alice, bob) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
        let mut group = Group::create(&world, &alice).await;
        group.add(&world, &alice, &[&alice, &bob], &[&bob]).await;
        let mut pair = Self {
            world,
            alice,
            bob,
            group,
        };
        for node in 0..nodes {
            pair.say(node, true).await.unwrap();
            pair.say(node, false).await.unwrap();
        }
        pair
    }

    async fn send_at(
        &self,
        node: usize,
        bob: bool,
        message: SendMessageRequest,
    ) -> Result<SendMessageResponse, Status> {
        let by = if bob { &self.bob } else { &self.alice };
        let request = self.world.by(by, message);
        let mut client = self.world.nodes[node].client.clone();
        Ok(client.send_message(request).await?.into_inner())
    }

    async fn say(&mut self, node: usize, bob: bool) -> Result<SendMessageResponse, Status> {
        let message = self.group.message(Uuid::new_v4(), 1);
        let sent = self.send_at(node, bob, message).await?;
        self.group.sent(&sent);
        Ok(sent)
    }
}

#[tokio::test]
async fn a_remembered_sender_is_not_looked_up() {
    let mut pair = Pair::new(1).await;
    let mut holder = owner(&pair.world).await;
    let lock = holder.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE members, devices IN ACCESS EXCLUSIVE MODE")
        .await
        .unwrap();
    let before = pair.group.seq;
    assert_eq!(pair.say(0, true).await.unwrap().seq, before + 1);
    // A new group is: the node waits for what it does not know.
    let other = Group {
        id: Uuid::new_v4().as_bytes().repeat(2),
        ..pair.group.clone()
    };
    let asks = pair.send_at(0, true, other.message(Uuid::new_v4(), 1));
    let release = async {
        waiting(&pair.world, 1).await;
        lock.commit().await.unwrap();
    };
    let (refused, ()) = tokio::join!(asks, release);
    assert_eq!(reason(&refused.unwrap_err()), Reason::Group);
}

#[tokio::test]
async fn a_repeat_is_answered_as_the_first_time_and_keeps_nobody_from_the_log() {
    let mut pair = Pair::new(2).await;
    let message = pair.group.message(Uuid::new_v4(), 1);
    let mut other = message.clone();
    other.message = forge::private(
        &pair.group.id,
        pair.group.epoch,
        2,
        &forge::data(Uuid::from_slice(&message.message_id).unwrap(), None),
    )
    .into();
    let first = pair.send_at(0, true, message.clone()).await.unwrap();
    pair.group.sent(&first);
    for node in [0, 1, 0] {
        let again = pair.send_at(node, true, message.clone()).await.unwrap();
        assert_eq!(
            again,
            SendMessageResponse {
                replayed: true,
                ..first.clone()
            }
        );
        let reused = pair.send_at(node, true, other.clone()).await.unwrap_err();
        assert_eq!(reason(&reused), Reason::MessageIdReused);
        let before = pair.group.seq;
        assert_eq!(pair.say(node, false).await.unwrap().seq, before + 1);
    }
}

#[tokio::test]
async fn a_device_that_is_revoked_while_what_is_remembered_is_written_is_refused() {
    let pair = Pair::new(1).await;
    let mut holder = owner(&pair.world).await;
    let lock = hold(&mut holder, &pair.group).await;
    let revoke = async {
        waiting(&pair.world, 1).await;
        pair.world.revoke(&pair.bob).await;
        lock.commit().await.unwrap();
    };
    let message = pair.group.message(Uuid::new_v4(), 1);
    let (sent, ()) = tokio::join!(pair.send_at(0, true, message), revoke);
    assert_eq!(reason(&sent.unwrap_err()), Reason::DeviceRevoked);
}

#[tokio::test]
async fn who_was_removed_by_another_node_is_refused_by_one_that_remembers_a_member() {
    let pair = Pair::new(2).await;
    let mut holder = owner(&pair.world).await;
    let lock = hold(&mut holder, &pair.group).await;
    let tree = forge::tree(&[&pair.alice], 1);
    let removal = pair
        .group
        .commit(pair.group.info(&[], &[&pair.bob]), &[], &tree);
    let mut other_node = pair.world.nodes[1].client.clone();
    let removal = other_node.submit_commit(pair.world.by(&pair.alice, removal));
    let message = pair.group.message(Uuid::new_v4(), 1);
    let behind = async {
        waiting(&pair.world, 1).await;
        let release = async {
            waiting(&pair.world, 2).await;
            lock.commit().await.unwrap();
        };
        tokio::join!(pair.send_at(0, true, message), release).0
    };
    let (removed, sent) = tokio::join!(removal, behind);
    removed.unwrap();
    assert_eq!(reason(&sent.unwrap_err()), Reason::Group);
}

#[tokio::test]
async fn nodes_that_take_turns_in_one_group_keep_one_log() {
    let mut pair = Pair::new(2).await;
    let before = pair.group.seq;
    for n in 0..40 {
        // Now in turns, now several times in a row: what one node remembers is often old.
        pair.say(usize::from(n % 7 > 3), n % 2 == 0).await.unwrap();
    }
    let entries = log(&pair.world, &pair.alice, &pair.group).await.unwrap();
    let seqs: Vec<u64> = entries.iter().map(|entry| entry.seq).collect();
    assert!(seqs.ends_with(&(before + 1..=before + 40).collect::<Vec<_>>()));
    assert_eq!(pair.group.seq, before + 40);
    assert!(entries.is_sorted_by_key(|entry| entry.accepted_at_micros));
}

#[tokio::test]
async fn messages_in_a_new_epoch_settle_it_though_the_group_is_remembered() {
    let mut pair = Pair::new(1).await;
    let tree = forge::tree(&[&pair.alice, &pair.bob], 7);
    let request = pair.group.commit(pair.group.info(&[], &[]), &[], &tree);
    let result = submit(&pair.world, &pair.alice, request).await.unwrap();
    pair.group.accepted(&result, tree);
    let own = pair.say(0, false).await.unwrap();
    assert_eq!(own.outcome(), Outcome::Provisional, "by the committer");
    let settles = pair.say(0, true).await.unwrap();
    assert_eq!(settles.outcome(), Outcome::Standing);
    let next = send(
        &pair.world,
        &pair.alice,
        pair.group.message(Uuid::new_v4(), 1),
    )
    .await;
    assert_eq!(next.unwrap().outcome(), Outcome::Standing);
}
