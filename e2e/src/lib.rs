//! Everything that drives real processes: real services on a real PostgreSQL, and every device a process of its own. Worlds without any process are in `sim`.
//!
//! | module | what |
//! |---|---|
//! | [`programs`] | where the binaries are, running one and reading its JSON |
//! | [`server`] | the server side as one process, killed and started again |
//! | [`device`] | a device: a profile and the commands that it runs |
//! | [`bench`](mod@bench) | how fast, by baselines of the same run |
//! | [`chaos`] | the running system under fire: real processes, faults, a recorder and a checker |
//! | [`story`] | the demo, act by act |
//! | [`journals`] | what the devices' own journals say: lost, duplicated, reordered |
//! | [`requests`] | requests that nobody meant, at running services |
//! | [`search`] | a text in a folder, in every form that a server might have written it |
//! | [`tour`] | pages of `docs/` whose commands are run |
//! | [`summary`] | what was counted, and which promises it breaks |

pub mod bench;
pub mod chaos;
pub mod device;
pub mod journals;
pub mod programs;
pub mod requests;
pub mod search;
pub mod server;
pub mod story;
pub mod summary;
pub mod tour;
