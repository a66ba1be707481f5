//! The chassis that both services stand on. It knows no domain word.
//!
//! | module | what it does |
//! |---|---|
//! | [`lifecycle`] | signals, drain, end; supervised tasks |
//! | [`items`] | loops in which one item's failure ends nothing but itself |
//! | [`listen`] | sockets; plaintext only where nobody else can listen in |
//! | [`server`], `layers` | gRPC with health, reflection, request ids, deadlines, permits, metrics |
//! | [`ops`] | `/metrics`, `/healthz`, `/readyz` |
//! | [`telemetry`] | logs, best effort |
//! | [`db`], [`status`] | pool and transactions; failures as refusals |
//! | [`migrate`] | migrations and schema compatibility |
//! | [`local_postgres`] | a private PostgreSQL, supervised |
//! | `test_db` | databases for tests (feature `test-support`) |

mod cork;
pub mod db;
pub mod items;
mod layers;
pub mod lifecycle;
pub mod listen;
pub mod local_postgres;
pub mod migrate;
pub mod ops;
pub mod server;
pub mod status;
pub mod telemetry;
#[cfg(feature = "test-support")]
pub mod test_db;
