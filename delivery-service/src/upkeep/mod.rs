//! Background work. Any number of nodes may do it at the same time: locks in the database decide.
//!
//! | file | what it does |
//! |---|---|
//! | [`status_feed`] | revocations, as the Authentication Services sign them |
//! | [`revocations`] | revoked devices marked in their groups |
//! | [`requests`] | asks one member that is online to remove them, or to report an epoch |
//! | [`warming`] | asks members of a large group to fill its tree |
//! | [`poll`] | what is looked at if no other node calls |
//! | [`retention`] | deletes what is too old |

pub mod poll;
pub mod requests;
pub mod retention;
pub mod revocations;
pub mod status_feed;
pub mod warming;
