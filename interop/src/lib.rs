//! Other MLS stacks as members: through the real services, over real gRPC and PostgreSQL.
//!
//! | module | what |
//! |---|---|
//! | [`world`] | the services in this process, invitations |
//! | [`wire`] | a device on the wire contract alone: nothing of our client is in it |
//! | [`stack`] | what a member can do, whatever MLS library it stands on |
//! | [`openmls_member`], [`mls_rs_member`] | our client; mls-rs |
//! | [`scenario`], [`scenarios`] | a scenario's cast and its checks; the scenarios |
//! | [`matrix`] | which stacks play which roles, and what came of it |

pub mod matrix;
pub mod mls_rs_member;
pub mod openmls_member;
pub mod scenario;
pub mod scenarios;
pub mod stack;
pub mod wire;
pub mod world;
