//! What the service knows of a device: its user, and whether it was revoked.

use std::sync::Arc;

use service_kit::db::{GenericClient, Transaction};
use tokio_postgres::{Error, Row, Statement};
use uuid::Uuid;

use crate::{
    ordering::{facts::KnownDevice, group::DeviceKey},
    store::{columns, device_key, place_of},
};

/// Notes a device on its first changing request; returns what is known of it (the user of the first time, never of a later one).
pub async fn remember(
    tx: &Transaction<'_>,
    key: DeviceKey,
    user: Uuid,
) -> Result<KnownDevice, Error> {
    let sql = "/* devices::remember */ INSERT INTO devices (domain_id, device_id, user_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
    tx.execute(
        &tx.prepare_cached(sql).await?,
        &[&key.domain, &key.device, &user],
    )
    .await?;
    let known = find(tx, &[key]).await?;
    Ok(known.first().copied().unwrap_or(KnownDevice {
        key,
        user,
        revoked: false,
    }))
}

/// What is known of these devices.
pub async fn find<C: GenericClient>(
    client: &C,
    devices: &[DeviceKey],
) -> Result<Vec<KnownDevice>, Error> {
    let sql = "/* devices::find */ SELECT v.* FROM unnest($1::smallint[], $2::uuid[]) AS q(domain_id, device_id) CROSS JOIN LATERAL \
               (SELECT domain_id, device_id, user_id, revoked FROM devices WHERE domain_id = q.domain_id AND device_id = q.device_id OFFSET 0) v";
    select(client, sql, devices).await
}

/// The same for devices that a Commit adds, locked against a revocation at the same time, in id order.
pub async fn lock_added(
    tx: &Transaction<'_>,
    devices: &[DeviceKey],
) -> Result<Vec<KnownDevice>, Error> {
    let sql = "/* devices::lock_added */ SELECT v.* FROM unnest($1::smallint[], $2::uuid[]) AS q(domain_id, device_id) CROSS JOIN LATERAL \
               (SELECT domain_id, device_id, user_id, revoked FROM devices WHERE domain_id = q.domain_id AND device_id = q.device_id FOR KEY SHARE) v";
    let mut devices = devices.to_vec();
    devices.sort_unstable();
    select(tx, sql, &devices).await
}

async fn select<C: GenericClient>(
    client: &C,
    sql: &str,
    devices: &[DeviceKey],
) -> Result<Vec<KnownDevice>, Error> {
    let (domains, ids) = columns(devices);
    let rows = client
        .query(&client.prepare_cached(sql).await?, &[&domains, &ids])
        .await?;
    Ok(rows
        .iter()
        .map(|row| KnownDevice {
            key: device_key(row),
            user: row.get(2),
            revoked: row.get(3),
        })
        .collect())
}

/// How a caller stands.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Its user, where the device is known.
    pub user: Option<Uuid>,
    /// Never undone.
    pub revoked: bool,
    /// Its user is suspended, or its certificate expired.
    pub suspended: bool,
}

impl Standing {
    /// Of a device that never called, and of which nothing was said.
    const UNKNOWN: Self = Self {
        user: None,
        revoked: false,
        suspended: false,
    };
}

/// A device that was revoked before it ever called has no user.
fn known_user(user: Option<Uuid>) -> Option<Uuid> {
    user.filter(|user| !user.is_nil())
}

/// How a device with this user stands.
pub async fn standing<C: GenericClient>(
    client: &C,
    key: DeviceKey,
    user: Uuid,
) -> Result<Standing, Error> {
    let found = Standings::prepare(client).await?;
    let (found, _) = found.run(client, &[(key, user)]).await?;
    // There is a row for each device that is asked for, known or not.
    Ok(found
        .first()
        .map_or(Standing::UNKNOWN, |(_, standing)| *standing))
}

/// How far every status feed was applied, in one text.
macro_rules! feeds_applied {
    () => {
        "(SELECT coalesce(string_agg(concat_ws(':', domain_id, encode(history_id, 'hex'), seq, applied), ' ' ORDER BY domain_id), '') FROM auth_services)"
    };
}

/// [`standing`] of several devices: prepared, so that it can follow a lock in the same round trip.
#[derive(Debug)]
pub struct Standings(Statement);

