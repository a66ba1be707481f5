//! Plays scripts of the `mls_client` protocol with every assignment of servers to actors, and looks closer than "no error".
//!
//! | module | what |
//! |---|---|
//! | [`script`] | a script, read from the JSON that the working group's runner reads too |
//! | [`walk`] | a long random script from a seed |
//! | [`peers`] | servers: started here, or an outsider's |
//! | [`session`] | one script with one assignment, step by step |
//! | `steps`, `subgroups` | what each action does |
//! | [`check`] | what is looked at in every message |
//! | [`play`](mod@play) | which scripts, suites and assignments, and what came of them |

pub mod check;
pub mod peers;
pub mod play;
pub mod script;
pub mod session;
mod steps;
mod subgroups;
pub mod walk;
