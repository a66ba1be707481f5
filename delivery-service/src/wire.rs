//! Group references, chain values and heads as they are on the wire.

use chancery_proto::{common::v1::GroupRef, delivery::v1::State};

use crate::{error::Error, node::Node, ordering::group::Head};

/// The group id of a request.
///
/// # Errors
/// Malformed; or a group of another domain, which is unknown here.
pub fn group_id(node: &Node, group: Option<&GroupRef>) -> Result<Vec<u8>, Error> {
    group_of_domain(&node.config.domain, group)
}

/// The id of a group that this domain orders.
///
/// # Errors
/// As [`group_id`].
pub fn group_of_domain(domain: &str, group: Option<&GroupRef>) -> Result<Vec<u8>, Error> {
    let group = group.ok_or_else(|| Error::malformed("group", "missing"))?;
    if !(16..=64).contains(&group.id.len()) {
        return Err(Error::malformed("group.id", "16 to 64 bytes"));
    }
    if group.domain != domain {
        return Err(Error::no_group());
    }
    Ok(group.id.to_vec())
}

/// On the wire.
pub fn group_ref(node: &Node, group: &[u8]) -> GroupRef {
    GroupRef {
        domain: node.config.domain.clone(),
        id: group.to_vec().into(),
    }
}

/// A chain value: 32 bytes, or none.
///
/// # Errors
/// Another length.
pub fn chain(bytes: &[u8]) -> Result<Option<[u8; 32]>, Error> {
    match bytes.len() {
        0 => Ok(None),
        32 => Ok(bytes.try_into().ok()),
        _ => Err(Error::malformed("chain", "32 bytes, or empty")),
    }
}

/// A head as clients see it.
pub fn state(node: &Node, group: &[u8], head: &Head) -> State {
    State {
        group: Some(group_ref(node, group)),
        epoch: head.epoch,
        epoch_seq: head.epoch_seq,
        head_seq: head.seq,
        chain: head.chain.to_vec().into(),
        settled_seq: head.settled_seq,
        pending_removals: head.pending_removals,
    }
}
