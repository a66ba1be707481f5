//! Messages of this device: kept before they are sent, until they are refused, and as long as somebody may ask whether they stand.

use serde::{Deserialize, Serialize};

use super::records::{Accepted, Done, GroupName, key, prefix};
use crate::store::{Step, StoreError};

const OUTBOX: &str = "outbox";
const UNSENT: &str = "unsent";
/// Unsent messages whose command ended without an answer.
const GIVEN_UP: &str = "unsent.given_up";
/// What a framed message has beside its text, twice over: ids, signature, padding, the request around it.
const FRAMING_BYTES: u64 = 64 << 10;

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
        not_unsent(step, &key)
    }
}

fn not_unsent(step: &Step<'_>, key: &[u8]) -> Done {
    step.delete(GIVEN_UP, key)?;
    step.delete(UNSENT, key)
}

/// Forgets a message that was refused.
///
/// # Errors
/// The store.
pub fn forget(step: &Step<'_>, group: &GroupName, message_id: &[u8]) -> Done {
    let key = key(group, message_id);
    step.delete(OUTBOX, &key)?;
    not_unsent(step, &key)
}

/// A message whose text and request are within a limit of the service for one message; one that is larger can never be
/// accepted, and is not read.
///
/// # Errors
/// [`StoreError::TooLarge`], or the store.
pub fn get_within(
    step: &Step<'_>,
    group: &GroupName,
    message_id: &[u8],
    message_bytes: u64,
) -> Done<Option<Outgoing>> {
    let most = message_bytes.saturating_mul(2) + FRAMING_BYTES;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    step.get_within(OUTBOX, &key(group, message_id), most)
}

/// Sends a message no more. It is still known as this device's own, in case the server accepted it.
///
/// # Errors
/// The store.
pub fn abandon(step: &Step<'_>, group: &GroupName, message_id: &[u8]) -> Done {
    not_unsent(step, &key(group, message_id))
}

/// Notes that the command of an unsent message ended without an answer: the same text said again is this message.
///
/// # Errors
/// The store.
pub fn give_up(step: &Step<'_>, group: &GroupName, message_id: &[u8]) -> Done {
    let key = key(group, message_id);
    match step.get::<()>(UNSENT, &key)? {
        Some(()) => step.put(GIVEN_UP, &key, &()),
        None => Ok(()),
    }
}

/// Takes up a given-up message with this text, by id, if there is one.
///
/// # Errors
/// The store.
pub fn take_up(step: &Step<'_>, group: &GroupName, text: &[u8]) -> Done<Option<Vec<u8>>> {
    let prefix = prefix(group);
    let found: Vec<(Vec<u8>, ())> = step.list(GIVEN_UP, &prefix, b"", usize::MAX)?;
    let most = u64::try_from(text.len()).unwrap_or(u64::MAX);
    for (key, ()) in found {
        let id = &key[prefix.len()..];
        match get_within(step, group, id, most) {
            Ok(Some(known)) if known.text == text => {
                step.delete(GIVEN_UP, &key)?;
                return Ok(Some(id.to_vec()));
            }
            Ok(_) | Err(StoreError::TooLarge { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Every unsent message of every group, by group and id.
///
/// # Errors
/// The store.
pub fn all_unsent(step: &Step<'_>) -> Done<Vec<(GroupName, Vec<u8>)>> {
    let found: Vec<(Vec<u8>, ())> = step.list(UNSENT, b"", b"", usize::MAX)?;
    let parts = found.iter().filter_map(|(key, ())| {
        let end = key.iter().position(|byte| *byte == 0)?;
        let group = std::str::from_utf8(&key[..end]).ok()?.parse().ok()?;
        Some((group, key[end + 1..].to_vec()))
    });
    Ok(parts.collect())
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
