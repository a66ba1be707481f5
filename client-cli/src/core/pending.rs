//! What a device has in flight, as a machine without IO and without MLS: what it does when an answer comes, when none comes, and when the log shows an
//! entry. The model checker drives this machine, and so does the client.

use serde::{Deserialize, Serialize};

use super::records::Operation;

/// What the server answered to something that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Told {
    /// It stands, now or from an earlier attempt.
    Accepted,
    /// Its epoch is over: another Commit was first, the message's epoch is too old, or the epoch was taken back.
    Passed,
    /// Revoked members must be removed first.
    Barred,
    /// No, for good; nothing happened.
    Refused,
    /// No answer: it may have been carried out.
    Nothing,
}

/// What to do with a Commit that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CommitStep {
    /// Keep its bytes; the same ones are sent again.
    Keep,
    /// It stands: it is merged where it stands in the log, after what came before it.
    TakeOver,
    /// Read the log, whose entry of the winner clears it; what is left of it is dropped then.
    GiveWay,
    /// Drop it, and note who must be removed before it is built again.
    Heed,
    /// Drop it.
    Drop,
}

/// After an answer to a Commit, or to the lack of one.
pub fn commit_answered(operation: Operation, told: Told) -> CommitStep {
    match told {
        Told::Accepted => CommitStep::TakeOver,
        Told::Nothing => CommitStep::Keep,
        // Only a member's own log knows the winner; who comes from outside builds it anew on what the server holds.
        Told::Passed if operation == Operation::Commit => CommitStep::GiveWay,
        Told::Barred if operation == Operation::Commit => CommitStep::Heed,
        Told::Passed | Told::Barred | Told::Refused => CommitStep::Drop,
    }
}

/// What to do with a message that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageStep {
    /// Keep its bytes; the same ones are sent again.
    Keep,
    /// It stands.
    Done,
    /// Read the log and frame it in the epoch that is current then, under the same id: it surely was not taken.
    Frame,
    /// The same, after those who must be removed are.
    Heed,
    /// Forget it.
    Forget,
}

/// After an answer to a message, or to the lack of one.
pub fn message_answered(told: Told) -> MessageStep {
    match told {
        Told::Accepted => MessageStep::Done,
        Told::Nothing => MessageStep::Keep,
        Told::Passed => MessageStep::Frame,
        Told::Barred => MessageStep::Heed,
        Told::Refused => MessageStep::Forget,
    }
}

/// What an entry of the log means for a Commit that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryStep {
    /// It is this Commit: merge it.
    Merge,
    /// Another one was first: clear it, then merge the other.
    Clear,
    /// Nothing.
    Pass,
}

/// When an entry comes: known by its id, whatever was answered or lost.
pub fn entry_came<Id: PartialEq + ?Sized>(
    pending: Option<&Id>,
    id: &Id,
    commit: bool,
) -> EntryStep {
    match pending {
        Some(own) if own == id => EntryStep::Merge,
        Some(_) if commit => EntryStep::Clear,
        _ => EntryStep::Pass,
    }
}