impl Standings {
    /// Gets the statement ready.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = concat!(
            "/* devices::standings */ SELECT q.n, v.user_id, coalesce(v.revoked, false), \
             EXISTS (SELECT 1 FROM suspended s WHERE s.domain_id = q.domain_id AND s.subject_id IN (q.device_id, q.user_id)), ",
            feeds_applied!(),
            " FROM unnest($1::smallint[], $2::uuid[], $3::uuid[]) WITH ORDINALITY AS q(domain_id, device_id, user_id, n) \
             LEFT JOIN LATERAL (SELECT * FROM devices v WHERE v.device_id = q.device_id AND v.domain_id = q.domain_id OFFSET 0) v ON true"
        );
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// For each device and its user how it stands, and how far the status feeds were applied then; what is not named is not known.
    pub async fn run<C: GenericClient>(
        &self,
        client: &C,
        devices: &[(DeviceKey, Uuid)],
    ) -> Result<(Vec<(usize, Standing)>, Arc<str>), Error> {
        let (keys, users): (Vec<DeviceKey>, Vec<Uuid>) = devices.iter().copied().unzip();
        let (domains, ids) = columns(&keys);
        let rows = client.query(&self.0, &[&domains, &ids, &users]).await?;
        let standing = |row: &Row| Standing {
            user: known_user(row.get(1)),
            revoked: row.get(2),
            suspended: row.get(3),
        };
        let feeds = rows.first().map_or("", |row| row.get(4)).into();
        let standings = rows.iter().map(|row| (place_of(row), standing(row)));
        Ok((standings.collect(), feeds))
    }
}

/// Makes sure that nothing was said of any device since: prepared, so that it can follow a lock in the same round trip.
#[derive(Debug)]
pub struct NothingSaid(Statement);

impl NothingSaid {
    /// Gets the statement ready. It fails, and the transaction with it, unless the status feeds were applied just so far.
    pub async fn prepare<C: GenericClient>(client: &C) -> Result<Self, Error> {
        let sql = concat!(
            "/* devices::nothing_said */ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, assume(",
            feeds_applied!(),
            " = $1::text)"
        );
        Ok(Self(client.prepare_cached(sql).await?))
    }

    /// The database's time in Unix microseconds. `feeds` is what [`Standings::run`] said.
    pub async fn run<C: GenericClient>(&self, client: &C, feeds: &str) -> Result<i64, Error> {
        Ok(client.query_one(&self.0, &[&feeds]).await?.get(0))
    }
}

/// What an Authentication Service last said of itself: an encoded `auth.v1.GetServiceInfoResponse`.
pub async fn auth_service<C: GenericClient>(
    client: &C,
    domain: i16,
) -> Result<Option<Vec<u8>>, Error> {
    let sql =
        "/* devices::auth_service */ SELECT service_info FROM auth_services WHERE domain_id = $1";
    let row = client
        .query_opt(&client.prepare_cached(sql).await?, &[&domain])
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// How far the status feeds were applied, as [`Standings::run`] says it: what they say is recorded in the transaction that moves this on.
pub async fn feeds<C: GenericClient>(client: &C) -> Result<Arc<str>, Error> {
    let sql = concat!("/* devices::feeds */ SELECT ", feeds_applied!());
    let row = client
        .query_one(&client.prepare_cached(sql).await?, &[])
        .await?;
    Ok(row.get::<_, &str>(0).into())
}

/// Remembers what an Authentication Service says of itself.
pub async fn remember_auth_service<C: GenericClient>(
    client: &C,
    domain: i16,
    service_info: &[u8],
) -> Result<(), Error> {
    let sql = "/* devices::remember_auth_service */ INSERT INTO auth_services (domain_id, service_info) VALUES ($1, $2) \
               ON CONFLICT (domain_id) DO UPDATE SET service_info = EXCLUDED.service_info";
    client
        .execute(
            &client.prepare_cached(sql).await?,
            &[&domain, &service_info],
        )
        .await?;
    Ok(())
}

/// Gives a domain name its number; the same name always gets the same.
pub async fn domain_id(tx: &Transaction<'_>, name: &str) -> Result<i16, Error> {
    let sql = "/* devices::domain_id */ LOCK TABLE domains IN SHARE ROW EXCLUSIVE MODE";
    tx.execute(&tx.prepare_cached(sql).await?, &[]).await?;
    let sql = "/* devices::domain_id */ INSERT INTO domains (domain_id, name) \
               SELECT coalesce(max(domain_id), 0) + 1, $1 FROM domains HAVING NOT EXISTS (SELECT 1 FROM domains WHERE name = $1)";
    tx.execute(&tx.prepare_cached(sql).await?, &[&name]).await?;
    let sql = "/* devices::domain_id */ SELECT domain_id FROM domains WHERE name = $1";
    Ok(tx
        .query_one(&tx.prepare_cached(sql).await?, &[&name])
        .await?
        .get(0))
}
