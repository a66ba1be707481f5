//! Repairs that tests can undo, so that they show that they would notice.
//!
//! The switches exist only with the feature `mutants`, which tests and the simulation turn on. Without it [`is_on`] is the constant
//! `false`, and the compiler removes what stands behind it; with it no release can be built, so that none ships. A switch holds
//! for the thread that sets it.

#[cfg(all(feature = "mutants", not(debug_assertions)))]
compile_error!(
    "the feature `mutants` undoes repairs: it is for tests, and no release is built with it"
);

/// One repair, undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The client merges its own staged Commit without the check that it makes of everybody else's.
    OwnCommitUnchecked,
    /// The server takes a GroupInfo whose policy is not the group's.
    ServerTakesChangedPolicy,
    /// The server stores a GroupInfo without verifying its signature.
    GroupInfoUnverified,
    /// The server does not look at the removes, the place, and the signatures of an external Commit.
    ExternalCommitUnread,
    /// The server lets a repaired GroupInfo change suite and policy, and its tree hold anybody.
    RepairUncompared,
    /// The server does not compare the leaves that are added with the KeyPackages that the Welcomes name.
    AddedLeafUncompared,
    /// The server lets a Commit leave those in who asked to leave.
    LeavingStaysAtServer,
    /// The server verifies failure reports with the leaves of the stored tree, which a member may have put there.
    ReportKeyFromTree,
    /// A Welcome whose tree cannot be used is never put aside.
    UnusableWelcomeKept,
    /// A device that waits for a return takes every Welcome up to the head that it has read for one that it used.
    WelcomeKnownByHead,
    /// One item's failure ends the client's loop over the others.
    OneFailureEndsTheLoop,
    /// A group that the server does not know any more stays active at the client, and ends its `sync`.
    UnknownGroupIsARefusal,
    /// The client does not look at the server's incarnation.
    IncarnationIgnored,
    /// The client forgets which devices were left out for want of a KeyPackage.
    LeftOutForgotten,
    /// The client takes every proposal for one that it may commit, and builds its Commit with all of them or not at all.
    ProposalsUnjudged,
    /// The client commits proposals that cannot stand in one Commit.
    ProposalConflictsKept,
    /// The client builds its Commit from the same proposals again after the server refused it.
    RefusedProposalsKept,
    /// Proposals of a Commit that the server refused stay in openmls' queue, where no message is framed beside them.
    ProposalsStayQueued,
    /// A device that comes back from outside takes any policy that the GroupInfo says.
    ReturnPolicyUnchecked,
    /// The client takes the member that is at a leaf in the current tree for the sender of an earlier epoch's message.
    SenderByCurrentLeaf,
    /// The client merges leaves that no authority of their domain signed.
    ForeignAuthorityTaken,
    /// The client attributes messages to the name that an unverified certificate claims.
    UnverifiedNamed,
    /// The client frames no message while a leaf of the group does not verify.
    UnverifiedLeafSilences,
    /// The client judges certificates at its own time, so that one that has ended is worth nothing.
    EndedCertificateUnverified,
    /// The client speaks before it removes those who asked to leave.
    LeavingStays,
    /// The client honours a leave request of an earlier membership, or one that has ended.
    OldLeaveHonoured,
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
    /// The history of a status feed is taken from inside its items, which keep the one under which they were signed.
    FeedHistoryOfItems,
    /// A status feed's cursor is a number alone: another item under the same number is taken for the one that was applied.
    FeedPastUncompared,
    /// The time of a status feed's heartbeat is not compared with the clock.
    FeedHeartbeatsTimeless,
    /// Writers are not refused however long the status feed of their domain was not heard.
    FeedAgeUnbounded,
    /// A status of an unknown kind, or about an unknown kind of subject, is passed over.
    FeedUnknownDropped,
    /// Another root or token key behind an Authentication Service's name is taken without a declaration.
    IssuerChangeUndeclared,
}

impl Mutant {
    /// All of them, in the order of the table that `./dev simulate --mutants` prints.
    pub const ALL: &[Self] = &[
        Self::OwnCommitUnchecked,
        Self::ServerTakesChangedPolicy,
        Self::GroupInfoUnverified,
        Self::ExternalCommitUnread,
        Self::RepairUncompared,
        Self::AddedLeafUncompared,
        Self::LeavingStaysAtServer,
        Self::ReportKeyFromTree,
        Self::UnusableWelcomeKept,
        Self::WelcomeKnownByHead,
        Self::OneFailureEndsTheLoop,
        Self::UnknownGroupIsARefusal,
        Self::IncarnationIgnored,
        Self::LeftOutForgotten,
        Self::ProposalsUnjudged,
        Self::ProposalConflictsKept,
        Self::RefusedProposalsKept,
        Self::ProposalsStayQueued,
        Self::ReturnPolicyUnchecked,
        Self::SenderByCurrentLeaf,
        Self::ForeignAuthorityTaken,
        Self::UnverifiedNamed,
        Self::UnverifiedLeafSilences,
        Self::EndedCertificateUnverified,
        Self::LeavingStays,
        Self::OldLeaveHonoured,
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
        Self::FeedHistoryOfItems,
        Self::FeedPastUncompared,
        Self::FeedHeartbeatsTimeless,
        Self::FeedAgeUnbounded,
        Self::FeedUnknownDropped,
        Self::IssuerChangeUndeclared,
    ];
}

#[cfg(feature = "mutants")]
mod switches {
    use std::cell::Cell;

    use super::Mutant;

    thread_local! {
        /// A bit for each mutant, by its place in the enumeration.
        static ON: Cell<u128> = const { Cell::new(0) };
    }

    const _: () = assert!(Mutant::ALL.len() <= 128, "more mutants than bits");

    const fn bit(mutant: Mutant) -> u128 {
        1 << mutant as u32
    }

    /// Whether this repair is undone in this thread.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get() & bit(mutant) != 0
    }

    /// Undoes one repair in this thread, or none.
    pub fn set(mutant: Option<Mutant>) {
        set_all(mutant.as_slice());
    }

    /// Undoes these repairs in this thread, and no others.
    pub fn set_all(mutants: &[Mutant]) {
        ON.set(mutants.iter().fold(0, |on, mutant| on | bit(*mutant)));
    }
}

#[cfg(feature = "mutants")]
pub use switches::{is_on, set, set_all};

/// Whether this repair is undone: never, in what is shipped.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_mutant: Mutant) -> bool {
    false
}
