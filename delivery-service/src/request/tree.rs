//! The tree after a Commit, and whether it is the one that the GroupInfo speaks of.

use chancery_proto::{
    delivery::v1::TreeUpdate,
    group_info::GroupInfo,
    suite::Suite,
    tree::{Hashes, Patch, Tree},
};
use service_kit::db::{DbError, GenericClient};

use crate::{
    error::Error,
    node::Node,
    ordering::content::NewLeaves,
    request::{leaf_of, malformed, new_tree, tree_fits, tree_update},
    store,
};

/// What is stored of an epoch's tree.
#[derive(Debug, Clone)]
pub(super) struct TreeBefore {
    /// The epoch's name.
    pub epoch_seq: u64,
    /// Leaves.
    pub width: u32,
    /// As its GroupInfo says.
    pub hash: Vec<u8>,
}

/// A tree after a Commit.
#[derive(Debug, Clone)]
pub struct TreeAfter {
    /// Leaves.
    pub width: u32,
    /// Nodes that are to be written.
    pub changes: Vec<store::tree::Node>,
    /// Hashes of the subtrees that are not as they were; none for a suite whose hash is not known here.
    pub hashes: Hashes,
    /// Leaves that are to be written, by leaf index.
    pub leaves: NewLeaves,
    /// It hashes to what the GroupInfo says.
    pub fits: bool,
}

impl TreeAfter {
    /// The tree after an update, hashed whole.
    ///
    /// # Errors
    /// Malformed.
    pub fn whole(old: Option<&Tree>, update: &TreeUpdate, info: &GroupInfo) -> Result<Self, Error> {
        let tree = new_tree(old, update)?;
        let nothing = Tree::default();
        let changes = tree.changes_since(old.unwrap_or(&nothing));
        Ok(Self {
            width: tree.width(),
            leaves: new_leaves(&changes)?,
            changes,
            hashes: Suite::from_code(info.suite)
                .map(|suite| tree.hashes(suite))
                .unwrap_or_default(),
            fits: tree_fits(&tree, info),
        })
    }
}

/// The leaves among nodes that are to be written.
///
/// # Errors
/// Malformed: a leaf that does not parse.
pub fn new_leaves(changes: &[store::tree::Node]) -> Result<NewLeaves, Error> {
    let leaves = changes.iter().filter(|(index, _)| index.is_multiple_of(2));
    leaves
        .map(|(index, node)| match node {
            None => Ok((index / 2, None)),
            Some(node) => match leaf_of(node) {
                Some(leaf) => Ok((index / 2, Some(leaf))),
                None => Err(Error::malformed("tree", "a leaf that does not parse")),
            },
        })
        .collect()
}

/// The tree after an update. What only changes a little is hashed from stored hashes; a whole tree, one that gets narrower, and one whose hashes were not
/// written (by an older node) are hashed whole.
///
/// # Errors
/// Malformed, larger than allowed, or the database.
pub(super) async fn tree_after(
    node: &Node,
    group: &[u8],
    before: Option<&TreeBefore>,
    update: Option<&TreeUpdate>,
    info: &GroupInfo,
) -> Result<TreeAfter, Error> {
    let update = tree_update(&node.config.limits, update)?;
    let suite = Suite::from_code(info.suite);
    let client = node.db.client().await?;
    if let (Some(before), Some(suite)) = (before, suite)
        && let Some(patch) = Patch::read(update, before.width).map_err(malformed("tree"))?
        && let Some(hashes) = patched(&client, group, before, &patch, suite)
            .await
            .map_err(DbError::from)?
    {
        let changes = patch.changes();
        let changes: Vec<_> = changes.map(|(i, n)| (i, n.map(<[u8]>::to_vec))).collect();
        return Ok(TreeAfter {
            width: patch.width(),
            leaves: new_leaves(&changes)?,
            changes,
            fits: hashes.get(&patch.root()) == Some(&info.tree_hash),
            hashes,
        });
    }
    let old = match before {
        Some(before) => Some(whole(&client, group, before).await?),
        None => None,
    };
    drop(client);
    TreeAfter::whole(old.as_ref(), update, info)
}

/// The hashes after a patch, if those before it are there.
async fn patched<C: GenericClient>(
    client: &C,
    group: &[u8],
    before: &TreeBefore,
    patch: &Patch,
    suite: Suite,
) -> Result<Option<Hashes>, tokio_postgres::Error> {
    let wanted = patch.wanted();
    let seq = before.epoch_seq;
    let root = before.width - 1;
    let asked: Vec<u32> = wanted.hashes.iter().copied().chain([root]).collect();
    let hashes = store::tree::hashes_at(client, group, seq, &asked).await?;
    // Hashes are written together: where the root's is the epoch's, all are.
    if hashes.get(&root) != Some(&before.hash) {
        return Ok(None);
    }
    let nodes = store::tree::nodes_at(client, group, seq, &wanted.nodes).await?;
    Ok(patch.hashes(suite, &nodes, &hashes).ok())
}

async fn whole<C: GenericClient>(
    client: &C,
    group: &[u8],
    before: &TreeBefore,
) -> Result<Tree, Error> {
    let corrupt = |_| Error::Corrupt("a stored tree");
    let nodes = store::tree::at(client, group, before.epoch_seq)
        .await
        .map_err(DbError::from)?;
    let mut tree = Tree::blank(before.width).map_err(corrupt)?;
    for (index, bytes) in nodes {
        // A tree that shrank keeps its older, wider nodes for the epochs that had them.
        if tree.width().saturating_mul(2) > index.saturating_add(1) {
            tree.restore(index, bytes).map_err(corrupt)?;
        }
    }
    Ok(tree)
}
