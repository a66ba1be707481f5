//! Access that ends for a person, or with a certificate: suspended and back, deleted, expired. Each ends in the status feed, in the transaction that ends it.

use std::time::Duration;

use chancery_proto::{
    auth::v1::{StatusChange, device_status::Subject},
    common::v1::{DeviceRef, Reason, UserRef},
};
use service_kit::{db::Transaction, items::Items, lifecycle::Shutdown};
use uuid::Uuid;

use crate::{error::Error, feed, node::Node, store};

/// Devices whose end is said in one transaction.
const BATCH: i64 = 100;

/// The person that a reference of this domain names.
///
/// # Errors
/// `MALFORMED`, `USER` for another domain.
pub fn user_id(node: &Node, user: Option<&UserRef>) -> Result<Uuid, Error> {
    let user = user.ok_or_else(|| Error::malformed("user", "missing"))?;
    if user.domain != node.config.domain {
        return Err(no_user());
    }
    Uuid::from_slice(&user.id).map_err(|error| Error::malformed("user.id", error))
}

fn no_user() -> Error {
    Error::refused(Reason::User, "no such user")
}

/// What an operator does to a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Cuts all devices off, for a while; nothing is removed.
    Suspend,
    /// Takes that back.
    Reinstate,
    /// For ever: every device is gone, and the names.
    Delete,
}

/// Carries it out; the position of its last status in the feed. A repeat changes nothing and gets the end of the feed.
///
/// # Errors
/// `USER`, or the database.
pub async fn change(node: &Node, user: Uuid, act: Act, actor: String) -> Result<u64, Error> {
    let shared = node.clone();
    let seq = node
        .db
        .run_tx("change_access", move |tx| {
            let (node, actor) = (shared.clone(), actor.clone());
            Box::pin(async move { Ok(in_tx(tx, &node, user, act, &actor).await?) })
        })
        .await?;
    node.moved.send_replace(());
    Ok(seq)
}

async fn in_tx(
    tx: &Transaction<'_>,
    node: &Node,
    user: Uuid,
    act: Act,
    actor: &str,
) -> Result<u64, Error> {
    let suspended = store::users::lock(tx, user).await?.ok_or_else(no_user)?;
    let (change, action) = match act {
        Act::Suspend if suspended => return end_of_feed(tx).await,
        Act::Reinstate if !suspended => return end_of_feed(tx).await,
        Act::Suspend => (StatusChange::Suspended, "suspend"),
        Act::Reinstate => (StatusChange::Reinstated, "reinstate"),
        Act::Delete => (StatusChange::Deleted, "delete"),
    };
    if act == Act::Delete {
        delete_devices(tx, node, user).await?;
        store::users::delete(tx, user).await?;
    } else {
        store::users::set_suspended(tx, user, act == Act::Suspend).await?;
    }
    let subject = Subject::User(UserRef {
        domain: node.config.domain.clone(),
        id: user.as_bytes().to_vec().into(),
    });
    let seq = feed::append(tx, &node.keys, &node.signer, subject, change).await?;
    store::feed::audit(tx, actor, action, &format!("user:{user}")).await?;
    Ok(seq)
}

async fn end_of_feed(tx: &Transaction<'_>) -> Result<u64, Error> {
    Ok(store::feed::head(tx).await?.seq)
}

fn device_subject(node: &Node, device: Uuid) -> Subject {
    Subject::Device(DeviceRef {
        domain: node.config.domain.clone(),
        id: device.as_bytes().to_vec().into(),
    })
}

/// Each device has a statement of its own: members remove devices, and each removal carries its signature.
async fn delete_devices(tx: &Transaction<'_>, node: &Node, user: Uuid) -> Result<(), Error> {
    for device in store::devices::of_users(tx, &[user]).await? {
        if device.revoked_seq.is_some() {
            continue;
        }
        let subject = device_subject(node, device.id);
        let change = StatusChange::Deleted;
        let seq = feed::append(tx, &node.keys, &node.signer, subject, change).await?;
        store::devices::mark_revoked(tx, device.id, seq).await?;
    }
    Ok(())
}

/// Says the end of certificates in the feed, from time to time, until shutdown. Any number of nodes may.
pub async fn run_expiry(node: Node, shutdown: Shutdown) {
    let mut ticker = shutdown.ticker(Duration::from_secs(node.config.expiry_look_seconds));
    while ticker.next().await {
        while match expire(&node).await {
            Ok(expired) => expired == BATCH,
            Err(error) => {
                tracing::warn!(%error, "cannot look for expired certificates");
                false
            }
        } {}
    }
}

async fn expire(node: &Node) -> Result<i64, Error> {
    let shared = node.clone();
    let expired = node
        .db
        .run_tx("expire", move |tx| {
            let node = shared.clone();
            Box::pin(async move { Ok(expire_in(tx, &node).await?) })
        })
        .await?;
    if expired > 0 {
        tracing::info!(expired, "certificates ended");
        node.moved.send_replace(());
    }
    Ok(expired)
}

async fn expire_in(tx: &Transaction<'_>, node: &Node) -> Result<i64, Error> {
    let devices = store::devices::lock_expired(tx, BATCH).await?;
    let mut items = Items::of("certificate_expiry");
    let mut expired = 0;
    for device in devices {
        let done = items
            .one_in(tx, device, expire_one(tx, node, device))
            .await?;
        expired += i64::from(done.is_some());
    }
    Ok(expired)
}

async fn expire_one(tx: &Transaction<'_>, node: &Node, device: Uuid) -> Result<(), Error> {
    let subject = device_subject(node, device);
    let change = StatusChange::Expired;
    let seq = feed::append(tx, &node.keys, &node.signer, subject, change).await?;
    store::devices::mark_expired(tx, device, seq).await?;
    store::feed::audit(tx, "clock", "expire", &format!("device:{device}")).await?;
    Ok(())
}
