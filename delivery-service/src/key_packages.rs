//! KeyPackages: publish, claim exactly once, last resort, stock.

use std::{collections::BTreeSet, sync::Arc};

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        Claim, ClaimKeyPackagesRequest, ClaimOutcome, PublishKeyPackagesRequest,
        RequiredCapabilities, Stock,
    },
    key_package::KeyPackage,
    signed,
};
use service_kit::db::{DbError, Transaction, TxError};
use uuid::Uuid;

use crate::{
    caller::Caller,
    error::Error,
    group::DeviceKey,
    node::Node,
    prepare::{id16, leaf_is_callers},
    store::{
        self,
        key_packages::{Answer, NewKeyPackage, Stored},
    },
    submit::flatten,
};

/// Checks and stores KeyPackages of the caller: all or nothing.
///
/// # Errors
/// Malformed, `CREDENTIAL_INVALID`, `UNKNOWN_VALUE` for a suite that is not allowed, `LIMIT_EXCEEDED`, `PROOF_INVALID` for a bad replace signature.
pub async fn publish(
    node: &Node,
    caller: &Caller,
    request: &PublishKeyPackagesRequest,
) -> Result<Vec<Stock>, Error> {
    let limits = &node.config.limits;
    node.within(
        "publish_items",
        limits.publish_items,
        request.key_packages.len(),
    )?;
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    drop(client);
    let mut packages = Vec::new();
    let mut key = None;
    for bytes in &request.key_packages {
        let package = check(node, caller, bytes, now)?;
        key = Some(package.1);
        packages.push(package.0);
    }
    check_replace(node, request, key.as_deref(), now)?;
    let replace: Vec<i32> = request
        .replace_suites
        .iter()
        .filter_map(|s| i32::try_from(*s).ok())
        .collect();
    let (packages, who, most) = (
        Arc::new(packages),
        caller.clone(),
        u64::from(limits.stock_items),
    );
    let stock = node
        .db
        .run_tx("publish_key_packages", move |tx| {
            let (packages, who, replace) = (packages.clone(), who.clone(), replace.clone());
            Box::pin(async move { publish_in(tx, &who, &packages, &replace, most).await })
        })
        .await
        .map_err(flatten)?;
    Ok(stock)
}

async fn publish_in(
    tx: &Transaction<'_>,
    caller: &Caller,
    packages: &[NewKeyPackage],
    replace: &[i32],
    most: u64,
) -> Result<Vec<Stock>, TxError<Error>> {
    let device = store::devices::remember(tx, caller.key, caller.user).await?;
    if device.revoked {
        return Err(TxError::Rejected(
            crate::group::Rejection::DeviceRevoked.into(),
        ));
    }
    if !replace.is_empty() {
        store::key_packages::delete_unclaimed(tx, caller.key, replace).await?;
    }
    for package in packages {
        store::key_packages::insert(tx, caller.key, package).await?;
        if package.last_resort {
            store::key_packages::drop_older_last_resorts(
                tx,
                caller.key,
                package.suite,
                &package.reference,
            )
            .await?;
        }
    }
    let got = store::key_packages::count(tx, caller.key).await?;
    if got > most {
        return Err(TxError::Rejected(Error::Limit {
            limit: "stock_items",
            max: most,
            got,
        }));
    }
    let stock = store::key_packages::stock(tx, caller.key).await?;
    Ok(stock.into_iter().map(on_wire).collect())
}

fn on_wire(stock: store::key_packages::Stock) -> Stock {
    Stock {
        suite: stock.suite,
        one_time: stock.one_time,
        last_resort: stock.last_resort,
        last_resort_claims: stock.last_resort_claims,
    }
}

/// Framing, suite, lifetime, signatures, certificate, identity. Returns the device's key with it.
fn check(
    node: &Node,
    caller: &Caller,
    bytes: &[u8],
    now: i64,
) -> Result<(NewKeyPackage, Vec<u8>), Error> {
    let limits = &node.config.limits;
    let field = "key_packages";
    node.within("key_package_bytes", limits.key_package_bytes, bytes.len())?;
    let package =
        KeyPackage::parse(bytes, bytes.len()).map_err(|e| Error::malformed(field, e.0))?;
    let known = node.config.suites.contains(&package.suite);
    let (true, Some(reference)) = (known, package.reference()) else {
        return Err(Error::refused(Reason::UnknownValue, "suite"));
    };
    let invalid = |why: &str| Error::refused(Reason::CredentialInvalid, why);
    if package.verify() != Some(true) {
        return Err(invalid("a signature of the KeyPackage does not verify"));
    }
    let certificate = leaf_is_callers(node, caller, &package.leaf, now)?;
    let (not_before, not_after) = package
        .lifetime()
        .map_err(|e| Error::malformed(field, e.0))?;
    let (not_before, not_after) = (
        i64::try_from(not_before).map_err(|_| invalid("lifetime"))?,
        i64::try_from(not_after).map_err(|_| invalid("lifetime"))?,
    );
    if not_before > now + node.gate.leeway || not_after <= now {
        return Err(invalid("the KeyPackage is not valid now"));
    }
    if not_after - now > i64::from(limits.key_package_lifetime_seconds) {
        return Err(Error::Limit {
            limit: "key_package_lifetime_seconds",
            max: limits.key_package_lifetime_seconds.into(),
            got: u64::try_from(not_after - now).unwrap_or(u64::MAX),
        });
    }
    if not_after > certificate.not_after {
        return Err(invalid("the KeyPackage outlives its certificate"));
    }
    let stored = NewKeyPackage {
        reference,
        suite: package.suite,
        last_resort: package.last_resort,
        not_after,
        body: bytes.to_vec(),
    };
    Ok((stored, package.leaf.signature_key))
}

