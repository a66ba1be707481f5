//! What claims were answered. A claim for many devices is two statements, one in a round trip with BEGIN, one with COMMIT.

use std::collections::BTreeSet;

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Statement};
use uuid::Uuid;

use crate::{
    ordering::group::DeviceKey,
    store::{
        columns, device_key,
        key_packages::{Stored, stored},
        signed, unsigned,
    },
};

/// An answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// `ClaimOutcome`.
    pub outcome: i16,
    /// The KeyPackage's ref.
    pub reference: Option<Vec<u8>>,
    /// It was the last resort.
    pub last_resort: bool,
}

/// Takes the place of this claim for this device; false if it was answered before (waits for an equal claim that is under way).
pub async fn begin(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    claim: Uuid,
    claimant: DeviceKey,
) -> Result<bool, Error> {
    let sql = "/* claims::begin */ INSERT INTO key_package_claims (domain_id, device_id, claim_id, claimant_domain, \
               claimant_device, outcome, claimed_at) VALUES ($1, $2, $3, $4, $5, 0, now()) ON CONFLICT DO NOTHING";
    let rows = tx
        .execute(
            &tx.prepare_cached(sql).await?,
            &[
                &owner.domain,
                &owner.device,
                &claim,
                &claimant.domain,
                &claimant.device,
            ],
        )
        .await?;
    Ok(rows == 1)
}

/// How many one-time KeyPackages of one device another took in the last hour. (`IS TRUE` keeps the planner from walking through everybody's by their age.)
macro_rules! count_taken_lately {
    ($owner_domain:literal, $owner_device:literal, $claimant_domain:literal, $claimant_device:literal) => {
        concat!(
            "(SELECT count(*) FROM key_package_claims WHERE domain_id = ", $owner_domain, " AND device_id = ", $owner_device,
            " AND claimant_domain = ", $claimant_domain, " AND claimant_device = ", $claimant_device,
            " AND ref IS NOT NULL AND NOT last_resort AND (claimed_at > now() - interval '1 hour') IS TRUE)"
        )
    };
}

/// How many one-time KeyPackages of `owner` `claimant` took in the last hour.
pub async fn taken_lately(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    claimant: DeviceKey,
) -> Result<u64, Error> {
    let sql = concat!(
        "/* claims::taken_lately */ SELECT ",
        count_taken_lately!("$1", "$2", "$3", "$4")
    );
    let row = tx
        .query_one(
            &tx.prepare_cached(sql).await?,
            &[
                &owner.domain,
                &owner.device,
                &claimant.domain,
                &claimant.device,
            ],
        )
        .await?;
    Ok(unsigned(row.get(0)))
}

/// The first answer to this claim.
pub async fn answer(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    claim: Uuid,
) -> Result<Option<Answer>, Error> {
    let sql = "/* claims::answer */ SELECT outcome, ref, last_resort FROM key_package_claims WHERE domain_id = $1 AND device_id = $2 AND claim_id = $3";
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &claim],
        )
        .await?;
    Ok(row.map(|row| Answer {
        outcome: row.get(0),
        reference: row.get(1),
        last_resort: row.get(2),
    }))
}

/// Notes the answer.
pub async fn finish(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    claim: Uuid,
    answer: &Answer,
) -> Result<u64, Error> {
    let sql = "/* claims::finish */ UPDATE key_package_claims SET outcome = $4, ref = $5, last_resort = $6 \
               WHERE domain_id = $1 AND device_id = $2 AND claim_id = $3";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[
            &owner.domain,
            &owner.device,
            &claim,
            &answer.outcome,
            &answer.reference,
            &answer.last_resort,
        ],
    )
    .await
}

/// Where the one-time KeyPackage of a device and of the suite `$3` is that is to be given next, among those that
/// `$which` says.
macro_rules! next_one_time {
    ($owner_domain:literal, $owner_device:literal, $which:literal) => {
        concat!(
            " FROM key_packages WHERE domain_id = ",
            $owner_domain,
            " AND device_id = ",
            $owner_device,
            " AND suite = $3 AND claim_id IS NULL AND NOT last_resort AND not_after > now()",
            $which,
            " ORDER BY not_after LIMIT 1 FOR UPDATE"
        )
    };
}

macro_rules! lock_next {
    ($which:literal, $locked:literal) => {
        concat!(
            "/* claims::lock_next */ SELECT ref, body, last_resort",
            next_one_time!("$1", "$2", $which),
            $locked
        )
    };
}

/// Locks the next one-time KeyPackage of a suite. With `skip_locked`, rows that others are claiming are passed over.
pub async fn lock_next(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suite: i32,
    skip_locked: bool,
) -> Result<Option<Stored>, Error> {
    let sql = match skip_locked {
        true => lock_next!("", " SKIP LOCKED"),
        false => lock_next!("", ""),
    };
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &suite],
        )
        .await?;
    Ok(row.map(|row| stored(&row)))
}

