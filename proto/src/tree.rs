//! A group's public tree as opaque nodes: its hash (RFC 9420 section 7.8) needs node bytes, indices and child hashes only.

mod node;
mod patch;

pub use node::{Node, ParentNode, parse_node};
pub use patch::{Hashes, Nodes, Patch, Wanted};

use crate::{
    delivery::v1::{TreeNode, TreeUpdate},
    suite::Suite,
    wire::{Malformed, Read, Write, exact},
};

/// Nodes that are not blank, each `optional<Node>` with its presence octet, at its index (RFC 9420 appendix C).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    nodes: Vec<Option<Vec<u8>>>,
}

const LEAF: u8 = 1;
const PARENT: u8 = 2;

impl Tree {
    /// A blank tree of `width` leaves.
    ///
    /// # Errors
    /// `width` is no power of two.
    pub fn blank(width: u32) -> Read<Self> {
        check_width(width)?;
        let nodes = usize::try_from(width).map_err(|_| Malformed("tree_width"))? * 2 - 1;
        Ok(Self {
            nodes: vec![None; nodes],
        })
    }

    /// Leaves, also blank ones: a power of two.
    pub fn width(&self) -> u32 {
        u32::try_from(self.nodes.len().div_ceil(2)).unwrap_or(u32::MAX)
    }

    /// Grows or shrinks to `width` leaves; nodes beyond it are gone.
    ///
    /// # Errors
    /// `width` is no power of two.
    pub fn resize(&mut self, width: u32) -> Read<()> {
        let blank = Self::blank(width)?;
        self.nodes.resize(blank.nodes.len(), None);
        Ok(())
    }

    /// Sets a node, or blanks it.
    ///
    /// # Errors
    /// An index beyond the tree, or what [`parse_node`] refuses.
    pub fn set(&mut self, index: u32, node: Option<&[u8]>) -> Read<()> {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.nodes.get_mut(index))
            .ok_or(Malformed("node index"))?;
        node::check(index, node)?;
        *slot = node.map(<[u8]>::to_vec);
        Ok(())
    }

    /// Puts a node back that was checked when it was taken: only its kind is looked at.
    ///
    /// # Errors
    /// An index beyond the tree, or a node of another kind than belongs there.
    pub fn restore(&mut self, index: u32, node: Vec<u8>) -> Read<()> {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|index| self.nodes.get_mut(index))
            .ok_or(Malformed("node index"))?;
        node::check_kind(index, &node)?;
        *slot = Some(node);
        Ok(())
    }

    /// The nodes that are not blank.
    pub fn nodes(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((u32::try_from(index).ok()?, node.as_deref()?)))
    }

    /// Nodes that differ from `older`, blank ones included: what a Commit has to upload.
    pub fn changes_since(&self, older: &Self) -> Vec<(u32, Option<Vec<u8>>)> {
        let most = self.nodes.len().max(older.nodes.len());
        (0..most)
            .filter_map(|index| {
                let new = self.nodes.get(index).cloned().flatten();
                let old = older.nodes.get(index).cloned().flatten();
                (new != old).then(|| (u32::try_from(index).unwrap_or(u32::MAX), new))
            })
            .collect()
    }

    /// The whole tree, as it is sent.
    pub fn to_update(&self) -> TreeUpdate {
        let nodes = self.nodes().map(|(index, node)| TreeNode {
            index,
            node: Some(node.to_vec().into()),
        });
        TreeUpdate {
            full: true,
            tree_width: self.width(),
            nodes: nodes.collect(),
        }
    }

    /// Only what changed since `older`, as it is sent. Nodes that a smaller width leaves out are gone without being named.
    pub fn update_since(&self, older: &Self) -> TreeUpdate {
        let inside = |index: u32| index + 1 < 2 * self.width();
        let changes = self.changes_since(older).into_iter();
        let changes = changes.filter(|(index, _)| inside(*index));
        let nodes = changes.map(|(index, node)| TreeNode {
            index,
            node: node.map(Into::into),
        });
        TreeUpdate {
            full: false,
            tree_width: self.width(),
            nodes: nodes.collect(),
        }
    }

    /// The tree hash of the root.
    pub fn hash(&self, suite: Suite) -> Vec<u8> {
        match self.node_count() {
            0 => Vec::new(),
            count => self.hash_of(suite, 0, count, &mut |_, _| {}),
        }
    }

    /// The hashes of all subtrees.
    pub fn hashes(&self, suite: Suite) -> Hashes {
        let mut hashes = Hashes::new();
        let mut keep = |root, hash: &[u8]| {
            hashes.insert(root, hash.to_vec());
        };
        if self.node_count() > 0 {
            self.hash_of(suite, 0, self.node_count(), &mut keep);
        }
        hashes
    }

    fn node_count(&self) -> u32 {
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    /// The subtree over so many nodes from `from` on; `keep` sees the hash of each subtree.
    fn hash_of(
        &self,
        suite: Suite,
        from: u32,
        count: u32,
        keep: &mut impl FnMut(u32, &[u8]),
    ) -> Vec<u8> {
        let root = root_of(from, count);
        let node = self.nodes.get(root as usize).and_then(|n| n.as_deref());
        let children = (count > 1).then(|| {
            let left = self.hash_of(suite, from, count / 2, keep);
            let right = self.hash_of(suite, root + 1, count / 2, keep);
            (left, right)
        });
        let hash = node_hash(suite, root, node, children);
        keep(root, &hash);
        hash
    }

    /// From the bytes of a ratchet_tree extension (RFC 9420 section 12.4.3.3).
    ///
    /// # Errors
    /// Malformed; a last node that is blank, or no node, which would be a second form of the same tree.
    pub fn from_ratchet_tree(bytes: &[u8]) -> Read<Self> {
        let nodes = exact(bytes, bytes.len(), |r| {
            r.list(|r| r.span(|r| r.optional(Node::read)))
        })?;
        if nodes.last().is_none_or(|(_, present)| present.is_none()) {
            return Err(Malformed("a ratchet tree that ends in a blank node"));
        }
        let leaves = u32::try_from(nodes.len().div_ceil(2)).map_err(|_| Malformed("tree size"))?;
        let mut tree = Self::blank(leaves.max(1).next_power_of_two())?;
        for (index, (bytes, present)) in nodes.into_iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| Malformed("tree size"))?;
            tree.set(index, present.map(|_| bytes))?;
        }
        Ok(tree)
    }

    /// The bytes of a ratchet_tree extension: blank nodes at the end are left out.
    pub fn to_ratchet_tree(&self) -> Vec<u8> {
        let end = self
            .nodes
            .iter()
            .rposition(Option::is_some)
            .map_or(0, |last| last + 1);
        let mut nodes = Vec::new();
        for node in &self.nodes[..end] {
            nodes.put(node.as_deref().unwrap_or(&[0]));
        }
        let mut bytes = Vec::new();
        bytes.put_vector(&nodes);
        bytes
    }
}

