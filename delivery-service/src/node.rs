//! One node of the service: what every use case shares.

use std::sync::Arc;

use service_kit::db::Db;
use tokio::sync::{Notify, Semaphore};

use crate::{
    access::{domains::Domains, gate::Gate, issuers::Issuers},
    config::Config,
    error::Error,
    hub::Hub,
    log::batch::Batcher,
};

/// What every call of a node needs: one pointer, since each of thousands of streams holds one. A node holds no state that another node would miss.
#[derive(Debug, Clone)]
pub struct Node(Arc<Parts>);

impl From<Parts> for Node {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for Node {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What a [`Node`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// The database.
    pub db: Db,
    /// Where messages are appended.
    pub batch: Batcher,
    /// Wake-ups of this node's streams.
    pub hub: Hub,
    /// Keys of the Authentication Services.
    pub issuers: Issuers,
    /// Their domains.
    pub domains: Domains,
    /// Token checks.
    pub gate: Gate,
    /// Rung when a revocation was recorded.
    pub revoked: Arc<Notify>,
    /// Streams that read what they missed; the others wait.
    pub catching_up: Arc<Semaphore>,
    /// Options.
    pub config: Config,
}

impl Node {
    /// As [`Limits::within`](crate::config::Limits::within).
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED` with the limit's name.
    pub fn within(&self, limit: &'static str, max: u32, got: usize) -> Result<(), Error> {
        self.config.limits.within(limit, max, got)
    }
}
