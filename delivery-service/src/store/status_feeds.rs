//! How far each status feed was applied, what of it waits for a program that knows it, and the roots that were accepted.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;
use uuid::Uuid;

use crate::store::{signed, unsigned};

/// Where a feed was read to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The feed's history as the last heartbeat named it; empty before the first one.
    pub history_id: Vec<u8>,
    /// The last item that was applied; 0 is none.
    pub seq: u64,
    /// SHA-256 of that item.
    pub item_sha256: Option<[u8; 32]>,
}

/// How far a feed was applied.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Behind the last item. Without its hash where a program that keeps none moved it on.
    pub cursor: Cursor,
    /// The newest time that the feed was known to be whole, Unix microseconds.
    pub heard_micros: Option<i64>,
}

fn hash(bytes: Option<&[u8]>) -> Option<[u8; 32]> {
    bytes.and_then(|bytes| bytes.try_into().ok())
}

/// How far a domain's feed was applied; nothing before its Authentication Service was heard.
pub async fn applied<C: GenericClient>(client: &C, domain: i16) -> Result<Option<Applied>, Error> {
    let sql = "/* status_feeds::applied */ SELECT history_id, seq, CASE WHEN item_seq = seq THEN item_sha256 END, heard_micros \
               FROM auth_services WHERE domain_id = $1";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&domain])
        .await?;
    Ok(row.map(|row| Applied {
        cursor: Cursor {
            history_id: row.get::<_, Option<Vec<u8>>>(0).unwrap_or_default(),
            seq: unsigned(row.get(1)),
            item_sha256: hash(row.get(2)),
        },
        heard_micros: row.get(3),
    }))
}

/// Moves a feed's cursor forward, in the transaction that does what the item says. Where it is ahead already, in whatever past, it stays; that something
/// was applied is noted all the same.
pub async fn advance(tx: &Transaction<'_>, domain: i16, cursor: &Cursor) -> Result<u64, Error> {
    let sql = "/* status_feeds::advance */ UPDATE auth_services SET applied = applied + 1, seq = greatest(seq, $2), \
               item_seq = CASE WHEN seq < $2 THEN $2 ELSE item_seq END, item_sha256 = CASE WHEN seq < $2 THEN $3 ELSE item_sha256 END \
               WHERE domain_id = $1";
    let hash = cursor.item_sha256.as_ref().map(|hash| hash.as_slice());
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&domain, &signed(cursor.seq), &hash],
    )
    .await
}

/// Notes a heartbeat at this cursor: the feed's history, and the time at which it was whole (Unix microseconds).
pub async fn heard<C: GenericClient>(
    client: &C,
    domain: i16,
    cursor: &Cursor,
    time_micros: i64,
) -> Result<u64, Error> {
    let sql = "/* status_feeds::heard */ UPDATE auth_services SET history_id = $2, heard_micros = greatest(heard_micros, $4) \
               WHERE domain_id = $1 AND seq = $3";
    client
        .execute(
            &client.prepare_cached(sql).await?,
            &[
                &domain,
                &cursor.history_id,
                &signed(cursor.seq),
                &time_micros,
            ],
        )
        .await
}

/// Forgets how far a feed was applied, unless another node moved on from this cursor meanwhile; what was applied stays.
pub async fn forget<C: GenericClient>(
    client: &C,
    domain: i16,
    cursor: &Cursor,
) -> Result<u64, Error> {
    let sql = "/* status_feeds::forget */ UPDATE auth_services SET history_id = NULL, seq = 0, item_seq = NULL, item_sha256 = NULL, \
               applied = applied + 1 WHERE domain_id = $1 AND seq = $2 \
               AND CASE WHEN item_seq = seq THEN item_sha256 END IS NOT DISTINCT FROM $3";
    let hash = cursor.item_sha256.as_ref().map(|hash| hash.as_slice());
    client
        .execute(
            &client.prepare_cached(sql).await?,
            &[&domain, &signed(cursor.seq), &hash],
        )
        .await
}

/// A status of a kind that was not known when it came.
#[derive(Debug, Clone)]
pub struct Kept {
    /// SHA-256 of the encoded `DeviceStatus`.
    pub item_sha256: Vec<u8>,
    /// Encoded `SignedStatus`.
    pub item: Vec<u8>,
}