/// Replacing takes the device key's word: a stolen token must not empty the stock.
fn check_replace(
    node: &Node,
    request: &PublishKeyPackagesRequest,
    key: Option<&[u8]>,
    now: i64,
) -> Result<(), Error> {
    if request.replace_suites.is_empty() {
        return Ok(());
    }
    let suites: Vec<u16> = request
        .replace_suites
        .iter()
        .map(|s| u16::try_from(*s).map_err(|_| Error::malformed("replace_suites", "16 bits")))
        .collect::<Result<_, _>>()?;
    let content = signed::replace(
        &node.config.domain,
        &suites,
        &request.key_packages,
        request.replace_expires_at,
    );
    let holds = request.replace_expires_at >= now
        && key.is_some_and(|key| {
            signed::verify(key, signed::REPLACE, &content, &request.replace_signature)
        });
    if holds {
        Ok(())
    } else {
        Err(Error::refused(
            Reason::ProofInvalid,
            "the replace signature does not hold up; it comes with at least one new KeyPackage",
        ))
    }
}

/// Removes unclaimed KeyPackages of the caller by ref.
///
/// # Errors
/// The database.
pub async fn delete(node: &Node, caller: &Caller, refs: Vec<Vec<u8>>) -> Result<Vec<Stock>, Error> {
    let key = caller.key;
    node.db
        .run_tx("delete_key_packages", move |tx| {
            let refs = refs.clone();
            Box::pin(async move {
                store::key_packages::delete_refs(tx, key, &refs).await?;
                let stock = store::key_packages::stock(tx, key).await?;
                Ok(stock.into_iter().map(on_wire).collect())
            })
        })
        .await
        .map_err(flatten)
}

/// The caller's stock.
///
/// # Errors
/// The database.
pub async fn stock(node: &Node, caller: &Caller) -> Result<Vec<Stock>, Error> {
    let client = node.db.client().await?;
    let stock = store::key_packages::stock(&client, caller.key)
        .await
        .map_err(DbError::from)?;
    Ok(stock.into_iter().map(on_wire).collect())
}

/// A claim ready to be carried out, device by device.
#[derive(Debug, Clone)]
pub struct PreparedClaim {
    /// Made and persisted by the client.
    pub claim_id: Uuid,
    /// Distinct, in the order of the request; `Err` where the domain is unknown here.
    pub devices: Vec<Result<DeviceKey, chancery_proto::common::v1::DeviceRef>>,
    suites: Vec<i32>,
    required: RequiredCapabilities,
    claimant: DeviceKey,
    per_hour: u64,
}

/// Reads a claim.
///
/// # Errors
/// Malformed, `LIMIT_EXCEEDED`.
pub fn prepare_claim(
    node: &Node,
    caller: &Caller,
    request: &ClaimKeyPackagesRequest,
) -> Result<PreparedClaim, Error> {
    let claim_id = id16("claim_id", &request.claim_id)?;
    node.within(
        "claim_devices_items",
        node.config.limits.claim_devices_items,
        request.devices.len(),
    )?;
    let suites: Vec<i32> = request
        .suites
        .iter()
        .filter_map(|s| i32::try_from(*s).ok())
        .collect();
    if suites.is_empty() {
        return Err(Error::malformed("suites", "at least one"));
    }
    let mut seen = BTreeSet::new();
    let mut devices = Vec::new();
    for device in &request.devices {
        Uuid::from_slice(&device.id).map_err(|_| Error::malformed("devices", "id: 16 bytes"))?;
        if seen.insert((device.domain.clone(), device.id.clone())) {
            devices.push(
                node.domains
                    .device("devices", device)
                    .map_err(|_| device.clone()),
            );
        }
    }
    Ok(PreparedClaim {
        claim_id,
        devices,
        suites,
        required: request.required.clone().unwrap_or_default(),
        claimant: caller.key,
        per_hour: node.config.limits.claims_per_target_hour_items.into(),
    })
}