/// The root of a subtree over so many nodes is in their middle.
fn root_of(from: u32, count: u32) -> u32 {
    from + count / 2
}

/// RFC 9420 section 7.8: TreeHashInput of a node and its children's hashes, hashed.
fn node_hash(
    suite: Suite,
    index: u32,
    node: Option<&[u8]>,
    children: Option<(Vec<u8>, Vec<u8>)>,
) -> Vec<u8> {
    let mut input = Vec::new();
    // optional<LeafNode> and optional<ParentNode> carry no node type of their own.
    let put_node = |input: &mut Vec<u8>| match node {
        Some([_, _, body @ ..]) => {
            input.put(&[1]);
            input.put(body);
        }
        _ => input.put(&[0]),
    };
    match children {
        None => {
            input.put(&[LEAF]);
            input.put(&(index / 2).to_be_bytes());
            put_node(&mut input);
        }
        Some((left, right)) => {
            input.put(&[PARENT]);
            put_node(&mut input);
            input.put_vector(&left);
            input.put_vector(&right);
        }
    }
    suite.hash(&input)
}

fn check_width(width: u32) -> Read<()> {
    if width.is_power_of_two() {
        Ok(())
    } else {
        Err(Malformed("tree_width is no power of two"))
    }
}

/// A node that may stand at an index of a tree so wide.
fn check_node(width: u32, index: u32, node: Option<&[u8]>) -> Read<()> {
    if index >= width.saturating_mul(2).saturating_sub(1) {
        return Err(Malformed("node index"));
    }
    node::check(index, node)
}

#[cfg(test)]
mod tests {
    use super::{node::tests::sample, *};

    #[test]
    fn the_hash_of_a_blank_pair_is_built_from_its_leaves() {
        let suite = Suite::X25519Aes128;
        let leaf = |index: u8| suite.hash(&[1, 0, 0, 0, index, 0]);
        let mut input = vec![2, 0, 32];
        input.extend(leaf(0));
        input.push(32);
        input.extend(leaf(1));
        assert_eq!(Tree::blank(2).unwrap().hash(suite), suite.hash(&input));
    }

    #[test]
    fn changes_rebuild_the_tree() {
        let mut old = Tree::blank(2).unwrap();
        old.set(0, Some(&sample(0, 7))).unwrap();
        old.set(1, Some(&sample(1, 7))).unwrap();
        let mut new = old.clone();
        new.resize(4).unwrap();
        new.set(1, None).unwrap();
        new.set(6, Some(&sample(6, 8))).unwrap();
        let mut rebuilt = old.clone();
        rebuilt.resize(4).unwrap();
        for (index, node) in new.changes_since(&old) {
            rebuilt.set(index, node.as_deref()).unwrap();
        }
        assert_eq!(rebuilt, new);
    }

    #[test]
    fn a_ratchet_tree_that_ends_blank_is_refused() {
        let leafless = [[0].as_slice(), &[1, 0], &[3, 0, 0, 0]];
        for bytes in leafless {
            assert!(Tree::from_ratchet_tree(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn nodes_in_the_wrong_place_and_odd_widths_are_refused() {
        let mut tree = Tree::blank(2).unwrap();
        assert!(tree.set(0, Some(&sample(1, 7))).is_err());
        assert!(tree.set(1, Some(&sample(0, 7))).is_err());
        assert!(tree.set(0, Some(&[0, 1])).is_err());
        assert!(tree.set(0, Some(&[1, 1, 7])).is_err());
        assert!(tree.set(3, None).is_err());
        assert!(Tree::blank(3).is_err());
        assert!(Tree::blank(0).is_err());
    }
}
