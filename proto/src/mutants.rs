//! Repairs that tests can undo, so that they show that they would notice.
//!
//! The switches exist only with the feature `mutants`, which nothing that is shipped turns on. Without it [`is_on`] is the
//! constant `false`, and the compiler removes what stands behind it. A switch holds for the thread that sets it.

/// One repair, undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The client merges its own staged Commit without the check that it makes of everybody else's.
    OwnCommitUnchecked,
    /// HPKE public keys are taken whatever their form, at publish, in leaves and in parent nodes.
    HpkeKeyFormUnchecked,
    /// Leaves are taken whatever their source, capabilities and extensions say.
    LeafRulesUnchecked,
    /// KeyPackages are taken whatever their extensions, and with one key for `init_key` and leaf.
    KeyPackageRulesUnchecked,
    /// Leaf extensions of a GREASE type are let in.
    GreaseExtensionTaken,
    /// Tree nodes are taken by their first two octets, whatever follows.
    TreeNodeUnparsed,
    /// A Welcome is cut whatever suite it says it is of.
    WelcomeSuiteUnchecked,
    /// A member takes the leaves that a Commit brings whatever their form.
    CommitLeavesUnchecked,
    /// A member takes the parent nodes of a Commit's path whatever their keys.
    CommitParentsUnchecked,
    /// A committer leaves leaves in that nobody can encrypt to.
    UnreachableLeavesStay,
    /// The client does not look at the KeyPackages that it claimed, so that one bad one fails its whole batch.
    ClaimedKeyPackagesUnchecked,
    /// A last resort that was given out is not renewed by its owner.
    UsedLastResortStays,
}

impl Mutant {
    /// All of them, in the order of the table that `./dev simulate --mutants` prints.
    pub const ALL: &[Self] = &[
        Self::OwnCommitUnchecked,
        Self::HpkeKeyFormUnchecked,
        Self::LeafRulesUnchecked,
        Self::KeyPackageRulesUnchecked,
        Self::GreaseExtensionTaken,
        Self::TreeNodeUnparsed,
        Self::WelcomeSuiteUnchecked,
        Self::CommitLeavesUnchecked,
        Self::CommitParentsUnchecked,
        Self::UnreachableLeavesStay,
        Self::ClaimedKeyPackagesUnchecked,
        Self::UsedLastResortStays,
    ];
}

#[cfg(feature = "mutants")]
mod switches {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this repair is undone in this thread.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }

    /// Undoes one repair in this thread, or none.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }
}

#[cfg(feature = "mutants")]
pub use switches::{is_on, set};

/// Whether this repair is undone: never, in what is shipped.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_mutant: Mutant) -> bool {
    false
}
