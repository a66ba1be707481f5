//! A new group.

use chancery_proto::{
    common::v1::Reason,
    content_hash::ContentHasher,
    delivery::v1::CreateGroupRequest,
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
        content::{check_creation, tree_hash_mismatch},
        group::ExternalJoin,
    },
    request::{
        group_info, hash_tree, join_of,
        leaf::{leaf_is_callers, leaf_of},
        new_tree, tree_fits, tree_update,
    },
    store, wire,
};

/// A group ready to be created.
#[derive(Debug, Clone)]
pub struct PreparedGroup {
    /// Its id.
    pub group: Vec<u8>,
    /// Its cipher suite.
    pub suite: u16,
    /// SHA-256 over the request.
    pub content_hash: [u8; 32],
    /// MLSMessage(GroupInfo).
    pub group_info: Vec<u8>,
    /// Its first epoch: need not be 0.
    pub epoch: u64,
    /// Its state's hash.
    pub group_state_hash: [u8; 32],
    /// From its policy.
    pub past_epochs: u64,
    /// From its policy.
    pub external_join: ExternalJoin,
    /// The key of the creator's leaf.
    pub signature_key: Vec<u8>,
    /// Leaves.
    pub tree_width: u32,
    /// Nodes that are not blank.
    pub tree: Vec<store::tree::Node>,
    /// Hashes of its subtrees.
    pub tree_hashes: Hashes,
    /// The group that this one follows.
    pub replaces: Option<Replaces>,
}

/// A group that ends with the creation of another.
#[derive(Debug, Clone)]
pub struct Replaces {
    /// Its id.
    pub group: Vec<u8>,
    /// The last entry that the creator has seen.
    pub head_seq: u64,
}

/// Reads a CreateGroup request: a group of exactly the caller.
///
/// # Errors
/// Malformed, `GROUP_INFO_MISMATCH`, `TREE_MISMATCH`, `CREDENTIAL_INVALID`, `UNKNOWN_VALUE` for a suite that is not allowed or a reserved field.
pub async fn group(
    node: &Node,
    caller: &Caller,
    request: &CreateGroupRequest,
) -> Result<PreparedGroup, Error> {
    let group = wire::group_id(node, request.group.as_ref())?;
    if request.parent.is_some() || request.paired_group.is_some() {
        return Err(Error::refused(
            Reason::UnknownValue,
            "parent and paired_group are reserved",
        ));
    }
    let replaces = request
        .replaces
        .as_ref()
        .map(|old| {
            Ok::<_, Error>(Replaces {
                group: wire::group_id(node, old.group.as_ref())?,
                head_seq: old.head_seq,
            })
        })
        .transpose()?;
    if replaces.as_ref().is_some_and(|old| old.group == group) {
        return Err(Error::malformed("replaces", "a group cannot follow itself"));
    }
    let suite = u16::try_from(request.suite)
        .ok()
        .filter(|suite| node.config.suites.contains(suite))
        .ok_or_else(|| Error::refused(Reason::UnknownValue, "suite"))?;
    let limits = &node.config.limits;
    let info = group_info(limits, &request.group_info)?;
    let tree = new_tree(None, tree_update(limits, request.tree.as_ref())?)?;
    if !tree_fits(&tree, &info) {
        return Err(tree_hash_mismatch().into());
    }
    let leaf = check_only_leaf(node, caller, &tree).await?;
    let policy = check_creation(&node.config.domain, (&group, suite), &info, &leaf)?;
    let mut hasher = ContentHasher::new("CreateGroup")
        .field(1, &group)
        .number(2, u64::from(request.suite))
        .field(3, &request.group_info);
    if let Some(old) = &replaces {
        hasher = hasher.field(5, &old.group).number(6, old.head_seq);
    }
    Ok(PreparedGroup {
        suite,
        content_hash: hash_tree(hasher, request.tree.as_ref()).finish(),
        group_info: request.group_info.to_vec(),
        epoch: info.epoch,
        group_state_hash: info.group_state_hash(),
        past_epochs: policy.past_epochs.into(),
        external_join: join_of(policy.external_join),
        signature_key: leaf.signature_key,
        tree_width: tree.width(),
        tree_hashes: Suite::from_code(suite).map_or_else(Hashes::new, |suite| tree.hashes(suite)),
        tree: tree.nodes().map(|(i, n)| (i, Some(n.to_vec()))).collect(),
        replaces,
        group,
    })
}

async fn check_only_leaf(node: &Node, caller: &Caller, tree: &Tree) -> Result<LeafNode, Error> {
    let leaves: Vec<&[u8]> = tree
        .nodes()
        .filter(|(index, _)| index.is_multiple_of(2))
        .map(|(_, node)| node)
        .collect();
    let [only] = leaves.as_slice() else {
        return Err(Error::malformed("tree", "a new group has exactly one leaf"));
    };
    let leaf = leaf_of(only).ok_or_else(|| Error::malformed("tree", "the leaf does not parse"))?;
    let client = node.db.client().await?;
    let now = store::groups::now(&client).await.map_err(DbError::from)? / 1_000_000;
    drop(client);
    leaf_is_callers(node, caller, &leaf, now)?;
    Ok(leaf)
}
