//! A Commit with all that belongs to it: what is stored of its epoch, and what that makes of its bundle.

use chancery_proto::{delivery::v1::SubmitCommitRequest, group_info::GroupInfo, leaf::LeafNode};
use service_kit::db::{DbError, GenericClient};

use crate::{
    access::caller::Caller,
    error::Error,
    node::Node,
    ordering::content::{self, ExternalContent},
    request::{
        bundle::{Bundle, Prepared, PreparedCommit},
        leaf::{check_external_leaf, introducer, leaf_of},
        tree::{TreeBefore, tree_after},
    },
    store,
};

/// Reads one Commit with all that belongs to it, and holds it against the epoch that it was made in.
///
/// # Errors
/// Malformed, too large, or what cannot be a Commit of this group.
pub async fn commit(
    node: &Node,
    caller: &Caller,
    request: &SubmitCommitRequest,
) -> Result<PreparedCommit, Error> {
    let bundle = super::read_with(node, |rules| Bundle::read(rules, request))?;
    let before = Before::load(node, &bundle.group, request.epoch_seq).await?;
    let update = request.bundles.first().and_then(|b| b.tree.as_ref());
    let tree_before = before.as_ref().map(|before| &before.tree);
    let tree = tree_after(node, &bundle.group, tree_before, update, &bundle.info).await?;
    // Each of these takes a connection of its own: none is held meanwhile.
    let introducer = match &bundle.external {
        None => None,
        Some(commit) => {
            check_external_leaf(node, caller, &commit.leaf).await?;
            introducer(node, caller, request, &bundle.group, &commit.leaf).await?
        }
    };
    let client = node.db.client().await?;
    let signer = match &before {
        Some(before) => signer(&client, &bundle, before, &tree.leaves).await?,
        None => None,
    };
    let external = match &bundle.external {
        None => None,
        Some(commit) => {
            let own_leaf = own_leaf(&client, caller, &bundle, before.as_ref()).await?;
            let place = content::place_of(&commit.leaf, &tree.leaves);
            let filled_left = match (place, &before) {
                (Some(place), Some(before)) => {
                    let seq = before.tree.epoch_seq;
                    store::tree::filled_leaves(&client, &bundle.group, seq, place)
                        .await
                        .map_err(DbError::from)?
                }
                _ => 0,
            };
            let external = ExternalContent {
                commit,
                own_leaf,
                leaves: &tree.leaves,
                filled_left,
            };
            Some(external)
        }
    };
    drop(client);
    let fault = bundle
        .content(
            &node.config.domain,
            before.as_ref().map(|before| &before.info),
            tree.fits,
            signer.as_ref(),
            external,
        )
        .fault();
    let prepared = Prepared {
        introducer,
        fault,
        tree,
    };
    super::read_with(node, |rules| {
        Ok(bundle.prepared(rules, (caller.key, caller.user), prepared))
    })
}

/// What is stored of the epoch that a Commit was made in. An epoch never changes but by a repair, so it is read without the lock.
struct Before {
    info: GroupInfo,
    tree: TreeBefore,
}

impl Before {
    async fn load(node: &Node, group: &[u8], epoch_seq: u64) -> Result<Option<Self>, Error> {
        let client = node.db.client().await?;
        let stored = store::epochs::find(&client, group, epoch_seq)
            .await
            .map_err(DbError::from)?;
        let Some(stored) = stored else {
            return Ok(None);
        };
        let info = GroupInfo::parse(&stored.group_info, stored.group_info.len())
            .map_err(|_| Error::Corrupt("a stored GroupInfo"))?;
        if !stored.tree_width.is_power_of_two() {
            return Err(Error::Corrupt("a stored tree"));
        }
        Ok(Some(Self {
            tree: TreeBefore {
                epoch_seq,
                width: stored.tree_width,
                hash: info.tree_hash.clone(),
            },
            info,
        }))
    }
}

/// The leaf of the GroupInfo's signer in the new tree: written by the Commit, or there before.
async fn signer<C: GenericClient>(
    client: &C,
    bundle: &Bundle,
    before: &Before,
    written: &content::NewLeaves,
) -> Result<Option<LeafNode>, Error> {
    let index = bundle.info.signer;
    if let Some(leaf) = written.get(&index) {
        return Ok(leaf.clone());
    }
    leaf_at(client, &bundle.group, before.tree.epoch_seq, index).await
}

async fn leaf_at<C: GenericClient>(
    client: &C,
    group: &[u8],
    seq: u64,
    index: u32,
) -> Result<Option<LeafNode>, Error> {
    let Some(node) = index.checked_mul(2) else {
        return Ok(None);
    };
    let nodes = store::tree::nodes_at(client, group, seq, &[node])
        .await
        .map_err(DbError::from)?;
    Ok(nodes.get(&node).and_then(|bytes| leaf_of(bytes)))
}

/// Where the caller's leaf is in the tree before, if it is a member.
async fn own_leaf<C: GenericClient>(
    client: &C,
    caller: &Caller,
    bundle: &Bundle,
    before: Option<&Before>,
) -> Result<Option<u32>, Error> {
    let Some(before) = before else {
        return Ok(None);
    };
    let (group, seq) = (&bundle.group, before.tree.epoch_seq);
    let kept = store::roster::open_leaf(client, group, caller.key)
        .await
        .map_err(DbError::from)?;
    let Some(kept) = kept else {
        return Ok(None);
    };
    let names_caller =
        |leaf: &LeafNode| crate::request::leaf::names(leaf, &caller.domain, caller.key);
    if let Some(index) = kept
        && leaf_at(client, group, seq, index)
            .await?
            .is_some_and(|leaf| names_caller(&leaf))
    {
        return Ok(Some(index));
    }
    // Where its leaf is was not kept, or is not true: it is looked for.
    let nodes = store::tree::at(client, group, seq)
        .await
        .map_err(DbError::from)?;
    let found = nodes
        .iter()
        .filter(|(index, _)| index.is_multiple_of(2))
        .find(|(_, bytes)| leaf_of(bytes).is_some_and(|leaf| names_caller(&leaf)));
    Ok(found.map(|(index, _)| index / 2))
}