/// Keeps a status of an unknown kind, and refuses its subject until it is released.
pub async fn keep(
    tx: &Transaction<'_>,
    domain: i16,
    cursor: &Cursor,
    subject: Uuid,
    item: &[u8],
) -> Result<(), Error> {
    let hash = cursor.item_sha256.as_ref().map(|hash| hash.as_slice());
    let sql = "/* status_feeds::keep */ INSERT INTO unknown_statuses (domain_id, item_sha256, seq, subject_id, item) VALUES ($1, $2, $3, $4, $5) \
               ON CONFLICT DO NOTHING";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&domain, &hash, &signed(cursor.seq), &subject, &item],
    )
    .await?;
    let sql = "/* status_feeds::keep */ INSERT INTO suspended (domain_id, subject_id, expired, unknown) VALUES ($1, $2, false, true) \
               ON CONFLICT DO NOTHING";
    tx.execute(&tx.prepare_cached(sql).await?, &[&domain, &subject])
        .await?;
    Ok(())
}

/// Statuses of a domain that were kept, in the order of the feed.
pub async fn kept<C: GenericClient>(client: &C, domain: i16) -> Result<Vec<Kept>, Error> {
    let sql = "/* status_feeds::kept */ SELECT item_sha256, item FROM unknown_statuses WHERE domain_id = $1 ORDER BY seq, item_sha256";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&domain])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Kept {
            item_sha256: row.get(0),
            item: row.get(1),
        })
        .collect())
}

/// Drops a kept status, in the transaction that applies it, and lets its subject in where nothing else that was kept is about it.
pub async fn release(
    tx: &Transaction<'_>,
    domain: i16,
    item_sha256: &[u8],
    subject: Uuid,
) -> Result<(), Error> {
    let sql = "/* status_feeds::release */ DELETE FROM unknown_statuses WHERE domain_id = $1 AND item_sha256 = $2";
    tx.execute(&tx.prepare_cached(sql).await?, &[&domain, &item_sha256])
        .await?;
    let sql = "/* status_feeds::release */ DELETE FROM suspended s WHERE s.domain_id = $1 AND s.subject_id = $2 AND s.unknown \
               AND NOT EXISTS (SELECT 1 FROM unknown_statuses u WHERE u.domain_id = $1 AND u.subject_id = $2)";
    tx.execute(&tx.prepare_cached(sql).await?, &[&domain, &subject])
        .await?;
    Ok(())
}

/// Notes that something was applied beside the feed's cursor.
pub async fn touch(tx: &Transaction<'_>, domain: i16) -> Result<u64, Error> {
    let sql = "/* status_feeds::touch */ UPDATE auth_services SET applied = applied + 1 WHERE domain_id = $1";
    tx.execute(&tx.prepare_cached(sql).await?, &[&domain]).await
}

/// A root that was accepted for a domain.
#[derive(Debug, Clone)]
pub struct Root {
    /// The certificate.
    pub der: Vec<u8>,
    /// The last intermediates that it vouched for.
    pub intermediates: Vec<Vec<u8>>,
}

/// The roots that were accepted for a domain, the one accepted last first.
pub async fn roots<C: GenericClient>(client: &C, domain: i16) -> Result<Vec<Root>, Error> {
    let sql = "/* status_feeds::roots */ SELECT root_der, intermediates FROM auth_roots WHERE domain_id = $1 ORDER BY accepted_at DESC, root_sha256";
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&domain])
        .await?;
    Ok(rows
        .iter()
        .map(|row| Root {
            der: row.get(0),
            intermediates: row.get(1),
        })
        .collect())
}

/// Accepts a root; one that was accepted before becomes the last one again.
pub async fn accept_root<C: GenericClient>(
    client: &C,
    domain: i16,
    sha256: &[u8],
    der: &[u8],
) -> Result<u64, Error> {
    let sql = "/* status_feeds::accept_root */ INSERT INTO auth_roots (domain_id, root_sha256, root_der) VALUES ($1, $2, $3) \
               ON CONFLICT (domain_id, root_sha256) DO UPDATE SET accepted_at = now()";
    client
        .execute(
            &client.prepare_cached(sql).await?,
            &[&domain, &sha256, &der],
        )
        .await
}

/// Remembers the intermediates of an accepted root.
pub async fn remember_intermediates<C: GenericClient>(
    client: &C,
    domain: i16,
    sha256: &[u8],
    intermediates: &[Vec<u8>],
) -> Result<u64, Error> {
    let sql = "/* status_feeds::remember_intermediates */ UPDATE auth_roots SET intermediates = $3 \
               WHERE domain_id = $1 AND root_sha256 = $2 AND intermediates IS DISTINCT FROM $3";
    client
        .execute(
            &client.prepare_cached(sql).await?,
            &[&domain, &sha256, &intermediates],
        )
        .await
}
