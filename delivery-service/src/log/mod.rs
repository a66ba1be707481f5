//! The one place that appends to a group's log: `entry` writes one entry under the group's lock, [`message`] says what
//! a message's entry holds and how it is answered, [`batch`] writes messages that come at the same time in one
//! transaction.

pub mod batch;
pub(crate) mod entry;
pub mod message;
