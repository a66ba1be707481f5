//! Claims: each one-time KeyPackage leaves exactly once, and a repeated claim gets the same ones.
//!
//! Devices are claimed for in parts. Whoever has a KeyPackage that nobody else is taking gets it in one transaction with the others of its part; for the
//! rest (a repeat, an empty stock, a stock that others hold) each device has a transaction of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chancery_proto::{
    common::v1::DeviceRef,
    delivery::v1::{Claim, ClaimKeyPackagesRequest, ClaimOutcome, RequiredCapabilities},
    key_package::KeyPackage,
};
use futures_util::future::try_join;
use service_kit::db::{Pipeline, Transaction, TxError};
use uuid::Uuid;

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::group::DeviceKey,
    request::id16,
    store::{
        self,
        claims::{Answer, Claimant, GiveMany, LockNextOf},
        key_packages::Stored,
    },
};

/// A claim ready to be carried out, device by device.
#[derive(Debug, Clone)]
pub struct PreparedClaim {
    /// Made and persisted by the client.
    pub claim_id: Uuid,
    /// Distinct, in the order of the request; `Err` where the domain is unknown here.
    pub devices: Vec<Result<DeviceKey, DeviceRef>>,
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

/// Claims for some of its devices, in their order. What fails, fails for all of these, and a repeat of the `claim_id` gets what was claimed.
///
/// # Errors
/// The database.
pub async fn claim(
    node: &Node,
    claim: &Arc<PreparedClaim>,
    devices: &[Result<DeviceKey, DeviceRef>],
) -> Result<Vec<Claim>, Error> {
    let known: Arc<[DeviceKey]> = devices.iter().flatten().copied().collect();
    let shared = claim.clone();
    let mut at_once = node
        .db
        .run_pipeline("claim_key_packages", move |tx| {
            let (claim, devices) = (shared.clone(), known.clone());
            Box::pin(async move { claim_at_once(tx, &claim, &devices).await })
        })
        .await?;
    let mut claims = Vec::with_capacity(devices.len());
    for device in devices {
        claims.push(match device {
            Err(foreign) => Claim {
                device: Some(foreign.clone()),
                outcome: ClaimOutcome::Unknown.into(),
                ..Claim::default()
            },
            Ok(key) => {
                let claimed = match at_once.remove(key) {
                    Some(claimed) => claimed,
                    None => claim_alone(node, claim, *key).await?,
                };
                on_wire(node, *key, claimed)
            }
        });
    }
    Ok(claims)
}

fn on_wire(node: &Node, key: DeviceKey, (outcome, package, user): Claimed) -> Claim {
    let last_resort = package.as_ref().is_some_and(|p| p.last_resort);
    if last_resort {
        node.hub.device_changed(key);
    }
    Claim {
        device: Some(node.domains.device_ref(key)),
        outcome: outcome.into(),
        last_resort,
        key_package: package.map(|p| p.body).unwrap_or_default().into(),
        user: user.map(|user| node.domains.user_ref(key.domain, user)),
    }
}

async fn claim_alone(
    node: &Node,
    claim: &Arc<PreparedClaim>,
    key: DeviceKey,
) -> Result<Claimed, Error> {
    let shared = claim.clone();
    node.db
        .run_tx("claim_key_package", move |tx| {
            let claim = shared.clone();
            Box::pin(async move { claim_in(tx, &claim, key).await })
        })
        .await
        .map_err(Error::from)
}

/// Claims for the devices that have a KeyPackage of the first suite which nobody else is taking; the others are not in the answer, and nothing happened
/// for them.
async fn claim_at_once(
    tx: &Pipeline,
    claim: &PreparedClaim,
    devices: &[DeviceKey],
) -> Result<BTreeMap<DeviceKey, Claimed>, TxError<Error>> {
    let Some(suite) = claim.suites.first() else {
        return Ok(BTreeMap::new());
    };
    let client = tx.client();
    let (lock, give) = try_join(LockNextOf::prepare(client), GiveMany::prepare(client)).await?;
    let claimant = Claimant {
        key: claim.claimant,
        per_hour: claim.per_hour,
    };
    let locked = lock.run(client, devices, *suite, claimant);
    let ((), mut locked) = try_join(tx.begin(None), locked).await?;
    locked.retain(|locked| can(&locked.package, &claim.required));
    let outcome = i16::try_from(ClaimOutcome::KeyPackage as i32).unwrap_or(0);
    let given = give.run(client, &locked, claim.claim_id, claim.claimant, outcome);
    let (begun, ()) = try_join(given, tx.commit()).await?;
    Ok(locked
        .into_iter()
        .filter(|locked| begun.contains(&locked.owner))
        .map(|locked| {
            let claimed = (
                ClaimOutcome::KeyPackage,
                Some(locked.package),
                Some(locked.user),
            );
            (locked.owner, claimed)
        })
        .collect())
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
        return Ok((ClaimOutcome::Suspended, None, Some(device.user)));
    }
    if !store::claims::begin(tx, key, claim.claim_id, claim.claimant).await? {
        return repeat(tx, claim, key, device.user).await;
    }
    let (outcome, package) = take(tx, claim, key).await?;
    let answer = Answer {
        outcome: i16::try_from(outcome as i32).unwrap_or(0),
        reference: package.as_ref().map(|p| p.reference.clone()),
        last_resort: package.as_ref().is_some_and(|p| p.last_resort),
    };
    store::claims::finish(tx, key, claim.claim_id, &answer).await?;
    Ok((outcome, package, Some(device.user)))
}

