//! What writes: each command locks its group, reads under the lock, lets [`crate::ordering`] decide, and writes.
//!
//! | file | RPC |
//! |---|---|
//! | [`create_group`] | `CreateGroup` |
//! | [`submit_commit`] | `SubmitCommit` |
//! | [`send_message`], [`send_messages`] | `SendMessage` alone, and as a stream |
//! | [`leave_group`] | `LeaveGroup` |
//! | [`recovery`] | `ReportEpoch`, `PutGroupInfo`, and Commits taken back |
//! | [`key_packages`] | KeyPackages published, claimed exactly once, deleted |
//! | [`welcomes`] | Welcomes listed and acknowledged |

pub mod create_group;
pub mod key_packages;
pub mod leave_group;
pub mod recovery;
pub mod send_message;
pub mod send_messages;
pub mod submit_commit;
pub mod welcomes;
