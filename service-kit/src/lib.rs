//! Placeholder.
pub mod local_postgres;
