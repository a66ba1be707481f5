//! Messages of this device: kept before they are sent, until they are refused, and as long as somebody may ask whether they stand.

use serde::{Deserialize, Serialize};

use super::records::{Accepted, Done, GroupName, key, prefix};
use crate::store::Step;

const OUTBOX: &str = "outbox";
const UNSENT: &str = "unsent";

/// A message of this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outgoing {
    /// What it says.
    pub text: Vec<u8>,
    /// The encoded request; empty until it was framed.
    pub request: Vec<u8>,
    /// The epoch that it was framed in.
    pub epoch: u64,
    /// The name of that epoch.
    pub epoch_seq: u64,
    /// Set once the server said so, or the log showed it.
    pub accepted: Option<Accepted>,
}

impl Outgoing {
    /// Kept, and not framed: no key was used for it yet.
    pub fn unframed(text: &[u8]) -> Self {
        Self {
            text: text.to_vec(),
            request: Vec::new(),
            epoch: 0,
            epoch_seq: 0,
            accepted: None,
        }
    }
}

/// A message of this device.
///
/// # Errors
/// The store.
pub fn get(step: &Step<'_>, group: &GroupName, message_id: &[u8]) -> Done<Option<Outgoing>> {
    step.get(OUTBOX, &key(group, message_id))
}

/// Writes a message of this device; it counts as unsent until it is accepted.
///
/// # Errors
/// The store.
pub fn put(step: &Step<'_>, group: &GroupName, message_id: &[u8], message: &Outgoing) -> Done {
    let key = key(group, message_id);
    step.put(OUTBOX, &key, message)?;
    if message.accepted.is_none() {
        step.put(UNSENT, &key, &())
    } else {
        step.delete(UNSENT, &key)
    }
}

/// Forgets a message that was refused.
///
/// # Errors
/// The store.
pub fn forget(step: &Step<'_>, group: &GroupName, message_id: &[u8]) -> Done {
    let key = key(group, message_id);
    step.delete(OUTBOX, &key)?;
    step.delete(UNSENT, &key)
}

/// The ids of messages whose outcome is not known.
///
/// # Errors
/// The store.
pub fn unsent(step: &Step<'_>, group: &GroupName) -> Done<Vec<Vec<u8>>> {
    let prefix = prefix(group);
    let found: Vec<(Vec<u8>, ())> = step.list(UNSENT, &prefix, b"", usize::MAX)?;
    Ok(found
        .into_iter()
        .map(|(key, ())| key[prefix.len()..].to_vec())
        .collect())
}
