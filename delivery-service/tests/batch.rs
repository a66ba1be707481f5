//! Messages that come at the same time become one transaction, and each is still answered for itself.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{common::v1::Reason, delivery::v1::*};
use support::{Group, World, forge, hold, log, owner, send, waiting};
use uuid::Uuid;

/// One lane, so that everything that comes shares it.
const ONE_LANE: &[&str] = &["--append-lanes-items", "1"];

/// Sends on one stream, in this order; answers in the same order.
async fn pipeline(
    world: &World,
    by: &forge::Device,
    messages: Vec<SendMessageRequest>,
) -> Vec<Result<SendMessageResponse, Reason>> {
    let stream = world.by(by, tokio_stream::iter(messages));
    let mut answers = world
        .client()
        .send_messages(stream)
        .await
        .unwrap()
        .into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        all.push(match answer.answer.unwrap() {
            send_messages_response::Answer::Accepted(accepted) => Ok(accepted),
            send_messages_response::Answer::Refused(refusal) => Err(refusal.reason()),
        });
    }
    all
}

#[tokio::test]
async fn a_group_that_somebody_holds_holds_up_nobody_else() {
    let world = World::start(1, ONE_LANE).await;
    let a = world.device(Uuid::new_v4());
    let (held, free) = (
        Group::create(&world, &a).await,
        Group::create(&world, &a).await,
    );
    let mut holder = owner(&world).await;
    let lock = hold(&mut holder, &held).await;
    let messages = (0..20).map(|_| held.message(Uuid::new_v4(), 1)).collect();
    let waits = pipeline(&world, &a, messages);
    let goes = async {
        waiting(&world, 1).await;
        let sent = send(&world, &a, free.message(Uuid::new_v4(), 1))
            .await
            .unwrap();
        assert_eq!(sent.seq, 1, "its lane is the same");
        lock.commit().await.unwrap();
    };
    let (answers, ()) = tokio::join!(waits, goes);
    let seqs: Vec<u64> = answers.into_iter().map(|a| a.unwrap().seq).collect();
    assert_eq!(seqs, (1..=20).collect::<Vec<u64>>(), "in their order");
    let entries = log(&world, &a, &held).await.unwrap();
    assert_eq!(entries.len(), 20);
}

#[tokio::test]
async fn a_message_that_the_database_refuses_fails_alone() {
    let world = World::start(1, ONE_LANE).await;
    let a = world.device(Uuid::new_v4());
    let group = Group::create(&world, &a).await;
    let messages: Vec<_> = (0..32).map(|_| group.message(Uuid::new_v4(), 1)).collect();
    let bad = Uuid::from_slice(&messages[13].message_id).unwrap();
    let mut holder = owner(&world).await;
    let trigger = format!(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON log FOR EACH ROW WHEN (NEW.message_id = '{bad}') EXECUTE FUNCTION refuse()"
    );
    holder.batch_execute(&trigger).await.unwrap();
    let lock = hold(&mut holder, &group).await;
    let release = async {
        waiting(&world, 1).await;
        lock.commit().await.unwrap();
    };
    let (answers, ()) = tokio::join!(pipeline(&world, &a, messages), release);
    let failed: Vec<usize> = (0..32).filter(|n| answers[*n].is_err()).collect();
    assert_eq!(failed, [13]);
    let seqs: Vec<u64> = answers.into_iter().flatten().map(|a| a.seq).collect();
    assert_eq!(seqs, (1..=31).collect::<Vec<u64>>());
}

#[tokio::test]
async fn of_equal_messages_in_one_batch_one_is_appended_and_the_rest_are_repeats() {
    let world = World::start(1, ONE_LANE).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let message = group.message(Uuid::new_v4(), 1);
    // The same id with other bytes.
    let mut other = group.message(Uuid::new_v4(), 1);
    other.message_id = message.message_id.clone();
    other.message = forge::private(
        &group.id,
        group.epoch,
        2,
        &forge::data(Uuid::from_slice(&message.message_id).unwrap(), None),
    )
    .into();
    let mut holder = owner(&world).await;
    let lock = hold(&mut holder, &group).await;
    let release = async {
        waiting(&world, 1).await;
        lock.commit().await.unwrap();
    };
    let messages = vec![message.clone(), message.clone(), other, message];
    let (answers, ()) = tokio::join!(pipeline(&world, &b, messages), release);
    let first = group.seq + 1;
    let told: Vec<_> = answers
        .into_iter()
        .map(|answer| answer.map(|a| (a.seq, a.replayed)))
        .collect();
    assert_eq!(
        told,
        [
            Ok((first, false)),
            Ok((first, true)),
            Err(Reason::MessageIdReused),
            Ok((first, true)),
        ]
    );
}

/// What a batch knows of a sender is read under the lock, for unary calls too: they ask the database nothing before.
#[tokio::test]
async fn a_device_that_is_revoked_while_its_message_waits_is_refused() {
    let world = World::start(1, ONE_LANE).await;
    let (a, b) = (world.device(Uuid::new_v4()), world.device(Uuid::new_v4()));
    let mut group = Group::create(&world, &a).await;
    group.add(&world, &a, &[&a, &b], &[&b]).await;
    let mut holder = owner(&world).await;
    let lock = hold(&mut holder, &group).await;
    let revoke = async {
        waiting(&world, 1).await;
        world.revoke(&b).await;
        lock.commit().await.unwrap();
    };
    let message = group.message(Uuid::new_v4(), 1);
    let (sent, ()) = tokio::join!(send(&world, &b, message), revoke);
    assert_eq!(support::reason(&sent.unwrap_err()), Reason::DeviceRevoked);
}
