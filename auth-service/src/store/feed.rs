//! The status feed and the audit log: dense, in commit order.

use bytes::Bytes;
use service_kit::db::GenericClient;
use service_kit::db::Transaction;
use time::OffsetDateTime;
use tokio_postgres::Error;
use uuid::Uuid;

use super::{signed, unsigned};

/// The end of the feed.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The last item.
    pub seq: u64,
    /// Changes when the database is restored.
    pub history_id: Uuid,
    /// The database's time.
    pub now: OffsetDateTime,
    /// False where the database is a replica, which cannot know what came last.
    pub primary: bool,
}

/// Takes the next position, locked until COMMIT.
///
/// # Errors
/// The database.
pub async fn next(tx: &Transaction<'_>) -> Result<Head, Error> {
    let sql = "/* feed::next */ UPDATE service_state SET status_seq = status_seq + 1 RETURNING status_seq, incarnation, clock_timestamp()";
    let row = tx.query_one(&tx.prepare_cached(sql).await?, &[]).await?;
    Ok(Head {
        seq: unsigned(row.get(0)),
        history_id: row.get(1),
        now: row.get(2),
        primary: true,
    })
}

/// The end of the feed now.
///
/// # Errors
/// The database.
pub async fn head<C: GenericClient>(client: &C) -> Result<Head, Error> {
    let sql = "/* feed::head */ SELECT status_seq, incarnation, clock_timestamp(), NOT pg_is_in_recovery() FROM service_state";
    let row = client
        .query_one(&client.prepare_cached(sql).await?, &[])
        .await?;
    Ok(Head {
        seq: unsigned(row.get(0)),
        history_id: row.get(1),
        now: row.get(2),
        primary: row.get(3),
    })
}

/// The item at this position.
///
/// # Errors
/// The database.
pub async fn at<C: GenericClient>(client: &C, seq: u64) -> Result<Option<Vec<u8>>, Error> {
    let sql = "/* feed::at */ SELECT status FROM status_feed WHERE seq = $1";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&signed(seq)])
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Writes one item.
///
/// # Errors
/// The database.
pub async fn insert(
    tx: &Transaction<'_>,
    seq: u64,
    status: &[u8],
    signature: &[u8],
    chain: &[Bytes],
) -> Result<(), Error> {
    let chain: Vec<&[u8]> = chain.iter().map(|der| der.as_ref()).collect();
    let sql = "/* feed::insert */ INSERT INTO status_feed (seq, status, signature, chain) VALUES ($1, $2, $3, $4)";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&signed(seq), &status, &signature, &chain],
    )
    .await?;
    Ok(())
}

/// One item as it was signed.
#[derive(Debug)]
pub struct Item {
    /// Its position.
    pub seq: u64,
    /// Encoded `DeviceStatus`.
    pub status: Vec<u8>,
    /// Over it.
    pub signature: Vec<u8>,
    /// Of the signer.
    pub chain: Vec<Vec<u8>>,
}

/// Items after a position, in order.
///
/// # Errors
/// The database.
pub async fn after<C: GenericClient>(client: &C, seq: u64, limit: i64) -> Result<Vec<Item>, Error> {
    let sql = "/* feed::after */ SELECT seq, status, signature, chain FROM status_feed WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&signed(seq), &limit])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Item {
            seq: unsigned(row.get(0)),
            status: row.get(1),
            signature: row.get(2),
            chain: row.get(3),
        })
        .collect())
}

/// Notes who did what, in the transaction that does it.
///
/// # Errors
/// The database.
pub async fn audit(
    tx: &Transaction<'_>,
    actor: &str,
    action: &str,
    subject: &str,
) -> Result<(), Error> {
    let sql = "/* feed::audit */ WITH next AS (UPDATE service_state SET audit_seq = audit_seq + 1 RETURNING audit_seq) \
               INSERT INTO audit (seq, at, actor, action, subject) SELECT audit_seq, clock_timestamp(), $1, $2, $3 FROM next";
    tx.execute(&tx.prepare_cached(sql).await?, &[&actor, &action, &subject])
        .await?;
    Ok(())
}

/// One line of the audit log.
#[derive(Debug)]
pub struct AuditLine {
    /// Dense from 1.
    pub seq: u64,
    /// When.
    pub at: OffsetDateTime,
    /// Who.
    pub actor: String,
    /// What.
    pub action: String,
    /// To whom.
    pub subject: String,
}

/// Lines of the audit log after a position, in order.
///
/// # Errors
/// The database.
pub async fn audit_after<C: GenericClient>(
    client: &C,
    seq: u64,
    limit: i64,
) -> Result<Vec<AuditLine>, Error> {
    let sql = "/* feed::audit_after */ SELECT seq, at, actor, action, subject FROM audit WHERE seq > $1 ORDER BY seq LIMIT $2";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&signed(seq), &limit])
        .await?;
    Ok(rows
        .iter()
        .map(|row| AuditLine {
            seq: unsigned(row.get(0)),
            at: row.get(1),
            actor: row.get(2),
            action: row.get(3),
            subject: row.get(4),
        })
        .collect())
}
