//! What PostgreSQL does for a message, counted: no machine and no neighbour changes that. Bounds are above only, with room: a session that reports late makes
//! a count smaller, and what is to be found makes it several times as large.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::delivery::v1::{
    Frame, SubscribeRequest, frame::Frame as Kind, send_messages_response::Answer,
};
use delivery_service::store;
use service_kit::db::{Db, PoolOptions};
use support::{Group, World, forge::Device, owner};
use tonic::Streaming;
use uuid::Uuid;

/// Messages of one measurement.
const MESSAGES: usize = 400;
/// Jobs that look by the clock are not what is counted.
const QUIET: &[&str] = &["--head-poll-millis", "600000", "--append-lanes-items", "1"];

/// What PostgreSQL counts for a database.
#[derive(Debug, Clone, Copy)]
struct Counts {
    commits: i64,
    /// Pages that were looked at.
    pages: i64,
    /// Rows that were found by an index or read one after the other.
    rows: i64,
}

impl std::ops::Sub for Counts {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self {
            commits: self.commits - other.commits,
            pages: self.pages - other.pages,
            rows: self.rows - other.rows,
        }
    }
}

/// What was done so far, once nobody is at it: sessions report what they did when they end.
async fn counts(world: &World) -> Counts {
    let client = owner(world).await;
    let name = world.db.name();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid() AND backend_type = 'client backend'";
    while !client.query(end, &[&name]).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    // Of the service's own tables: what sessions read of the catalogues when they begin differs from one to the next.
    let sql = "SELECT (SELECT xact_commit FROM pg_stat_database WHERE datname = $1), \
               (SELECT sum(coalesce(heap_blks_hit, 0) + coalesce(heap_blks_read, 0) + coalesce(idx_blks_hit, 0) + coalesce(idx_blks_read, 0))::bigint \
                FROM pg_statio_user_tables), \
               (SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_user_tables)";
    let row = client.query_one(sql, &[&name]).await.unwrap();
    Counts {
        commits: row.get(0),
        pages: row.get(1),
        rows: row.get(2),
    }
}

/// A group of these, and a world without a node.
async fn ground(devices: usize) -> (World, Vec<Device>, Group) {
    let mut world = World::start(1, QUIET).await;
    let devices: Vec<Device> = (0..devices).map(|_| world.device(Uuid::new_v4())).collect();
    let all: Vec<&Device> = devices.iter().collect();
    let mut group = Group::create(&world, all[0]).await;
    group.add(&world, all[0], &all, &all[1..]).await;
    // Settled: what follows is all of one kind.
    let message = group.message(Uuid::new_v4(), 1);
    let sent = support::send(&world, all[1], message).await.unwrap();
    group.sent(&sent);
    world.nodes.clear();
    let still = "DO $$ DECLARE t regclass; BEGIN FOR t IN SELECT relid FROM pg_stat_user_tables LOOP \
                 EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', t); END LOOP; END $$";
    owner(&world).await.batch_execute(still).await.unwrap();
    (world, devices, group)
}

/// What it takes one node to append so many messages that come at the same time.
async fn crowd(world: &World, by: &Device, group: &Group, messages: usize) -> Counts {
    let before = counts(world).await;
    let mut node = world.node(QUIET).await;
    let requests: Vec<_> = (0..messages)
        .map(|_| group.message(Uuid::new_v4(), 1))
        .collect();
    let stream = world.by(by, tokio_stream::iter(requests));
    let mut answers = node
        .client
        .send_messages(stream)
        .await
        .unwrap()
        .into_inner();
    let mut accepted = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        accepted += usize::from(matches!(answer.answer, Some(Answer::Accepted(_))));
    }
    assert_eq!(accepted, messages);
    drop(node);
    counts(world).await - before
}

