//! Repairs that tests can undo, so that they show that they would notice.
//!
//! The switches exist only with the feature `mutants`, which nothing that is shipped turns on. Without it [`is_on`] is the
//! constant `false`, and the compiler removes what stands behind it. A switch holds for the thread that sets it.

/// One repair, undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The client merges its own staged Commit without the check that it makes of everybody else's.
    OwnCommitUnchecked,
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
