//! Trees, by `proto`'s own.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    leaf::LeafNode,
    suite::Suite,
    tree::{Nodes, Patch, Tree},
    wire::{Reader, Write as _},
};
use serde::Deserialize;

use super::{Hex, unsupported};

pub(super) fn suite(code: u16) -> anyhow::Result<Suite> {
    match Suite::from_code(code) {
        Some(suite) => Ok(suite),
        None => unsupported(format!("suite {code}")),
    }
}

#[derive(Deserialize)]
pub(super) struct Math {
    n_leaves: u32,
    n_nodes: u32,
    root: u32,
    left: Vec<Option<u32>>,
    right: Vec<Option<u32>>,
    parent: Vec<Option<u32>>,
    sibling: Vec<Option<u32>>,
}

/// A blank tree's hashes show its shape: each parent's is made of its children's.
pub(super) fn math(case: Math) -> anyhow::Result<()> {
    let suite = Suite::X25519Aes128;
    let mut tree = Tree::blank(case.n_leaves)?;
    ensure!(tree.width() * 2 - 1 == case.n_nodes, "n_nodes");
    // Leaves that differ, so that every subtree has a hash of its own.
    for leaf in 0..case.n_leaves {
        let node = [&[1, 1][..], &leaf.to_be_bytes()].concat();
        // Only hashed: it need not be a leaf.
        tree.restore(leaf * 2, node)?;
    }
    let hashes = tree.hashes(suite);
    ensure!(
        hashes.len() == case.n_nodes as usize,
        "a hash for each node"
    );
    ensure!(hashes.get(&case.root) == Some(&tree.hash(suite)), "root");
    for (index, hash) in &hashes {
        let at = |list: &[Option<u32>]| list.get(*index as usize).copied().flatten();
        match (at(&case.left), at(&case.right)) {
            (Some(left), Some(right)) => {
                let mut input = vec![2, 0];
                input.put_vector(hashes.get(&left).context("left")?);
                input.put_vector(hashes.get(&right).context("right")?);
                ensure!(suite.hash(&input) == *hash, "children of node {index}");
                for (child, other) in [(left, right), (right, left)] {
                    let place = child as usize;
                    ensure!(
                        case.parent.get(place) == Some(&Some(*index)),
                        "parent of node {child}"
                    );
                    ensure!(
                        case.sibling.get(place) == Some(&Some(other)),
                        "sibling of node {child}"
                    );
                }
            }
            _ => ensure!(index.is_multiple_of(2), "node {index} has no children"),
        }
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Validation {
    cipher_suite: u16,
    tree: Hex,
    group_id: Hex,
    tree_hashes: Vec<Hex>,
}

pub(super) fn validation(case: Validation) -> anyhow::Result<()> {
    let suite = suite(case.cipher_suite)?;
    let tree = Tree::from_ratchet_tree(&case.tree.0)?;
    ensure!(
        tree.to_ratchet_tree() == case.tree.0,
        "the tree does not come back"
    );
    let hashes = tree.hashes(suite);
    ensure!(hashes.len() == case.tree_hashes.len(), "hashes");
    for ((index, hash), expected) in hashes.iter().zip(&case.tree_hashes) {
        ensure!(*hash == expected.0, "tree hash of node {index}");
    }
    for (index, node) in tree.nodes().filter(|(index, _)| index.is_multiple_of(2)) {
        let mut reader = Reader::new(node.get(2..).unwrap_or_default());
        let leaf = LeafNode::read(&mut reader)?;
        reader.finish()?;
        let place = Some((&case.group_id.0[..], index / 2));
        ensure!(leaf.verify(suite, place), "signature of leaf {}", index / 2);
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Operations {
    cipher_suite: u16,
    tree_before: Hex,
    tree_after: Hex,
    tree_hash_before: Hex,
    tree_hash_after: Hex,
}

/// The hash after is computed from the whole tree, and from what changed as a server does it.
pub(super) fn operations(case: Operations) -> anyhow::Result<()> {
    let suite = suite(case.cipher_suite)?;
    let before = Tree::from_ratchet_tree(&case.tree_before.0)?;
    let after = Tree::from_ratchet_tree(&case.tree_after.0)?;
    ensure!(
        before.hash(suite) == case.tree_hash_before.0,
        "tree_hash_before"
    );
    ensure!(
        after.hash(suite) == case.tree_hash_after.0,
        "tree_hash_after"
    );
    ensure!(
        after.to_ratchet_tree() == case.tree_after.0,
        "tree_after does not come back"
    );
    let update = after.update_since(&before);
    let Some(patch) = Patch::read(&update, before.width())? else {
        // A narrower tree is hashed as a whole.
        return Ok(());
    };
    let nodes: Nodes = before.nodes().map(|(i, n)| (i, n.to_vec())).collect();
    let hashed = patch.hashes(suite, &nodes, &before.hashes(suite))?;
    ensure!(
        hashed.get(&patch.root()) == Some(&case.tree_hash_after.0),
        "hash of the change"
    );
    Ok(())
}
