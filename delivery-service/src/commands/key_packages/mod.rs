//! KeyPackages: publish, claim exactly once, last resort, stock.

mod claim;

use std::sync::Arc;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{PublishKeyPackagesRequest, Stock},
    key_package::KeyPackage,
    signed,
};
use service_kit::db::{DbError, Transaction, TxError};

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    request::leaf_is_callers,
    store::{self, key_packages::NewKeyPackage},
};

pub use claim::{PreparedClaim, claim, prepare_claim};

/// Checks and stores KeyPackages of the caller: all or nothing.
///
/// # Errors
/// Malformed, `CREDENTIAL_INVALID` with the broken rule's name, `UNKNOWN_VALUE` for a suite that is not allowed,
/// `LIMIT_EXCEEDED`, `PROOF_INVALID` for a bad replace signature.
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
    let checked = request.key_packages.iter();
    let checked = checked.map(|bytes| check(node, caller, bytes, now));
    let (packages, keys): (Vec<NewKeyPackage>, Vec<Vec<u8>>) =
        checked.collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
    let replace = check_replace(node, request, &packages, &keys, now)?;
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
        .await?;
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
            crate::ordering::group::Rejection::DeviceRevoked.into(),
        ));
    }
    if !replace.is_empty() {
        // A repeat of this request finds its own ones: they stay as they are.
        let own: Vec<&[u8]> = packages.iter().map(|p| &*p.reference).collect();
        store::key_packages::replace_suites(tx, caller.key, replace, &own).await?;
    }
    for package in packages {
        let stored = store::key_packages::insert(tx, caller.key, package).await?;
        // A last resort that is here already may have been replaced since, and then replaces nothing.
        if package.last_resort && stored == 1 {
            let (suite, keep) = (package.suite, &package.reference);
            store::key_packages::replace_last_resorts(tx, caller.key, suite, keep).await?;
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

/// Framing, suite, signatures, the rules of RFC 9420, certificate, identity, lifetime. Returns the leaf's key with it.
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
    package.check()?;
    if node.config.refuse_grease_extensions {
        package.check_grease()?;
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

/// The suites whose stock is replaced. Replacing takes the word of a key of the device: a stolen token must not empty
/// the stock. And it leaves no suite without: each one comes with at least one KeyPackage of it.
fn check_replace(
    node: &Node,
    request: &PublishKeyPackagesRequest,
    packages: &[NewKeyPackage],
    keys: &[Vec<u8>],
    now: i64,
) -> Result<Vec<i32>, Error> {
    if request.replace_suites.is_empty() {
        return Ok(Vec::new());
    }
    let field = "replace_suites";
    let suites: Vec<u16> = request
        .replace_suites
        .iter()
        .map(|s| u16::try_from(*s).map_err(|_| Error::malformed(field, "16 bits")))
        .collect::<Result<_, _>>()?;
    let comes = |suite: &u16| packages.iter().any(|package| package.suite == *suite);
    if !suites.iter().all(comes) {
        return Err(Error::malformed(
            field,
            "a suite of which no KeyPackage comes with it",
        ));
    }
    let content = signed::replace(
        &node.config.domain,
        &suites,
        &request.key_packages,
        request.replace_expires_at,
    );
    let signature = &request.replace_signature;
    let holds = request.replace_expires_at >= now
        && keys
            .iter()
            .any(|key| signed::verify(key, signed::REPLACE, &content, signature));
    if holds {
        Ok(suites.into_iter().map(i32::from).collect())
    } else {
        Err(Error::refused(
            Reason::ProofInvalid,
            "the replace signature does not hold up",
        ))
    }
}

/// Takes unclaimed KeyPackages of the caller out of stock by ref.
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
        .map_err(Error::from)
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
