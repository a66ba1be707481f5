//! One node of the service: what every use case shares.

use std::sync::Arc;

use service_kit::db::Db;
use tokio::sync::watch;

use crate::{config::Config, feed::Signer, keys::Keys};

/// Handles are cheap to clone; a node holds no state that another node would miss.
#[derive(Debug, Clone)]
pub struct Node {
    /// The database.
    pub db: Db,
    /// What it signs with.
    pub keys: Arc<Keys>,
    /// Signs the status feed.
    pub signer: Arc<Signer>,
    /// Wakes this node's feeds; carries nothing, and may be lost: the feeds poll too.
    pub moved: watch::Sender<()>,
    /// Options.
    pub config: Arc<Config>,
}
