//! The member without IO: what it keeps of a group, what it sends, and what it makes of the log.
//!
//! | module | what |
//! |---|---|
//! | [`records`] | what is kept beside openmls' own state, and the transaction it is kept in |
//! | [`identity`] | the device's key and certificate; who a leaf is |
//! | [`group`] | configuration, creation, the roster, the tree as nodes |
//! | [`commit`] | building a Commit with its CommitInfo, an application message |
//! | [`check`] | what a member refuses in a Commit |
//! | [`apply`] | one entry of the log: process, merge, journal |
//! | [`join`] | by Welcome, by external Commit |

pub mod apply;
pub mod check;
pub mod commit;
pub mod group;
pub mod identity;
pub mod join;
pub mod records;

/// Why the core cannot do it.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// openmls says no.
    #[error("mls: {0}")]
    Mls(String),
    /// The store cannot be used.
    #[error("store: {0}")]
    Store(String),
    /// Bytes that do not parse.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A leaf that this device does not trust.
    #[error("not trusted: {0}")]
    Distrusted(String),
    /// The group is not known here, or its state does not allow it.
    #[error("the group's state does not allow it: {0}")]
    State(String),
    /// After catching up nothing is left to do.
    #[error("nothing is left to do")]
    Nothing,
}

impl From<chancery_proto::wire::Malformed> for CoreError {
    fn from(error: chancery_proto::wire::Malformed) -> Self {
        Self::Malformed(error.0.to_owned())
    }
}

/// An openmls error, by its text.
pub(crate) fn mls(error: impl std::fmt::Display) -> CoreError {
    CoreError::Mls(error.to_string())
}
