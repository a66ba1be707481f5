//! The baselines: the same rows in the same tables, by plain SQL. Nothing is locked first, read, decided or answered.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{bail, ensure};
use delivery_service::{
    ordering::group::{ExternalJoin, Head},
    store::{
        groups::HeadMove,
        log::{AppendMany, EntryRow},
    },
};
use service_kit::db::Db;
use uuid::Uuid;

use super::{
    ground::{Ground, Groups},
    load,
};

/// Rows in one transaction.
const BATCH: u32 = 100;
/// Connections that write batches.
const WRITERS: u32 = 4;
/// `EntryKind` of an application message.
const APPLICATION: i16 = 4;

/// Rows each second in batches of 100, inserted and with their heads in one statement. Each connection has groups of its own.
///
/// # Errors
/// The database.
pub async fn batches(ground: &Ground, groups: Groups, measured: Duration) -> anyhow::Result<f64> {
    let writers = WRITERS.min(groups.count);
    let work = (0..writers).map(|writer| {
        let own: Vec<u32> = (0..groups.count)
            .filter(|n| n % writers == writer)
            .collect();
        move |db: Db, written: Arc<AtomicU64>| async move {
            let mut heads: Vec<(Vec<u8>, Head)> = Vec::new();
            for index in &own {
                let id = groups.id(*index);
                let client = db.client().await?;
                let head = delivery_service::store::groups::head(&client, &id).await?;
                heads.push((
                    id,
                    head.unwrap_or_else(|| Head::created(0, 1, ExternalJoin::Resync)),
                ));
            }
            loop {
                batch(&db, &mut heads).await?;
                written.fetch_add(u64::from(BATCH), Ordering::Relaxed);
            }
        }
    });
    rate(ground, work, measured).await
}

/// Writes one batch at random places, in one statement that is its own transaction.
async fn batch(db: &Db, heads: &mut [(Vec<u8>, Head)]) -> anyhow::Result<()> {
    let mut after: BTreeMap<usize, Head> = BTreeMap::new();
    let rows: Vec<(usize, u64, Uuid, Vec<u8>)> = (0..BATCH)
        .map(|_| {
            let place = fastrand::usize(0..heads.len());
            let (group, before) = &heads[place];
            let head = after.entry(place).or_insert_with(|| before.clone());
            head.seq += 1;
            let id = Uuid::new_v4();
            (place, head.seq, id, load::message(group, 0, id))
        })
        .collect();
    let entries: Vec<EntryRow<'_>> = rows
        .iter()
        .map(|(place, seq, id, payload)| EntryRow {
            group: &heads[*place].0,
            seq: *seq,
            epoch: 0,
            epoch_seq: 0,
            kind: APPLICATION,
            message_id: *id,
            accepted_at: 0,
            content_hash: [0; 32],
            chain: [0; 32],
            payload,
        })
        .collect();
    let moves: Vec<HeadMove<'_>> = after
        .iter()
        .map(|(place, after)| HeadMove {
            group: &heads[*place].0,
            before: &heads[*place].1,
            after,
        })
        .collect();
    let client = db.client().await?;
    let statement = AppendMany::prepare(&client).await?;
    let appended = statement.run(&client, &moves, &entries).await?;
    ensure!(appended == u64::from(BATCH), "{appended} of {BATCH} rows");
    for (place, head) in after {
        heads[place].1 = head;
    }
    Ok(())
}

/// One message, its seq and its COMMIT in one statement.
const SINGLE: &str = "/* bench::single */ WITH h AS (UPDATE group_heads SET head_seq = head_seq + 1, chain = $4, last_at = now() \
                      WHERE group_id = $1 RETURNING head_seq) \
                      INSERT INTO log (group_id, seq, epoch, epoch_seq, kind, message_id, accepted_at, content_hash, chain, payload) \
                      SELECT $1, h.head_seq, 0, 0, 4, $2, now(), $4, $4, $3 FROM h";

async fn single(db: &Db, groups: Groups) -> anyhow::Result<()> {
    let group = groups.id(fastrand::u32(0..groups.count));
    let id = Uuid::new_v4();
    let payload = load::message(&group, 0, id);
    let chain = [0u8; 32];
    let client = db.client().await?;
    let statement = client.prepare_cached(SINGLE).await?;
    client
        .execute(&statement, &[&group, &id, &payload, &chain.as_slice()])
        .await?;
    Ok(())
}

/// Rows each second, one transaction for each, on so many connections.
///
/// # Errors
/// The database.
pub async fn singles(
    ground: &Ground,
    groups: Groups,
    connections: u32,
    measured: Duration,
) -> anyhow::Result<f64> {
    let work = (0..connections).map(|_| {
        move |db: Db, written: Arc<AtomicU64>| async move {
            loop {
                single(&db, groups).await?;
                written.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    rate(ground, work, measured).await
}

/// How long each of `calls` single rows took on one connection, in microseconds, sorted.
///
/// # Errors
/// The database.
pub async fn one_by_one(ground: &Ground, groups: Groups, calls: usize) -> anyhow::Result<Vec<f64>> {
    let db = ground.database(1)?;
    load::times(calls, async || single(&db, groups).await).await
}

/// Runs writers, each on a connection of its own, and counts what they write each second.
async fn rate<W, F>(
    ground: &Ground,
    writers: impl Iterator<Item = W>,
    measured: Duration,
) -> anyhow::Result<f64>
where
    W: FnOnce(Db, Arc<AtomicU64>) -> F,
    F: Future<Output = anyhow::Result<Infallible>> + Send + 'static,
{
    let written = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for writer in writers {
        tasks.spawn(writer(ground.database(1)?, written.clone()));
    }
    let measure = async {
        while written.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        load::each_second(&written, measured).await
    };
    tokio::select! {
        rate = measure => Ok(rate),
        Some(ended) = tasks.join_next() => match ended?? {},
        else => bail!("nobody writes"),
    }
}
