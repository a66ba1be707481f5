//! The wire: both services' protobuf messages, and the bytes that servers and members must agree on.
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

pub mod token;
