//! KeyPackages: each one-time one leaves exactly once.

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::Error;
use uuid::Uuid;

use crate::ordering::group::DeviceKey;

/// A checked KeyPackage to store.
#[derive(Debug, Clone)]
pub struct NewKeyPackage {
    /// RFC 9420 section 5.2.
    pub reference: Vec<u8>,
    /// Cipher suite.
    pub suite: u16,
    /// Given out only when the stock is empty, and again and again.
    pub last_resort: bool,
    /// Unix seconds.
    pub not_after: i64,
    /// MLSMessage(KeyPackage).
    pub body: Vec<u8>,
}

/// Stores one; a ref that is already there, claimed or not, stays as it is.
pub async fn insert(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    package: &NewKeyPackage,
) -> Result<u64, Error> {
    let sql = "/* key_packages::insert */ INSERT INTO key_packages (domain_id, device_id, ref, suite, last_resort, not_after, body) \
               VALUES ($1, $2, $3, $4, $5, to_timestamp($6), $7) ON CONFLICT (device_id, domain_id, ref) DO NOTHING";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &owner.domain,
            &owner.device,
            &package.reference,
            &i32::from(package.suite),
            &package.last_resort,
            &(package.not_after as f64),
            &package.body,
        ],
    )
    .await
}

/// Takes unclaimed KeyPackages out of stock. A last resort that was given out is retired instead of deleted, so that a
/// repeat of its claim gets it again and a Welcome may name it. Two statements: a claim that holds the row is waited
/// for by the first, and seen by the second.
macro_rules! take_out {
    ($name:literal, $which:literal) => {
        [
            concat!(
                "/* key_packages::", $name, " */ DELETE FROM key_packages WHERE domain_id = $1 AND device_id = $2 \
                 AND claim_id IS NULL AND last_resort_claims = 0 AND ", $which
            ),
            concat!(
                "/* key_packages::", $name, " */ UPDATE key_packages SET retired_at = now() WHERE domain_id = $1 AND device_id = $2 \
                 AND last_resort_claims > 0 AND retired_at IS NULL AND ", $which
            ),
        ]
    };
}

/// Takes a suite's last resorts out of stock but for the one that is kept.
pub async fn replace_last_resorts(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suite: u16,
    keep: &[u8],
) -> Result<(), Error> {
    let which = take_out!(
        "replace_last_resorts",
        "suite = $3 AND last_resort AND ref <> $4"
    );
    for sql in which {
        let statement = tx.prepare_cached(sql).await?;
        let suite = i32::from(suite);
        tx.execute(&statement, &[&owner.domain, &owner.device, &suite, &keep])
            .await?;
    }
    Ok(())
}

/// Takes the unclaimed ones of these suites out of stock, last resorts too, but for those that are kept.
pub async fn replace_suites(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suites: &[i32],
    keep: &[&[u8]],
) -> Result<(), Error> {
    for sql in take_out!("replace_suites", "suite = ANY($3) AND ref <> ALL($4)") {
        let statement = tx.prepare_cached(sql).await?;
        tx.execute(&statement, &[&owner.domain, &owner.device, &suites, &keep])
            .await?;
    }
    Ok(())
}

/// Takes unclaimed ones out of stock by ref.
pub async fn delete_refs(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    refs: &[Vec<u8>],
) -> Result<(), Error> {
    for sql in take_out!("delete_refs", "ref = ANY($3)") {
        let statement = tx.prepare_cached(sql).await?;
        tx.execute(&statement, &[&owner.domain, &owner.device, &refs])
            .await?;
    }
    Ok(())
}

/// Stock of one suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stock {
    /// Cipher suite.
    pub suite: u32,
    /// Unclaimed and unexpired.
    pub one_time: u32,
    /// There is a last resort to give.
    pub last_resort: bool,
    /// Claims that the present last resort answered.
    pub last_resort_claims: u32,
}

/// A device's stock by suite.
pub async fn stock<C: GenericClient>(client: &C, owner: DeviceKey) -> Result<Vec<Stock>, Error> {
    let sql = "/* key_packages::stock */ SELECT k.suite, \
               count(*) FILTER (WHERE NOT k.last_resort AND k.claim_id IS NULL AND k.not_after > now()), \
               bool_or(k.last_resort AND k.retired_at IS NULL AND k.not_after > now()), \
               coalesce(sum(k.last_resort_claims) FILTER (WHERE k.retired_at IS NULL), 0)::bigint \
               FROM key_packages k WHERE k.domain_id = $1 AND k.device_id = $2 GROUP BY k.suite ORDER BY k.suite";
    let rows = client
        .query(
            &client.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device],
        )
        .await?;
    let count = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(rows
        .iter()
        .map(|row| Stock {
            suite: u32::try_from(row.get::<_, i32>(0)).unwrap_or(0),
            one_time: count(row.get(1)),
            last_resort: row.get(2),
            last_resort_claims: count(row.get(3)),
        })
        .collect())
}

