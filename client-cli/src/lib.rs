//! The member of encrypted groups: a library, and the command line on top of it.
//!
//! | module | what |
//! |---|---|
//! | [`core`] | the member without IO: groups, Commits, entries, checks |
//! | [`store`] | one SQLite file, sealed, one transaction per step |
//! | [`surroundings`] | time and chance |
//! | [`transport`] | channels, and the loop that repeats what got no answer |
//! | [`member`] | the three together: every operation of a device |
//! | [`profile`] | the folder of a device |
//! | [`cli`] | arguments, commands, JSON |
//! | [`progress`] | how far something long has come |
//! | [`failure`] | why something failed, and its exit code |
//! | [`outcomes`] | loops in which one item's failure ends nothing else |
//! | [`fault`] | crashes on purpose, for tests |

pub mod cli;
pub mod core;
pub mod failure;
pub mod fault;
pub mod member;
pub mod outcomes;
pub mod profile;
pub mod progress;
pub mod store;
pub mod surroundings;
pub mod transport;
