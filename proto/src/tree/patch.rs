//! A tree's hash after a change, from what changed and the hashes of what did not (RFC 9420 section 7.8): the work grows with the change and the tree's
//! depth, not with the tree.

use std::collections::BTreeMap;

use super::{node_hash, root_of};
use crate::{
    delivery::v1::TreeUpdate,
    suite::Suite,
    wire::{Malformed, Read},
};

/// Hashes of subtrees by the index of their root.
pub type Hashes = BTreeMap<u32, Vec<u8>>;

/// Nodes by their index, each `optional<Node>` with its presence octet; none is blank.
pub type Nodes = BTreeMap<u32, Vec<u8>>;

/// What a Commit changes in a tree that does not get narrower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    before: u32,
    after: u32,
    changes: BTreeMap<u32, Option<Vec<u8>>>,
}

/// What has to be known of the tree before, to hash the one after.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Nodes above what changed.
    pub nodes: Vec<u32>,
    /// Subtrees beside the way from there to the root.
    pub hashes: Vec<u32>,
}

impl Patch {
    /// Reads an update of a tree of `width` leaves; none if it is whole, or makes the tree narrower.
    ///
    /// # Errors
    /// As [`super::Tree::set`] and [`super::Tree::blank`].
    pub fn read(update: &TreeUpdate, width: u32) -> Read<Option<Self>> {
        super::check_width(update.tree_width)?;
        if update.full || update.tree_width < width {
            return Ok(None);
        }
        let mut changes = BTreeMap::new();
        for change in &update.nodes {
            super::check_node(update.tree_width, change.index, change.node.as_deref())?;
            changes.insert(change.index, change.node.as_ref().map(|n| n.to_vec()));
        }
        Ok(Some(Self {
            before: width,
            after: update.tree_width,
            changes,
        }))
    }

    /// Leaves of the tree after it.
    pub fn width(&self) -> u32 {
        self.after
    }

    /// Nodes after it, blank ones included.
    pub fn changes(&self) -> impl Iterator<Item = (u32, Option<&[u8]>)> {
        self.changes
            .iter()
            .map(|(index, node)| (*index, node.as_deref()))
    }

    /// What has to be known.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        self.want(0, nodes_of(self.after), &mut wanted);
        wanted
    }

    fn want(&self, from: u32, count: u32, wanted: &mut Wanted) {
        let root = root_of(from, count);
        if self.is_known(from, count) {
            wanted.hashes.push(root);
            return;
        }
        if self.is_new(from) {
            // Nothing of it was there before.
            return;
        }
        if root < nodes_of(self.before) && !self.changes.contains_key(&root) {
            wanted.nodes.push(root);
        }
        if count > 1 {
            self.want(from, count / 2, wanted);
            self.want(root + 1, count / 2, wanted);
        }
    }

    /// A subtree that was there before and is as it was.
    fn is_known(&self, from: u32, count: u32) -> bool {
        let untouched = self.changes.range(from..from + count).next().is_none();
        untouched && from + count <= nodes_of(self.before)
    }

    fn is_new(&self, from: u32) -> bool {
        from >= nodes_of(self.before)
    }

    /// Hashes of all subtrees that are not as they were, the whole tree's among them. `nodes` and `hashes` hold what was [`Patch::wanted`]; a node that is
    /// not there is blank.
    ///
    /// # Errors
    /// A hash is not there.
    pub fn hashes(&self, suite: Suite, nodes: &Nodes, hashes: &Hashes) -> Read<Hashes> {
        let mut made = Hashes::new();
        let known = Known {
            suite,
            nodes,
            hashes,
        };
        let whole = self.hash(0, nodes_of(self.after), &known, &mut made)?;
        // Also where nothing changed.
        made.insert(self.root(), whole);
        Ok(made)
    }

    /// The index of the root after it.
    pub fn root(&self) -> u32 {
        root_of(0, nodes_of(self.after))
    }

    fn hash(&self, from: u32, count: u32, known: &Known<'_>, made: &mut Hashes) -> Read<Vec<u8>> {
        let root = root_of(from, count);
        if self.is_known(from, count) {
            let hash = known.hashes.get(&root).cloned();
            return hash.ok_or(Malformed("a subtree's hash is missing"));
        }
        let node = match self.changes.get(&root) {
            Some(changed) => changed.as_deref(),
            None => known.nodes.get(&root).map(Vec::as_slice),
        };
        let children = if count > 1 {
            let left = self.hash(from, count / 2, known, made)?;
            let right = self.hash(root + 1, count / 2, known, made)?;
            Some((left, right))
        } else {
            None
        };
        let hash = node_hash(known.suite, root, node, children);
        made.insert(root, hash.clone());
        Ok(hash)
    }
}