async fn repeat(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
    user: Uuid,
) -> Result<Claimed, TxError<Error>> {
    let corrupt = || TxError::Rejected(Error::Corrupt("a claim without its answer"));
    let answer = store::claims::answer(tx, key, claim.claim_id)
        .await?
        .ok_or_else(corrupt)?;
    let outcome = ClaimOutcome::try_from(i32::from(answer.outcome)).map_err(|_| corrupt())?;
    let package = match &answer.reference {
        None => None,
        Some(reference) => store::key_packages::by_ref(tx, key, reference).await?,
    };
    if outcome == ClaimOutcome::KeyPackage && package.is_none() {
        // Its life has ended since.
        return Ok((ClaimOutcome::Exhausted, None, Some(user)));
    }
    Ok((outcome, package, Some(user)))
}

/// Marks a KeyPackage that this transaction has locked.
async fn mark(
    tx: &Transaction<'_>,
    owner: DeviceKey,
    reference: &[u8],
    claim: Uuid,
) -> Result<(), TxError<Error>> {
    if store::key_packages::mark_claimed(tx, owner, reference, claim).await? != 1 {
        return Err(TxError::Rejected(Error::Corrupt(
            "a locked KeyPackage was claimed by another",
        )));
    }
    Ok(())
}

/// What the stock of one suite has for a claim.
enum Found {
    /// Locked, and what is asked for.
    Package(Stored),
    /// There are KeyPackages, and none of them can do what is asked for.
    Unsupported,
    /// There is none.
    Nothing,
}

/// The first suite in stock; the last resort only when no one-time KeyPackage is left, also behind a lock.
async fn take(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
) -> Result<(ClaimOutcome, Option<Stored>), TxError<Error>> {
    let taken = store::claims::taken_lately(tx, key, claim.claimant).await?;
    // Whoever took too many gets the last resort: nobody can drain a stock alone.
    let passes: &[bool] = if taken < claim.per_hour {
        &[true, false]
    } else {
        &[]
    };
    let mut without = ClaimOutcome::Exhausted;
    for &skip_locked in passes {
        for suite in &claim.suites {
            match one_time(tx, claim, key, *suite, skip_locked).await? {
                Found::Package(package) => {
                    mark(tx, key, &package.reference, claim.claim_id).await?;
                    return Ok((ClaimOutcome::KeyPackage, Some(package)));
                }
                Found::Unsupported => without = ClaimOutcome::Unsupported,
                Found::Nothing => {}
            }
        }
    }
    for suite in &claim.suites {
        match last_resort(tx, claim, key, *suite).await? {
            Found::Package(package) => return Ok((ClaimOutcome::KeyPackage, Some(package))),
            Found::Unsupported => without = ClaimOutcome::Unsupported,
            Found::Nothing => {}
        }
    }
    Ok((without, None))
}

/// Locks the next one-time KeyPackage that can do what is asked for, whatever stands in front of it.
async fn one_time(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
    suite: i32,
    skip_locked: bool,
) -> Result<Found, TxError<Error>> {
    let Some(next) = store::claims::lock_next(tx, key, suite, skip_locked).await? else {
        return Ok(Found::Nothing);
    };
    if can(&next, &claim.required) {
        return Ok(Found::Package(next));
    }
    let stock = store::key_packages::one_time(tx, key, suite).await?;
    let fitting = stock.iter().filter(|package| can(package, &claim.required));
    let refs: Vec<&[u8]> = fitting.map(|package| &*package.reference).collect();
    if refs.is_empty() {
        return Ok(Found::Unsupported);
    }
    let next = store::claims::lock_next_among(tx, key, suite, &refs, skip_locked).await?;
    Ok(next.map_or(Found::Nothing, Found::Package))
}

/// The last resort, with this claim counted.
async fn last_resort(
    tx: &Transaction<'_>,
    claim: &PreparedClaim,
    key: DeviceKey,
    suite: i32,
) -> Result<Found, TxError<Error>> {
    while let Some(package) = store::key_packages::last_resort(tx, key, suite).await? {
        if !can(&package, &claim.required) {
            return Ok(Found::Unsupported);
        }
        // Whoever replaces it at this moment waits for this claim, or was first: then there is another one.
        if store::key_packages::count_last_resort_claim(tx, key, &package.reference).await? {
            return Ok(Found::Package(package));
        }
    }
    Ok(Found::Nothing)
}

/// Whether a KeyPackage keeps the rules, which may be stricter than when it was taken, and its leaf can do what is
/// asked for.
fn can(package: &Stored, required: &RequiredCapabilities) -> bool {
    let Ok(parsed) = KeyPackage::parse(&package.body, package.body.len()) else {
        return false;
    };
    let has = |have: &[u16], want: &[u32]| {
        want.iter()
            .all(|want| have.iter().any(|have| u32::from(*have) == *want))
    };
    let can = &parsed.leaf.capabilities;
    parsed.check().is_ok()
        && has(&can.extensions, &required.extensions)
        && has(&can.proposals, &required.proposals)
        && has(&can.credentials, &required.credentials)
}
