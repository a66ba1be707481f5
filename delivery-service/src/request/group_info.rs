//! A GroupInfo that a member puts in the place of a false one.

use std::collections::BTreeMap;

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::PutGroupInfoRequest,
    group_info::GroupInfo,
    leaf::LeafNode,
    suite::Suite,
    tree::{Hashes, Tree},
};
use service_kit::db::DbError;

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::{
        content::tree_hash_mismatch,
        group::{DeviceKey, Rejection},
    },
    request::{
        group_info,
        leaf::{leaf_is_callers, leaf_of, leaves_by_device},
        new_tree, tree_fits, tree_update,
    },
    store, wire,
};

/// A GroupInfo ready to be stored.
#[derive(Debug, Clone)]
pub struct PreparedInfo {
    /// The group.
    pub group: Vec<u8>,
    /// Of the GroupInfo.
    pub epoch: u64,
    /// From the request.
    pub epoch_seq: u64,
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// Its state's hash.
    pub group_state_hash: [u8; 32],
    /// The GroupInfo, read.
    pub info: GroupInfo,
    /// The leaves of the tree by device.
    pub leaves: BTreeMap<DeviceKey, LeafNode>,
    /// The whole tree.
    pub tree: Tree,
    /// Hashes of its subtrees.
    pub tree_hashes: Hashes,
}

/// Reads a PutGroupInfo request: signed by the caller's own leaf, with the whole tree that fits it.
///
/// # Errors
/// Malformed, `GROUP_INFO_MISMATCH`, `TREE_MISMATCH`, `CREDENTIAL_INVALID`.
pub async fn repair(
    node: &Node,
    caller: &Caller,
    request: &PutGroupInfoRequest,
) -> Result<PreparedInfo, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    let limits = &node.config.limits;
    let info = group_info(limits, &request.group_info)?;
    if info.group_id != group {
        return Err(Error::refused(
            Reason::GroupInfoMismatch,
            "the GroupInfo is of another group",
        ));
    }
    if !request.tree.as_ref().is_some_and(|tree| tree.full) {
        return Err(Error::malformed("tree", "a repair carries the whole tree"));
    }
    let tree = new_tree(None, tree_update(limits, request.tree.as_ref())?)?;
    if !tree_fits(&tree, &info) {
        return Err(tree_hash_mismatch().into());
    }
    check_signer(node, caller, &info, &tree).await?;
    let leaves = leaves_by_device(&|domain| node.domains.id(domain), &tree).ok_or(
        Rejection::TreeMismatch("a leaf of the tree names no device, or two name the same"),
    )?;
    Ok(PreparedInfo {
        epoch: info.epoch,
        epoch_seq: request.epoch_seq,
        group_info: request.group_info.to_vec(),
        group_state_hash: info.group_state_hash(),
        tree_hashes: Suite::from_code(info.suite)
            .map_or_else(Hashes::new, |suite| tree.hashes(suite)),
        tree,
        leaves,
        info,
        group,
    })
}

/// So that a GroupInfo that turns out to be false names who put it there.
async fn check_signer(
    node: &Node,
    caller: &Caller,
    info: &GroupInfo,
    tree: &Tree,
) -> Result<(), Error> {
    let invalid = |why: &str| Error::refused(Reason::CredentialInvalid, why);
    let leaf = info
        .signer
        .checked_mul(2)
        .and_then(|index| tree.nodes().find(|(at, _)| *at == index))
        .and_then(|(_, node)| leaf_of(node))
        .ok_or_else(|| invalid("the GroupInfo's signer has no leaf in the tree"))?;
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    drop(client);
    leaf_is_callers(node, caller, &leaf, now)?;
    if info.verify(&leaf.signature_key) == Some(false) {
        return Err(invalid("the GroupInfo's signature does not verify"));
    }
    Ok(())
}
