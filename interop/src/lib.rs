//! Other MLS stacks as members: through the real services, over real gRPC and PostgreSQL.
//!
//! | module | what |
//! |---|---|
//! | [`world`] | the services in this process, invitations |
//! | [`wire`] | a device on the wire contract alone: nothing of our client is in it |
//! | [`stack`] | what a member can do, whatever MLS library it stands on |
//! | [`openmls_member`] | our client as a member |
//! | [`contract_member`] | a member on the contract alone, on any [`engine`] |
//! | [`mls_rs_engine`], [`ts_engine`] | mls-rs; ts-mls in a Node process |
//! | [`scenario`], [`scenarios`] | a scenario's cast and its checks; the scenarios |
//! | [`matrix`] | which stacks play which roles, and what came of it |

pub mod contract_member;
pub mod engine;
pub mod matrix;
pub mod mls_rs_engine;
pub mod openmls_member;
pub mod scenario;
pub mod scenarios;
pub mod stack;
pub mod ts_engine;
pub mod wire;
pub mod world;
