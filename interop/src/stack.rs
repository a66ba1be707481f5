//! What a member can do, whatever MLS library it stands on.

use tonic::async_trait;

use crate::wire::Person;

/// What all members of a group must agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// MLS epoch.
    pub epoch: u64,
    /// RFC 9420 section 8.7.
    pub epoch_authenticator: Vec<u8>,
    /// RFC 9420 section 8.5, label `chancery interop`, empty context, 32 bytes.
    pub exporter: Vec<u8>,
    /// Everybody in the ratchet tree, sorted.
    pub members: Vec<Person>,
}

/// The exporter's label in [`State`].
pub const EXPORTER_LABEL: &str = "chancery interop";

/// What became of a Commit that was ready before another one came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Race {
    /// It was the first.
    Won {
        /// Its seq.
        seq: u64,
    },
    /// It was refused with STALE_EPOCH, and the refusal named this winner.
    Lost {
        /// The winner's seq.
        winner_seq: u64,
    },
}

/// A change of a group's membership or keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// Devices to add.
    pub add: Vec<Person>,
    /// Devices to remove.
    pub remove: Vec<Person>,
}

/// One enrolled member. A Commit without adds and removes renews the committer's keys.
#[async_trait(?Send)]
pub trait Stack {
    /// Which library.
    fn library(&self) -> &'static str;

    /// Who it is.
    fn person(&self) -> Person;

    /// Creates a group; its id.
    async fn create(&mut self) -> anyhow::Result<Vec<u8>>;

    /// Uses Welcomes and reads a group's log to its head.
    async fn sync(&mut self, group: &[u8]) -> anyhow::Result<()>;

    /// Commits a change, again and again until no race is lost; the seq.
    async fn commit(&mut self, group: &[u8], change: &Change) -> anyhow::Result<u64>;

    /// Makes a Commit that renews the own keys and keeps it.
    async fn prepare(&mut self, group: &[u8]) -> anyhow::Result<()>;

    /// Submits what was prepared, once.
    async fn submit_prepared(&mut self, group: &[u8]) -> anyhow::Result<Race>;

    /// Sends a text; its seq.
    async fn send(&mut self, group: &[u8], text: &str) -> anyhow::Result<u64>;

    /// Sends a text and, as if the answer had not come, the same request again; both answers' seqs.
    async fn send_twice(&mut self, group: &[u8], text: &str) -> anyhow::Result<[u64; 2]>;

    /// Frames all texts and sends the last one first; their seqs. `None`: this stack's member keeps its messages in order.
    async fn send_backwards(
        &mut self,
        group: &[u8],
        texts: &[String],
    ) -> anyhow::Result<Option<Vec<u64>>>;

    /// Asks the others to remove it; the request's seq.
    async fn leave(&mut self, group: &[u8]) -> anyhow::Result<u64>;

    /// Proposes to remove a member, by reference; the proposal's seq. `None`: this stack's member does not do that.
    async fn propose_remove(&mut self, group: &[u8], whom: Person) -> anyhow::Result<Option<u64>>;

    /// Loses the group's state and comes back by an external Commit; the seq.
    async fn resync(&mut self, group: &[u8]) -> anyhow::Result<u64>;

    /// Drops what is in memory and opens the store again.
    async fn restart(&mut self) -> anyhow::Result<()>;

    /// What it agrees on with the others.
    fn state(&mut self, group: &[u8]) -> anyhow::Result<State>;

    /// Others' and own texts in the order of the log.
    fn texts(&mut self, group: &[u8]) -> anyhow::Result<Vec<String>>;
}