#[tokio::test]
async fn a_message_costs_in_a_group_of_thousands_what_it_costs_in_a_group_of_two() {
    let (world, devices, group) = ground(2).await;
    let small = crowd(&world, &devices[1], &group, MESSAGES).await;
    let client = owner(&world).await;
    let fill = "INSERT INTO members (group_id, domain_id, device_id, user_id, joined_seq) \
                SELECT $1, 1::smallint, gen_random_uuid(), gen_random_uuid(), 0 FROM generate_series(1, 5000)";
    client.execute(fill, &[&group.id]).await.unwrap();
    drop(client);
    let large = crowd(&world, &devices[1], &group, MESSAGES).await;
    // Whoever read the members would read five thousand rows more, for each batch at least.
    let messages = i64::try_from(MESSAGES).unwrap();
    assert!(large.rows <= small.rows + messages, "{small:?} {large:?}");
}

#[tokio::test]
async fn messages_that_come_together_share_transactions() {
    let (world, devices, group) = ground(2).await;
    let many = crowd(&world, &devices[1], &group, MESSAGES).await;
    let messages = i64::try_from(MESSAGES).unwrap();
    assert!(many.commits * 4 <= messages, "{many:?}");
    // Fewer than eight: the entry's page and its places in both unique indexes.
    assert!(many.pages <= 10 * messages, "{many:?}");
}

/// What it takes one node to deliver so many messages, one after the other, to streams of all these.
async fn delivery(world: &World, to: &[Device], group: &Group, messages: usize) -> Counts {
    let before = counts(world).await;
    let mut node = world.node(QUIET).await;
    let mut streams = Vec::new();
    for device in to {
        let request = SubscribeRequest {
            all_groups: true,
            ..SubscribeRequest::default()
        };
        let stream = node.client.subscribe(world.by(device, request)).await;
        streams.push(stream.unwrap().into_inner());
    }
    for stream in &mut streams {
        while !matches!(next(stream).await, Kind::CaughtUp(_)) {}
    }
    for _ in 0..messages {
        let message = world.by(&to[1], group.message(Uuid::new_v4(), 1));
        let sent = node.client.send_message(message).await.unwrap();
        for stream in &mut streams {
            loop {
                if let Kind::Entries(entries) = next(stream).await {
                    assert_eq!(entries.entries[0].seq, sent.get_ref().seq);
                    break;
                }
            }
        }
    }
    drop((streams, node));
    counts(world).await - before
}

async fn next(stream: &mut Streaming<Frame>) -> Kind {
    stream.message().await.unwrap().unwrap().frame.unwrap()
}

#[tokio::test]
async fn a_message_is_read_once_for_all_who_follow() {
    const SENT: usize = 40;
    let (world, devices, group) = ground(40).await;
    let spent = delivery(&world, &devices, &group, SENT).await;
    // Fewer than a thousand rows are read to begin forty streams and to append; each delivery by itself would read one more at least.
    let deliveries = i64::try_from(devices.len() * SENT).unwrap();
    assert!(spent.rows < deliveries, "{spent:?}");
}

#[tokio::test]
async fn the_oldest_welcome_that_waits_is_found_at_once_where_the_planner_knows_of_none() {
    let world = World::start(0, &[]).await;
    let group: &[u8] = &[7; 32];
    // All of the first thousand were read, and one in three of the others.
    let fill = "INSERT INTO welcomes SELECT $1, n, 1, gen_random_uuid(), 'ref', 'secrets', now() + interval '1 day', \
                CASE WHEN n < 1000 OR n % 3 = 0 THEN now() END FROM generate_series(1, 100000) n";
    let admin = owner(&world).await;
    admin
        .batch_execute("VACUUM ANALYZE welcomes")
        .await
        .unwrap();
    admin.execute(fill, &[&group]).await.unwrap();
    let db = Db::connect(&world.db.url(), &PoolOptions::default()).unwrap();
    let client = db.client().await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    let oldest = store::tree::oldest_kept(&client, group, 200_000).await;
    assert_eq!(oldest.unwrap(), 1_000);
    let sql = "SELECT sum(idx_tup_fetch + seq_tup_read)::bigint FROM pg_stat_xact_user_tables WHERE relname = 'welcomes'";
    let read: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(read <= 2, "{read} rows");
}
