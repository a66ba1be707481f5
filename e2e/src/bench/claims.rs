//! KeyPackages of thousands of devices claimed at once, as for a large group.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{ClaimKeyPackagesRequest, ClaimOutcome},
    policy::POLICY_EXTENSION,
    wire::Write as _,
};
use uuid::Uuid;

use super::{
    Options,
    ground::{DOMAIN, Ground},
    load,
    table::{Table, Target},
};

/// Devices in one statement of the baseline, as many as the node takes at once.
const PART: usize = 64;
/// Devices that are claimed for before the measurement.
const FIRST: usize = 4 * PART;
/// Octets of a certificate.
const CERTIFICATE_BYTES: usize = 390;

/// The figure of claims.
///
/// # Errors
/// A claim is not answered with a KeyPackage.
pub async fn measure(
    ground: &Ground,
    options: &Options,
    table: &mut Table<'_>,
) -> anyhow::Result<()> {
    let device = |_| Uuid::new_v4();
    let devices: Vec<Uuid> = (0..options.claimed).map(device).collect();
    let first: Vec<Uuid> = (0..FIRST).map(device).collect();
    stock(ground, &devices).await?;
    stock(ground, &first).await?;
    let bare = marked_by_sql(ground, &devices).await?;
    restock(ground).await?;
    // The baseline has its connection and its statement before it begins; so has the node now.
    claimed(ground, &first).await?;
    let ours = claimed(ground, &devices).await?;
    table.aim(
        &format!(
            "claim of {} KeyPackages, by marking them with SQL",
            options.claimed
        ),
        ours * 1e3,
        "ms",
        bare * 1e3,
        Target::AtMost(1.5),
    );
    Ok(())
}

/// MLSMessage(KeyPackage) as long as a real one; nobody looks at its signatures any more.
fn key_package() -> Vec<u8> {
    let mut leaf = Vec::new();
    leaf.put_vector(&[9; 32]);
    leaf.put_vector(&[8; 32]);
    leaf.put(&2u16.to_be_bytes());
    let mut chain = Vec::new();
    chain.put_vector(&[7; CERTIFICATE_BYTES]);
    leaf.put_vector(&chain);
    leaf.put_vector(&1u16.to_be_bytes());
    leaf.put_vector(&1u16.to_be_bytes());
    leaf.put_vector(&POLICY_EXTENSION.to_be_bytes());
    leaf.put_vector(&[]);
    leaf.put_vector(&2u16.to_be_bytes());
    leaf.put(&[1]);
    leaf.put(&0u64.to_be_bytes());
    leaf.put(&u64::MAX.to_be_bytes());
    leaf.put_vector(&[]);
    leaf.put_vector(&[6; 64]);
    let mut message = vec![0, 1, 0, 5];
    message.put(&1u16.to_be_bytes());
    message.put(&1u16.to_be_bytes());
    message.put_vector(&[5; 32]);
    message.put(&leaf);
    message.put_vector(&[]);
    message.put_vector(&[4; 64]);
    message
}

/// One KeyPackage for each.
async fn stock(ground: &Ground, devices: &[Uuid]) -> anyhow::Result<()> {
    let db = ground.database(1)?;
    let client = db.client().await?;
    let domain = ground.domain();
    let sql = "/* bench::devices */ INSERT INTO devices (domain_id, device_id, user_id) SELECT $1::smallint, d, gen_random_uuid() FROM unnest($2::uuid[]) d";
    client.execute(sql, &[&domain, &devices]).await?;
    let sql = "/* bench::stock */ INSERT INTO key_packages (domain_id, device_id, ref, suite, last_resort, not_after, body) \
               SELECT $1::smallint, d, sha256(uuid_send(d)), 1, false, now() + interval '1 day', $3::bytea FROM unnest($2::uuid[]) d";
    client
        .execute(sql, &[&domain, &devices, &key_package()])
        .await?;
    client.batch_execute("VACUUM ANALYZE").await?;
    Ok(client.batch_execute("CHECKPOINT").await?)
}

async fn restock(ground: &Ground) -> anyhow::Result<()> {
    let db = ground.database(1)?;
    let client = db.client().await?;
    let sql = "UPDATE key_packages SET claim_id = NULL, claimed_at = NULL";
    client.batch_execute(sql).await?;
    for sql in ["VACUUM FULL key_packages", "VACUUM ANALYZE", "CHECKPOINT"] {
        client.batch_execute(sql).await?;
    }
    Ok(())
}

/// Seconds until all rows are marked, in transactions of as many devices as the node takes at once.
async fn marked_by_sql(ground: &Ground, devices: &[Uuid]) -> anyhow::Result<f64> {
    let db = ground.database(1)?;
    let client = db.client().await?;
    let sql = "/* bench::mark */ UPDATE key_packages SET claim_id = $1, claimed_at = now() WHERE device_id = ANY($2) AND domain_id = $3 AND claim_id IS NULL";
    let statement = client.prepare(sql).await?;
    let (claim, domain) = (Uuid::new_v4(), ground.domain());
    let began = Instant::now();
    for part in devices.chunks(PART) {
        let marked = client
            .execute(&statement, &[&claim, &part, &domain])
            .await?;
        ensure!(marked == part.len() as u64, "{marked} marked");
    }
    Ok(began.elapsed().as_secs_f64())
}

/// Seconds until one call has them all.
async fn claimed(ground: &Ground, devices: &[Uuid]) -> anyhow::Result<f64> {
    let request = ClaimKeyPackagesRequest {
        claim_id: Uuid::new_v4().as_bytes().to_vec().into(),
        devices: devices
            .iter()
            .map(|device| DeviceRef {
                domain: DOMAIN.into(),
                id: device.as_bytes().to_vec().into(),
            })
            .collect(),
        suites: vec![1],
        ..ClaimKeyPackagesRequest::default()
    };
    let mut client = ground.client(0).await?;
    let person = ground.people.first().context("nobody")?;
    let began = Instant::now();
    let mut answers = client
        .claim_key_packages(load::by(person, request)?)
        .await?
        .into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await? {
        for claim in answer.claims {
            ensure!(claim.outcome() == ClaimOutcome::KeyPackage, "{claim:?}");
            count += 1;
        }
    }
    ensure!(count == devices.len(), "{count} claimed");
    Ok(began.elapsed().as_secs_f64())
}