/// Claims for one device: atomic, and the same answer for a repeated `claim_id`.
///
/// # Errors
/// The database.
pub async fn claim_one(
    node: &Node,
    claim: &Arc<PreparedClaim>,
    device: &Result<DeviceKey, chancery_proto::common::v1::DeviceRef>,
) -> Result<Claim, Error> {
    let key = match device {
        Ok(key) => *key,
        Err(foreign) => {
            return Ok(Claim {
                device: Some(foreign.clone()),
                outcome: ClaimOutcome::Unknown.into(),
                ..Claim::default()
            });
        }
    };
    let shared = claim.clone();
    let (outcome, package, user) = node
        .db
        .run_tx("claim_key_package", move |tx| {
            let claim = shared.clone();
            Box::pin(async move { claim_in(tx, &claim, key).await })
        })
        .await
        .map_err(flatten)?;
    let last_resort = package.as_ref().is_some_and(|p| p.last_resort);
    if last_resort {
        node.hub.device_changed(key);
    }
    Ok(Claim {
        device: Some(node.domains.device_ref(key)),
        outcome: outcome.into(),
        last_resort,
        key_package: package.map(|p| p.body).unwrap_or_default().into(),
        user: user.map(|user| node.domains.user_ref(key.domain, user)),
    })
}

type Claimed = (ClaimOutcome, Option<Stored>, Option<Uuid>);

async fn claim_in(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
) -> Result<Claimed, TxError<Error>> {
    let known = store::devices::find(tx, &[key]).await?;
    let Some(device) = known.first() else {
        return Ok((ClaimOutcome::Unknown, None, None));
    };
    if device.revoked {
        return Ok((ClaimOutcome::Revoked, None, Some(device.user)));
    }
    if store::devices::standing(tx, key, device.user)
        .await?
        .suspended
    {
        // Not remembered under the claim's id: it may be reinstated.
        return Ok((ClaimOutcome::Exhausted, None, Some(device.user)));
    }
    if !store::key_packages::begin_claim(tx, key, claim.claim_id, claim.claimant).await? {
        return repeat(tx, claim, key, device.user).await;
    }
    let (outcome, package) = take(tx, claim, key).await?;
    let answer = Answer {
        outcome: i16::try_from(outcome as i32).unwrap_or(0),
        reference: package.as_ref().map(|p| p.reference.clone()),
        last_resort: package.as_ref().is_some_and(|p| p.last_resort),
    };
    store::key_packages::finish_claim(tx, key, claim.claim_id, &answer).await?;
    Ok((outcome, package, Some(device.user)))
}

async fn repeat(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
    user: Uuid,
) -> Result<Claimed, TxError<Error>> {
    let corrupt = || TxError::Rejected(Error::Corrupt("a claim without its answer"));
    let answer = store::key_packages::answer(tx, key, claim.claim_id)
        .await?
        .ok_or_else(corrupt)?;
    let outcome = ClaimOutcome::try_from(i32::from(answer.outcome)).map_err(|_| corrupt())?;
    let package = match &answer.reference {
        None => None,
        Some(reference) => store::key_packages::by_ref(tx, key, reference).await?,
    };
    Ok((outcome, package, Some(user)))
}

/// The first suite in stock; the last resort only when no one-time KeyPackage is left, also behind a lock.
async fn take(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
) -> Result<(ClaimOutcome, Option<Stored>), TxError<Error>> {
    // Whoever takes too many of one device's gets its last resort instead: nobody can drain a stock alone.
    let taken = store::key_packages::taken_lately(tx, key, claim.claimant).await?;
    let passes: &[bool] = if taken < claim.per_hour {
        &[true, false]
    } else {
        &[]
    };
    for &skip_locked in passes {
        for suite in &claim.suites {
            let next = store::key_packages::lock_next(tx, key, *suite, skip_locked).await?;
            let Some(package) = next else { continue };
            if !can(&package, &claim.required) {
                return Ok((ClaimOutcome::Unsupported, None));
            }
            let marked =
                store::key_packages::mark_claimed(tx, key, &package.reference, claim.claim_id)
                    .await?;
            if marked != 1 {
                return Err(TxError::Rejected(Error::Corrupt(
                    "a locked KeyPackage was claimed by another",
                )));
            }
            return Ok((ClaimOutcome::KeyPackage, Some(package)));
        }
    }
    for suite in &claim.suites {
        if let Some(package) = store::key_packages::last_resort(tx, key, *suite).await? {
            return Ok(if can(&package, &claim.required) {
                (ClaimOutcome::KeyPackage, Some(package))
            } else {
                (ClaimOutcome::Unsupported, None)
            });
        }
    }
    Ok((ClaimOutcome::Exhausted, None))
}

fn can(package: &Stored, required: &RequiredCapabilities) -> bool {
    let Ok(parsed) = KeyPackage::parse(&package.body, package.body.len()) else {
        return false;
    };
    let has = |have: &[u16], want: &[u32]| {
        want.iter()
            .all(|want| have.iter().any(|have| u32::from(*have) == *want))
    };
    let can = &parsed.leaf.capabilities;
    has(&can.extensions, &required.extensions)
        && has(&can.proposals, &required.proposals)
        && has(&can.credentials, &required.credentials)
}
