//! What a member on the wire contract needs of an MLS library. Bytes are RFC 9420's.

/// An epoch that this member began: what the Delivery Service stores of it.
#[derive(Debug, Clone)]
pub struct Epoch {
    /// MLSMessage(GroupInfo) with external_pub, without the tree.
    pub group_info: Vec<u8>,
    /// The ratchet tree, section 12.4.3.3.
    pub tree: Vec<u8>,
}

/// A Commit that was made.
#[derive(Debug, Clone)]
pub struct Made {
    /// MLSMessage.
    pub commit: Vec<u8>,
    /// MLSMessage(Welcome) for everybody that it adds.
    pub welcome: Option<Vec<u8>>,
    /// The epoch that it begins.
    pub epoch: Epoch,
}

/// What a message was.
#[derive(Debug, Clone)]
pub enum Processed {
    /// A text.
    Application(Vec<u8>),
    /// A proposal; the leaf that it removes, if it does.
    Proposal(Option<u32>),
    /// A Commit, applied; whether this member is still in.
    Commit {
        /// Still a member.
        active: bool,
    },
}

/// What members compare.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The epoch.
    pub epoch: u64,
    /// Section 8.7.
    pub authenticator: Vec<u8>,
    /// Section 8.5, with the label of the run.
    pub exporter: Vec<u8>,
}

/// Who a device is, for an engine to be made.
#[derive(Debug, Clone)]
pub struct Identity<'a> {
    /// Its one leaf certificate, DER.
    pub certificate: &'a [u8],
    /// Its secret key: an Ed25519 seed, or a P-256 scalar.
    pub secret: &'a [u8],
    /// Its raw public key.
    pub public_key: &'a [u8],
}

/// An MLS library behind one device.
///
/// # Errors
/// Every method: whatever the library says.
pub trait Engine {
    /// Which library.
    fn library(&self) -> &'static str;

    /// MLSMessage(KeyPackage), its private part kept.
    fn key_package(&mut self, last_resort: bool) -> anyhow::Result<Vec<u8>>;

    /// A group of one, with this policy in its GroupContext.
    fn create(&mut self, group: &[u8], policy: &[u8]) -> anyhow::Result<Epoch>;

    /// Joins by MLSMessage(Welcome) and the tree.
    fn join(&mut self, group: &[u8], welcome: &[u8], tree: &[u8]) -> anyhow::Result<()>;

    /// Leaf indices and certificates.
    fn roster(&mut self, group: &[u8]) -> anyhow::Result<Vec<(u32, Vec<u8>)>>;

    /// A Commit with a path, taking in every proposal by reference; it stays pending.
    fn commit(
        &mut self,
        group: &[u8],
        add: &[Vec<u8>],
        remove: &[u32],
        aad: &[u8],
    ) -> anyhow::Result<Made>;

    /// The pending Commit was accepted.
    fn apply_pending(&mut self, group: &[u8]) -> anyhow::Result<()>;

    /// Another one was.
    fn clear_pending(&mut self, group: &[u8]) -> anyhow::Result<()>;

    /// Somebody else's message.
    fn process(&mut self, group: &[u8], message: &[u8]) -> anyhow::Result<Processed>;

    /// MLSMessage(PrivateMessage) of a text.
    fn send(&mut self, group: &[u8], text: &[u8], aad: &[u8]) -> anyhow::Result<Vec<u8>>;

    /// MLSMessage(PrivateMessage) of a Remove proposal, which is kept.
    fn propose_remove(&mut self, group: &[u8], leaf: u32, aad: &[u8]) -> anyhow::Result<Vec<u8>>;

    /// An external Commit that replaces this device's old leaf; its state replaces the old one.
    fn external(
        &mut self,
        group: &[u8],
        group_info: &[u8],
        tree: &[u8],
        aad: &[u8],
    ) -> anyhow::Result<Made>;

    /// What members compare.
    fn secrets(&mut self, group: &[u8], label: &str) -> anyhow::Result<Secrets>;

    /// Forgets what is in memory and goes on from what was stored.
    fn restart(&mut self) -> anyhow::Result<()>;
}