/// How many unexpired ones a device keeps here that no claim has used up, retired last resorts among them.
pub async fn count(tx: &Transaction<'_>, owner: DeviceKey) -> Result<u64, Error> {
    let sql = "/* key_packages::count */ SELECT count(*) FROM key_packages WHERE domain_id = $1 AND device_id = $2 AND not_after > now() AND claim_id IS NULL";
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device],
        )
        .await?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
}

/// A KeyPackage row.
#[derive(Debug, Clone)]
pub struct Stored {
    /// RFC 9420 section 5.2.
    pub reference: Vec<u8>,
    /// MLSMessage(KeyPackage).
    pub body: Vec<u8>,
    /// Last resort.
    pub last_resort: bool,
}

/// The last resort of a suite that is given out.
pub async fn last_resort(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suite: i32,
) -> Result<Option<Stored>, Error> {
    let sql = "/* key_packages::last_resort */ SELECT ref, body, last_resort FROM key_packages \
               WHERE domain_id = $1 AND device_id = $2 AND suite = $3 AND last_resort AND retired_at IS NULL AND not_after > now() \
               ORDER BY not_after DESC LIMIT 1";
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &suite],
        )
        .await?;
    Ok(row.map(|row| stored(&row)))
}

/// Counts a claim of a last resort; false if it was replaced meanwhile.
pub async fn count_last_resort_claim(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    reference: &[u8],
) -> Result<bool, Error> {
    let sql = "/* key_packages::count_last_resort_claim */ UPDATE key_packages SET last_resort_claims = last_resort_claims + 1 \
               WHERE domain_id = $1 AND device_id = $2 AND ref = $3 AND retired_at IS NULL";
    let rows = tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &reference],
        )
        .await?;
    Ok(rows == 1)
}

/// The one-time KeyPackages of a suite that are in stock, in the order in which they are given. Not more than
/// `stock_items`.
pub async fn one_time(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suite: i32,
) -> Result<Vec<Stored>, Error> {
    let sql = "/* key_packages::one_time */ SELECT ref, body, last_resort FROM key_packages WHERE domain_id = $1 AND device_id = $2 \
               AND suite = $3 AND claim_id IS NULL AND NOT last_resort AND not_after > now() ORDER BY not_after";
    let rows = tx
        .query(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &suite],
        )
        .await?;
    Ok(rows.iter().map(stored).collect())
}

/// One by its ref.
pub async fn by_ref(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    reference: &[u8],
) -> Result<Option<Stored>, Error> {
    let sql = "/* key_packages::by_ref */ SELECT ref, body, last_resort FROM key_packages WHERE domain_id = $1 AND device_id = $2 AND ref = $3";
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &reference],
        )
        .await?;
    Ok(row.map(|row| stored(&row)))
}

pub(super) fn stored(row: &tokio_postgres::Row) -> Stored {
    Stored {
        reference: row.get("ref"),
        body: row.get("body"),
        last_resort: row.get("last_resort"),
    }
}

/// Marks a locked one-time KeyPackage as gone; not one row when it was not there to give.
pub async fn mark_claimed(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    reference: &[u8],
    claim: Uuid,
) -> Result<u64, Error> {
    let sql = "/* key_packages::mark_claimed */ UPDATE key_packages SET claim_id = $4, claimed_at = now() \
               WHERE domain_id = $1 AND device_id = $2 AND ref = $3 AND claim_id IS NULL";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&owner.domain, &owner.device, &reference, &claim],
    )
    .await
}

/// KeyPackages by their refs, each with its owner and its bytes.
pub async fn by_refs(
    tx: &Transaction<'_>,
    refs: &[Vec<u8>],
) -> Result<Vec<(Vec<u8>, DeviceKey, Vec<u8>)>, Error> {
    if refs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "/* key_packages::by_refs */ SELECT ref, domain_id, device_id, body FROM key_packages WHERE ref = ANY($1)";
    let rows = tx.query(&tx.prepare_cached(sql).await?, &[&refs]).await?;
    Ok(rows
        .iter()
        .map(|row| {
            let key = DeviceKey {
                domain: row.get(1),
                device: row.get(2),
            };
            (row.get(0), key, row.get(3))
        })
        .collect())
}
