//! Other MLS stacks: as members through the real services, over real gRPC and PostgreSQL; and step by step in the working group's own test protocol.
//!
//! | module | what |
//! |---|---|
//! | [`world`] | the services in this process, invitations |
//! | [`wire`] | a device on the wire contract alone: nothing of our client is in it |
//! | [`stack`] | what a member can do, whatever MLS library it stands on |
//! | [`openmls_member`] | our client as a member |
//! | [`contract`] | what requests and entries are made of, for every member on the contract |
//! | [`contract_member`] | a member on the contract alone, on any [`engine`] |
//! | [`mls_rs_engine`], [`ts_engine`] | mls-rs; ts-mls in a Node process |
//! | [`ts_member`], [`node_process`] | a member that is a Node program of its own |
//! | [`scenario`], [`scenarios`] | a scenario's cast and its checks; the scenarios |
//! | [`conformance`] | the contract rule by rule, against any server |
//! | [`matrix`] | every scenario with every assignment |
//! | [`large`] | one large group of all stacks |
//! | [`mls_client`] | the working group's own test protocol: servers over openmls and mls-rs |
//! | [`runner`] | its scripts, with every assignment of servers to actors |
//! | [`vectors`] | the working group's test vectors, from a folder |
//! | [`plan`], [`report`] | which stacks play which roles; what came of it |

pub mod conformance;
pub mod contract;
mod contract_log;
pub mod contract_member;
pub mod engine;
pub mod large;
pub mod matrix;
pub mod mls_client;
pub mod mls_rs_engine;
pub mod node_process;
pub mod openmls_member;
pub mod plan;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod scenarios;
pub mod stack;
pub mod ts_engine;
pub mod ts_member;
pub mod vectors;
pub mod wire;
pub mod world;