/// [`lock_next`] among the KeyPackages with these refs.
pub async fn lock_next_among(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    suite: i32,
    refs: &[&[u8]],
    skip_locked: bool,
) -> Result<Option<Stored>, Error> {
    let sql = match skip_locked {
        true => lock_next!(" AND ref = ANY($4)", " SKIP LOCKED"),
        false => lock_next!(" AND ref = ANY($4)", ""),
    };
    let row = tx
        .query_opt(
            &tx.prepare_cached(sql).await?,
            &[&owner.domain, &owner.device, &suite, &refs],
        )
        .await?;
    Ok(row.map(|row| stored(&row)))
}

/// Who claims.
#[derive(Debug, Clone, Copy)]
pub struct Claimant {
    /// The device.
    pub key: DeviceKey,
    /// One-time KeyPackages that it may take from one device in an hour.
    pub per_hour: u64,
}

/// A locked one-time KeyPackage and whose it is.
#[derive(Debug)]
pub struct Locked {
    /// Its device.
    pub owner: DeviceKey,
    /// The device's user.
    pub user: Uuid,
    /// The KeyPackage.
    pub package: Stored,
}

/// Locks the next one-time KeyPackage of each device: prepared, so that it travels with BEGIN.
#[derive(Debug)]
pub struct LockNextOf(Statement);

impl LockNextOf {
    /// Gets the statement ready.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = concat!(
            "/* claims::lock_next_of */ SELECT q.domain_id, q.device_id, v.user_id, k.ref, k.body, k.last_resort \
             FROM unnest($1::smallint[], $2::uuid[]) AS q(domain_id, device_id) CROSS JOIN LATERAL \
             (SELECT user_id FROM devices WHERE domain_id = q.domain_id AND device_id = q.device_id AND NOT revoked AND ",
            count_taken_lately!("q.domain_id", "q.device_id", "$4", "$5"),
            " < $6 OFFSET 0) v CROSS JOIN LATERAL (SELECT ref, body, last_resort",
            next_one_time!("q.domain_id", "q.device_id", ""),
            " SKIP LOCKED) k WHERE (EXISTS (SELECT 1 FROM suspended s WHERE s.domain_id = q.domain_id AND s.subject_id IN (q.device_id, v.user_id))) IS FALSE"
        );
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// Not named: who is unknown, revoked or cut off, whose next ones others are claiming, who has none, and of whom `claimant` took enough.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        owners: &[DeviceKey],
        suite: i32,
        claimant: Claimant,
    ) -> Result<Vec<Locked>, Error> {
        let (domains, ids) = columns(owners);
        let Claimant { key, per_hour } = claimant;
        let rows = client
            .query(
                &self.0,
                &[
                    &domains,
                    &ids,
                    &suite,
                    &key.domain,
                    &key.device,
                    &signed(per_hour),
                ],
            )
            .await?;
        let locked = rows.iter().map(|row| Locked {
            owner: device_key(row),
            user: row.get(2),
            package: stored(row),
        });
        Ok(locked.collect())
    }
}

/// Answers a claim with locked KeyPackages and marks them as gone: prepared, so that it travels with COMMIT.
#[derive(Debug)]
pub struct GiveMany(Statement);

impl GiveMany {
    /// Gets the statement ready. It fails, and the transaction with it, if one of the KeyPackages was not there to give.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = "/* claims::give_many */ WITH begun AS (INSERT INTO key_package_claims (domain_id, device_id, claim_id, claimant_domain, \
                   claimant_device, outcome, ref, claimed_at) SELECT g.domain_id, g.device_id, $4, $5, $6, $7, g.ref, now() \
                   FROM unnest($1::smallint[], $2::uuid[], $3::bytea[]) AS g(domain_id, device_id, ref) ON CONFLICT DO NOTHING \
                   RETURNING domain_id, device_id, ref), \
                   marked AS (UPDATE key_packages k SET claim_id = $4, claimed_at = now() FROM begun b \
                   WHERE k.domain_id = b.domain_id AND k.device_id = b.device_id AND k.ref = b.ref AND k.claim_id IS NULL RETURNING 1) \
                   SELECT domain_id, device_id, assume((SELECT count(*) FROM marked) = (SELECT count(*) FROM begun)) FROM begun";
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// Whose claim this was. Who was answered before is not named, and its KeyPackage stays.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        given: &[Locked],
        claim: Uuid,
        claimant: DeviceKey,
        outcome: i16,
    ) -> Result<BTreeSet<DeviceKey>, Error> {
        let owners: Vec<DeviceKey> = given.iter().map(|given| given.owner).collect();
        let refs: Vec<&[u8]> = given.iter().map(|g| &*g.package.reference).collect();
        let (domains, ids) = columns(&owners);
        let rows = client
            .query(
                &self.0,
                &[
                    &domains,
                    &ids,
                    &refs,
                    &claim,
                    &claimant.domain,
                    &claimant.device,
                    &outcome,
                ],
            )
            .await?;
        Ok(rows.iter().map(device_key).collect())
    }
}
