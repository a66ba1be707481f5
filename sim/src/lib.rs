//! Worlds without a process and without a database: the real decisions of the service, and the real client, in one thread.
//!
//! | module | what |
//! |---|---|
//! | [`model`] | small worlds, explored completely: the service's decisions and the client's machine of what is under way |
//! | [`simulation`] | whole groups: real members, a bad network, time that a seed decides |
//! | [`adversary`] | a hostile member with full keys among honest ones |

pub mod adversary;
pub mod model;
pub mod simulation;
