//! What reads.
//!
//! | file | what it does |
//! |---|---|
//! | [`log`] | one page of a log, payloads, trees, GroupInfos, lists |
//! | [`subscribe`] | a stream that follows logs: catching up from the database, then live |
//! | [`welcomes`], [`pending_removals`] | what waits for a device, and who is to be removed |
//! | [`shared_reader`] | what is new in a group, read once for all streams of this node |
//! | [`stream_body`] | the body of a stream, as it is carried by HTTP/2 |

pub mod log;
pub mod pending_removals;
pub mod shared_reader;
pub mod stream_body;
pub mod subscribe;
pub mod welcomes;
