//! Pure derivations around [`Group::decide`](crate::ordering::group::Group::decide), without input or output. The service, the simulation, and
//! the exploration run the same ones.
//!
//! | module | what |
//! |---|---|
//! | [`content`] | what is wrong with GroupInfo, tree, and external leaf of a Commit, of a new group, of a repair |
//! | [`facts`] | what a Commit is decided on: from its request and what was read under the group's lock |

pub mod content;
pub mod facts;
pub mod group;
