//! Loops in which the failure of one item is recorded for that item, and the others go on.
//!
//! Every loop of the member over groups, Welcomes, messages, devices or frames is one of [`Loop`] and runs its items
//! through [`Outcomes`]. What ends such a loop is the same for all of them, and is written down in [`ends_loop`].

use std::fmt::Display;

use chancery_proto::{
    common::v1::Reason,
    mutants::{self, Mutant},
};
use tonic::Code;

use crate::{core::CoreError, failure::Failure, fault};

/// A loop whose items fail alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loop {
    /// `sync`: the groups of this device.
    Groups,
    /// `sync`: groups that the server lists and this profile does not know.
    LostGroups,
    /// Welcomes that wait for this device.
    Welcomes,
    /// Messages of one group that were kept and not accepted yet.
    Unsent,
    /// Messages of one group that were taken back with their epoch.
    SaidAgain,
    /// Replacements of groups that are not finished.
    Replacements,
    /// Groups with devices that were left out.
    LeftOut,
    /// Parts of the devices that are added, one Commit each.
    Added,
    /// `listen`: groups that something is wrong with.
    Mending,
    /// `listen`: what the stream brings.
    Frames,
    /// A profile that is opened: the pinned roots of other domains.
    Roots,
}

impl Loop {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Groups,
        Self::LostGroups,
        Self::Welcomes,
        Self::Unsent,
        Self::SaidAgain,
        Self::Replacements,
        Self::LeftOut,
        Self::Added,
        Self::Mending,
        Self::Frames,
        Self::Roots,
    ];

    /// The name in answers, and of the fault point that breaks the first item ([`fault::breaks`]).
    pub fn name(self) -> &'static str {
        match self {
            Self::Groups => "groups",
            Self::LostGroups => "lost-groups",
            Self::Welcomes => "welcomes",
            Self::Unsent => "unsent",
            Self::SaidAgain => "said-again",
            Self::Replacements => "replacements",
            Self::LeftOut => "left-out",
            Self::Added => "added",
            Self::Mending => "mending",
            Self::Frames => "frames",
            Self::Roots => "roots",
        }
    }
}

/// An item that failed while the others went on.
#[derive(Debug)]
pub struct Failed {
    /// The loop.
    pub of: Loop,
    /// The item, as a person would name it.
    pub item: String,
    /// Why.
    pub failure: Failure,
}

/// What became of the items of one loop.
#[derive(Debug)]
pub struct Outcomes {
    of: Loop,
    seen: usize,
    unanswered: bool,
    failed: Vec<Failed>,
}

impl Outcomes {
    /// Of a loop that has not begun.
    pub fn of(of: Loop) -> Self {
        Self {
            of,
            seen: 0,
            unanswered: false,
            failed: Vec::new(),
        }
    }

    /// Works on one item. Its value, or `None` where it failed, which is recorded. Callers box what is large: futures
    /// that lie in each other are too deep for the compiler at some point.
    ///
    /// # Errors
    /// A failure that is not the item's own and ends the loop: see [`ends_loop`].
    pub async fn run<T>(
        &mut self,
        item: impl Display,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Option<T>, Failure> {
        self.seen += 1;
        let done = match fault::breaks(self.of.name()) && self.seen == 1 {
            true => Err(Failure::Answer("a fault on purpose".into())),
            false => work.await,
        };
        self.record(item, done)
    }

    /// The same for an item whose work is done already.
    ///
    /// # Errors
    /// See [`Outcomes::run`].
    pub fn record<T>(
        &mut self,
        item: impl Display,
        done: Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        let failure = match done {
            Ok(value) => {
                self.unanswered = false;
                return Ok(Some(value));
            }
            Err(failure) => failure,
        };
        let unanswered = matches!(failure, Failure::Unanswered { .. });
        // One item may be beyond the server; when the next one is too, it is the server.
        let ends = ends_loop(&failure) || mutants::is_on(Mutant::OneFailureEndsTheLoop);
        if ends || (unanswered && self.unanswered) {
            return Err(failure);
        }
        self.unanswered = unanswered;
        self.failed.push(Failed {
            of: self.of,
            item: item.to_string(),
            failure,
        });
        Ok(None)
    }

    /// The items that failed since this was asked last, for loops that never end.
    pub fn take_failed(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.failed)
    }

    /// The items that failed.
    pub fn failed(self) -> Vec<Failed> {
        self.failed
    }
}

/// Whether a failure is no item's own. These end a loop: the store cannot be used, nobody answers, or this device may
/// not call at all. An answer of INTERNAL is about the one item that was asked for.
pub fn ends_loop(failure: &Failure) -> bool {
    match failure {
        Failure::Core(CoreError::Store(_)) => true,
        Failure::Unanswered { refusal, .. } => refusal.code != Code::Internal,
        Failure::Refused(refusal) => matches!(
            refusal.reason,
            Some(
                Reason::DeviceRevoked
                    | Reason::UserSuspended
                    | Reason::TokenMissing
                    | Reason::TokenInvalid
                    | Reason::TokenExpired
            )
        ),
        _ => false,
    }
}

/// Whether a person has to look at what failed: not at what the server refused, nor at what was not answered or lost a
/// race, which all come up again by themselves.
pub fn needs_person(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(refusal) => refusal.code == Code::DataLoss,
        Failure::Unanswered { .. } | Failure::Races { .. } => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use chancery_proto::status::{self, Refusal};
    use tonic::Status;

    use super::*;
    use crate::store::StoreError;

    fn refused(reason: Reason) -> Failure {
        let status = status::refusal(reason, "no", []);
        Failure::Refused(Box::new(Refusal::from_status(&status)))
    }

    fn unanswered(status: &Status) -> Failure {
        Failure::unanswered(Refusal::from_status(status))
    }

    #[test]
    fn only_what_is_no_items_own_ends_a_loop() {
        let store = StoreError::Io("no room".into());
        let cases = [
            (Failure::Core(CoreError::Store(store)), true),
            (unanswered(&Status::unavailable("nobody")), true),
            (unanswered(&Status::internal("a hole in the log")), false),
            (refused(Reason::DeviceRevoked), true),
            (refused(Reason::TokenInvalid), true),
            (refused(Reason::Group), false),
            (refused(Reason::HistoryChanged), false),
            (refused(Reason::LimitExceeded), false),
            (Failure::Core(CoreError::Mls("no".into())), false),
            (Failure::Answer("no".into()), false),
            (Failure::Races { races: 3 }, false),
        ];
        for (failure, ends) in cases {
            assert_eq!(ends_loop(&failure), ends, "{failure}");
        }
    }

    #[test]
    fn one_item_that_the_server_cannot_answer_is_passed_over_and_a_second_one_ends_the_loop() {
        let internal = || Err::<(), _>(unanswered(&Status::internal("x")));
        let mut outcomes = Outcomes::of(Loop::Groups);
        assert!(matches!(outcomes.record("a", internal()), Ok(None)));
        assert!(matches!(outcomes.record("b", Ok(7)), Ok(Some(7))));
        assert!(matches!(outcomes.record("c", internal()), Ok(None)));
        assert!(outcomes.record("d", internal()).is_err());
        let failed = outcomes.failed();
        let items: Vec<_> = failed.iter().map(|f| f.item.as_str()).collect();
        assert_eq!(items, ["a", "c"]);
    }
}
