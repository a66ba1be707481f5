//! The member without IO: what it keeps of a group, what it sends, and what it makes of the log.
//!
//! | module | what |
//! |---|---|
//! | [`records`] | what is kept beside openmls' own state, in the same transaction |
//! | [`identity`] | the device's key and certificate, the pinned roots, who a leaf is |
//! | [`group`] | configuration, creation, the roster, the tree as nodes |
//! | [`commit`] | which KeyPackages are added, an application message |
//! | `plan` | what a Commit will do, and which KeyPackages it may add |
//! | [`stage`] | builds the Commit of an intent |
//! | [`check`] | what a member refuses in a Commit |
//! | [`leaves`] | the form of leaves, parent nodes and KeyPackages |
//! | [`apply`] | entries of the log: process, merge, journal |
//! | [`outbox`] | messages of this device |
//! | [`consumers`] | how far named listeners were given the journal |
//! | [`pending`] | what is under way, as a machine without IO |
//! | [`join`] | by Welcome, by external Commit |
//! | [`left_out`] | devices that got no leaf, until they are in |
//! | [`proposals`] | what others propose: judged, kept, handed to a Commit |
//! | [`recovery`] | Commits that cannot be merged, Commits taken back |
//! | [`removal`] | who is to be removed, and whose signature says so |

pub mod apply;
pub mod check;
pub mod commit;
pub mod consumers;
pub mod group;
pub mod identity;
pub mod join;
pub mod leaves;
pub mod left_out;
pub mod outbox;
pub mod pending;
mod plan;
pub mod proposals;
pub mod records;
pub mod recovery;
pub mod removal;
pub mod stage;

use crate::store::StoreError;

/// Why the core cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// openmls says no.
    #[error("mls: {0}")]
    Mls(String),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Bytes that do not parse, or that say what they must not.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A committer saw another log of the group.
    #[error("its committer saw another log of this group")]
    OtherLog,
    /// Another copy of this profile wrote it.
    #[error("another copy of this profile wrote it")]
    Copied,
    /// A leaf that this device does not trust.
    #[error("not trusted: {0}")]
    Distrusted(String),
    /// A GroupInfo says another policy than the group has, and no Commit may change that. With what differs.
    #[error("the GroupInfo is not of this group's policy: {0}")]
    OtherPolicy(String),
    /// No KeyPackage of those that were asked for can be used.
    #[error("{0}")]
    Unusable(String),
    /// None of the devices that were asked for has a KeyPackage: each with the reason. They are kept as left out.
    #[error("without a KeyPackage of these devices: {}", reasons(.0))]
    LeftOut(Vec<(String, String)>),
    /// The group is not known here.
    #[error("this device does not know the group")]
    Unknown,
    /// The group's state here does not allow it.
    #[error("the group is {0} on this device")]
    State(String),
    /// After catching up nothing is left to do.
    #[error("nothing is left to do")]
    Nothing,
    /// A `message_id` of this device stands for another text.
    #[error("this message_id was used for another text")]
    MessageIdReused,
    /// A message above the Delivery Service's limit `message_bytes`, which can never be accepted.
    #[error("the message has {got} bytes, and the limit is {max}")]
    TooLarge {
        /// The limit.
        max: u64,
        /// Its bytes.
        got: u64,
    },
}

impl From<chancery_proto::wire::Malformed> for CoreError {
    fn from(error: chancery_proto::wire::Malformed) -> Self {
        Self::Malformed(error.0.to_owned())
    }
}

fn reasons(left_out: &[(String, String)]) -> String {
    let reasons = left_out.iter();
    let reasons: Vec<String> = reasons
        .map(|(device, why)| format!("{device}: {why}"))
        .collect();
    reasons.join(", ")
}

/// An openmls error, by its text.
pub(crate) fn mls(error: impl std::fmt::Display) -> CoreError {
    CoreError::Mls(error.to_string())
}

/// Runs what reads or uses bytes of others with openmls. Its readers have panicked before (GHSA-rrmv-c79f-cf5r): what somebody sends must not end the
/// program, so a panic is an error like any other. What was written is the caller's to undo, as for every error; an open group is to be loaded again.
///
/// # Errors
/// What `work` says, or that it panicked.
pub fn guarded<T>(work: impl FnOnce() -> Result<T, CoreError>) -> Result<T, CoreError> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(CoreError::Mls("a panic, caught".into())))
}

/// What the core needs to know of its surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// This device.
    pub identity: &'a identity::Identity,
    /// The pinned roots.
    pub trust: &'a identity::Trust,
    /// Unix seconds.
    pub now: i64,
    /// How many devices are removed in an hour because somebody's signature says so, and no person of this device.
    pub removals_per_hour: u32,
    /// How long a device that was left out of a group is left to whoever tried to add it, seconds.
    pub left_out_wait_seconds: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_nothing_else_changes() {
        let panics = || guarded(|| -> Result<(), CoreError> { panic!("a reader panicked") });
        assert!(matches!(panics(), Err(CoreError::Mls(_))));
        assert!(matches!(guarded(|| Ok(7)), Ok(7)));
        let refused = guarded(|| Err::<(), _>(CoreError::Nothing));
        assert!(matches!(refused, Err(CoreError::Nothing)));
    }
}