struct Known<'k> {
    suite: Suite,
    nodes: &'k Nodes,
    hashes: &'k Hashes,
}

/// Nodes of a tree of so many leaves.
fn nodes_of(width: u32) -> u32 {
    width.saturating_mul(2).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Tree, node::tests::sample};

    const SUITE: Suite = Suite::X25519Aes128;

    /// Patches a tree, and compares with hashing all of it.
    fn check(before: &Tree, after: &Tree) {
        let update = after.update_since(before);
        let patch = Patch::read(&update, before.width()).unwrap().unwrap();
        let wanted = patch.wanted();
        let all = before.hashes(SUITE);
        let nodes: Nodes = before
            .nodes()
            .filter(|(index, _)| wanted.nodes.contains(index))
            .map(|(index, node)| (index, node.to_vec()))
            .collect();
        let hashes: Hashes = all
            .into_iter()
            .filter(|(index, _)| wanted.hashes.contains(index))
            .collect();
        assert_eq!(
            hashes.len(),
            wanted.hashes.len(),
            "only what is there is wanted"
        );
        let made = patch.hashes(SUITE, &nodes, &hashes).unwrap();
        assert_eq!(made[&patch.root()], after.hash(SUITE));
        let whole = after.hashes(SUITE);
        for (index, hash) in &made {
            assert_eq!(hash, &whole[index], "of {index}");
        }
        // Together with what stays, it is all that the next Commit may want.
        let mut kept = before.hashes(SUITE);
        kept.extend(made);
        kept.retain(|index, _| whole.contains_key(index));
        assert_eq!(kept, whole);
    }

    #[test]
    fn every_change_of_a_small_tree_hashes_as_the_whole_tree_does() {
        for width in [1, 2, 4, 8] {
            let mut before = Tree::blank(width).unwrap();
            for index in (0..2 * width - 1).filter(|index| index % 3 != 1) {
                before.set(index, Some(&sample(index, 1))).unwrap();
            }
            for grown in [width, 2 * width, 4 * width] {
                for first in 0..2 * grown - 1 {
                    let mut after = before.clone();
                    after.resize(grown).unwrap();
                    after.set(first, Some(&sample(first, 2))).unwrap();
                    check(&before, &after);
                    let last = (first * 7 + 3) % (2 * grown - 1);
                    after.set(last, None).unwrap();
                    check(&before, &after);
                }
            }
        }
    }

    #[test]
    fn the_work_grows_with_the_depth() {
        let before = Tree::blank(1 << 14).unwrap();
        let mut after = before.clone();
        after.set(4_000, Some(&sample(4_000, 1))).unwrap();
        let patch = Patch::read(&after.update_since(&before), before.width());
        let wanted = patch.unwrap().unwrap().wanted();
        assert_eq!((wanted.nodes.len(), wanted.hashes.len()), (14, 14));
    }

    #[test]
    fn whole_and_narrower_trees_are_no_patches_and_bad_ones_are_refused() {
        let tree = Tree::blank(4).unwrap();
        assert_eq!(Patch::read(&tree.to_update(), 4), Ok(None));
        let mut update = tree.update_since(&tree);
        assert_eq!(Patch::read(&update, 8), Ok(None));
        update.tree_width = 3;
        assert!(Patch::read(&update, 2).is_err());
        update.tree_width = 4;
        update.nodes.push(crate::delivery::v1::TreeNode {
            index: 7,
            node: None,
        });
        assert!(Patch::read(&update, 4).is_err());
        update.nodes[0].index = 0;
        update.nodes[0].node = Some(sample(1, 1).into());
        assert!(Patch::read(&update, 4).is_err());
    }

    #[test]
    fn a_missing_hash_is_an_error() {
        let before = Tree::blank(4).unwrap();
        let mut after = before.clone();
        after.set(0, Some(&sample(0, 1))).unwrap();
        let patch = Patch::read(&after.update_since(&before), 4).unwrap();
        let made = patch.unwrap().hashes(SUITE, &Nodes::new(), &Hashes::new());
        assert!(made.is_err());
    }
}
