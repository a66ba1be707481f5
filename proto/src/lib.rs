//! The wire: both services' protobuf messages, and the bytes that servers and members must agree on.
//!
//! | module | what it holds |
//! |---|---|
//! | [`common`], [`auth`], [`delivery`] | generated messages and services |
//! | [`wire`] | reader and writer for TLS presentation language |
//! | [`framing`], [`leaf`], [`key_package`], [`group_info`], [`welcome`], [`tree`], [`suite`] | RFC 9420 objects, read without keys |
//! | [`hpke`] | which HPKE public keys can be encrypted to |
//! | [`commit_info`], [`policy`] | what Chancery binds to Commits and groups |
//! | [`content_hash`], [`chain`] | "the same request", and the log's hash chain |
//! | [`certificate`], [`token`], [`signed`] | who is who, and what is signed outside MLS |
//! | [`status`] | refusals, typed |
//! | `forge` | leaves and KeyPackages put together for tests, with the feature of that name |
//! | [`command_line`] | how every program prints JSON and reads text files |
//! | [`mutants`] | repairs that tests can undo |
#![allow(clippy::allow_attributes, reason = "generated code carries its own")]

/// Messages generated from `chancery/common/v1/common.proto`.
pub mod common {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("chancery.common.v1");
    }
}

/// Messages and services generated from `chancery/auth/v1/auth.proto`.
pub mod auth {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("chancery.auth.v1");
    }
}

/// Messages and services generated from `chancery/delivery/v1/delivery.proto`.
pub mod delivery {
    /// Version 1.
    #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
    pub mod v1 {
        tonic::include_proto!("chancery.delivery.v1");
    }
}

/// The compiled descriptors of all files, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/chancery.bin"));

pub mod certificate;
pub mod chain;
pub mod command_line;
pub mod commit_info;
pub mod content_hash;
#[cfg(feature = "forge")]
pub mod forge;
pub mod framing;
pub mod group_info;
pub mod hpke;
pub mod key_package;
pub mod leaf;
pub mod mutants;
pub mod policy;
pub mod signed;
pub mod status;
pub mod suite;
pub mod token;
pub mod tree;
pub mod welcome;
pub mod wire;
