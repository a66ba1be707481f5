//! PostgreSQL without room on its disk: every message of a batch is told so at once, and nothing is tried again and
//! again.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::{common::v1::Reason, delivery::v1::*};
use support::{Group, World, forge::Device, owner, send};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::StreamExt as _;
use uuid::Uuid;

const ONE_LANE: &[&str] = &["--append-lanes-items", "1"];
/// A trigger that fails as a full disk does, after a while in which more messages come, and counts statements where a
/// rollback does not undo it.
const FULL: &str = "CREATE SEQUENCE tries; GRANT ALL ON SEQUENCE tries TO PUBLIC; \
    CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('tries'), pg_sleep(0.4); \
    RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$; \
    CREATE TRIGGER full_disk BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION full_disk()";

/// Puts so many messages at once while the disk is full; how often PostgreSQL was asked to write some of them.
async fn tries(world: &World, by: &Device, group: &Group, messages: usize) -> i64 {
    let watcher = owner(world).await;
    let count = async || -> i64 {
        let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM tries";
        watcher.query_one(sql, &[]).await.unwrap().get(0)
    };
    let before = count().await;
    let all = (0..messages).map(|_| group.message(Uuid::new_v4(), 1));
    let stream = world.by(by, tokio_stream::iter(all.collect::<Vec<_>>()));
    let answers = world.client().send_messages(stream).await.unwrap();
    let answers: Vec<_> = answers.into_inner().collect().await;
    assert_eq!(answers.len(), messages);
    for answer in answers {
        match answer.unwrap().answer.unwrap() {
            send_messages_response::Answer::Refused(refusal) => {
                assert_eq!(refusal.reason(), Reason::Storage);
            }
            other => panic!("{other:?}"),
        }
    }
    count().await - before
}

/// The metrics of the node, as text.
async fn metrics(world: &World) -> String {
    let at = world.nodes[0].ops.to_string();
    let mut ops = tokio::net::TcpStream::connect(at).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    ops.write_all(request).await.unwrap();
    let mut text = String::new();
    ops.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn a_full_disk_is_everybodys_failure() {
    let world = World::start(1, ONE_LANE).await;
    let a = world.device(Uuid::new_v4());
    let mut group = Group::create(&world, &a).await;
    let first = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    group.sent(&first.unwrap());
    owner(&world).await.batch_execute(FULL).await.unwrap();
    // What was remembered of the group is believed while nobody has shown that it is wrong.
    for messages in [1, 7, 256] {
        let tries = tries(&world, &a, &group, messages).await;
        assert!((1..=3).contains(&tries), "{messages}: {tries}");
    }
    let metrics = metrics(&world).await;
    assert!(metrics.contains("chancery_ds_requests_total"), "{metrics}");
    let unforeseen = metrics
        .lines()
        .find(|line| line.contains("append_unforeseen"));
    assert_eq!(unforeseen, None, "nothing was other than it was foreseen");
    let room = "DROP TRIGGER full_disk ON log";
    owner(&world).await.batch_execute(room).await.unwrap();
    let sent = send(&world, &a, group.message(Uuid::new_v4(), 1)).await;
    assert_eq!(sent.unwrap().seq, group.seq + 1, "nothing was written");
}
