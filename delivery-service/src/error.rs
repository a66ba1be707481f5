//! What can go wrong, and its one exhaustive map to `tonic::Status`.

use chancery_proto::{common::v1::Reason, key_package::KeyPackageFault, leaf::LeafFault};
use service_kit::{
    db::{DbError, TxError},
    items::ItemError,
};
use tonic::Status;

use crate::ordering::group::Rejection;

/// A refusal or failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log does not take it.
    #[error("rejected: {0:?}")]
    Rejected(Rejection),
    /// Refused for this reason; nothing happened.
    #[error("{reason:?}: {text}")]
    Refused {
        /// Machine-readable.
        reason: Reason,
        /// For people; bounded, no payloads.
        text: String,
        /// Typed details.
        metadata: Vec<(&'static str, String)>,
    },
    /// A request field cannot be read.
    #[error("{field}: {why}")]
    Malformed {
        /// The field's path.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Larger than a published limit.
    #[error("{limit}: {got} exceeds {max}")]
    Limit {
        /// Its published name.
        limit: &'static str,
        /// The largest allowed value.
        max: u64,
        /// The request's.
        got: u64,
    },
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// What the store holds contradicts itself.
    #[error("corrupt: {0}")]
    Corrupt(&'static str),
}

impl Error {
    /// A refusal without details.
    pub fn refused(reason: Reason, text: impl Into<String>) -> Self {
        Self::Refused {
            reason,
            text: text.into(),
            metadata: Vec::new(),
        }
    }

    /// A leaf or KeyPackage that breaks a rule, with the rule's name.
    fn rule(rule: &'static str, fault: impl ToString) -> Self {
        Self::Refused {
            reason: Reason::CredentialInvalid,
            text: fault.to_string(),
            metadata: vec![("rule", rule.to_owned())],
        }
    }

    /// A field that cannot be read.
    pub fn malformed(field: &'static str, why: impl ToString) -> Self {
        Self::Malformed {
            field,
            why: why.to_string(),
        }
    }

    /// The one answer to an unknown group and to one that the caller is not in.
    pub fn no_group() -> Self {
        Self::Rejected(Rejection::NotFound)
    }
}

impl ItemError for Error {
    fn is_shared(&self) -> bool {
        matches!(self, Self::Db(error) if error.is_shared())
    }
}

impl From<TxError<Self>> for Error {
    fn from(error: TxError<Self>) -> Self {
        match error {
            TxError::Rejected(error) => error,
            TxError::Db(error) => Self::Db(error),
        }
    }
}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<LeafFault> for Error {
    fn from(fault: LeafFault) -> Self {
        Self::rule(fault.rule(), fault)
    }
}

impl From<KeyPackageFault> for Error {
    fn from(fault: KeyPackageFault) -> Self {
        Self::rule(fault.rule(), fault)
    }
}

/// Reason, text and details of a rejection.
fn rejection(rejection: Rejection) -> (Reason, String, Vec<(&'static str, String)>) {
    let epoch_details = |current: u64, seq: u64| {
        vec![
            ("current_epoch", current.to_string()),
            ("epoch_seq", seq.to_string()),
        ]
    };
    match rejection {
        Rejection::NotFound => (Reason::Group, "no such group".into(), vec![]),
        Rejection::DeviceRevoked => (
            Reason::DeviceRevoked,
            "this device was revoked".into(),
            vec![],
        ),
        Rejection::Closed => (Reason::GroupClosed, "the group is closed".into(), vec![]),
        Rejection::MessageIdReused => (
            Reason::MessageIdReused,
            "this message_id was used for other bytes".into(),
            vec![],
        ),
        Rejection::StaleEpoch {
            current_epoch,
            epoch_seq,
            winner_seq,
        } => {
            let mut details = epoch_details(current_epoch, epoch_seq);
            details.push(("winner_seq", winner_seq.to_string()));
            (
                Reason::StaleEpoch,
                format!("the epoch was taken by seq {winner_seq}"),
                details,
            )
        }
        Rejection::EpochInFuture {
            current_epoch,
            epoch_seq,
        } => (
            Reason::EpochInFuture,
            format!("the group is in epoch {current_epoch}"),
            epoch_details(current_epoch, epoch_seq),
        ),
        Rejection::EpochTooOld {
            current_epoch,
            epoch_seq,
        } => (
            Reason::EpochTooOld,
            format!("too old; the group is in epoch {current_epoch}"),
            epoch_details(current_epoch, epoch_seq),
        ),
        Rejection::EpochVoided {
            current_epoch,
            epoch_seq,
            by_seq,
        } => {
            let mut details = epoch_details(current_epoch, epoch_seq);
            details.push(("voided_by_seq", by_seq.to_string()));
            (
                Reason::EpochVoided,
                format!("the epoch was taken back by seq {by_seq}"),
                details,
            )
        }
        Rejection::CommitterBarred => (
            Reason::CommitterBarred,
            "a Commit of this device was voided, and none of another device has settled since"
                .into(),
            vec![],
        ),
        Rejection::PendingRemoval { count } => (
            Reason::PendingRemoval,
            format!("{count} revoked or leaving devices must be removed first"),
            vec![("count", count.to_string())],
        ),
        Rejection::CommitInfo(why) => (Reason::CommitInfoInvalid, why.into(), vec![]),
        Rejection::HistoryChanged => (
            Reason::HistoryChanged,
            "this is not the log that the client saw".into(),
            vec![],
        ),
        Rejection::WelcomeMismatch => (
            Reason::WelcomeMismatch,
            "the Welcomes do not name exactly the added devices".into(),
            vec![],
        ),
        Rejection::GroupInfoMismatch(why) => (Reason::GroupInfoMismatch, why.into(), vec![]),
        Rejection::TreeMismatch(why) => (Reason::TreeMismatch, why.into(), vec![]),
        Rejection::CredentialInvalid(why) => (Reason::CredentialInvalid, why.into(), vec![]),
        Rejection::OtherMembership => (
            Reason::UnknownValue,
            "joined_seq is not that of the current membership".into(),
            vec![],
        ),
        Rejection::Policy(what) => (
            Reason::Policy,
            format!("the group's policy forbids it: {what}"),
            vec![("policy", what.into())],
        ),
    }
}

/// Every error as a status; internals are logged here, once, and stay inside.
pub fn status(error: Error) -> Status {
    use chancery_proto::status;
    match error {
        Error::Rejected(rejected) => {
            let (reason, text, metadata) = rejection(rejected);
            status::refusal(reason, &text, metadata)
        }
        Error::Refused {
            reason,
            text,
            metadata,
        } => status::refusal(reason, &text, metadata),
        Error::Malformed { field, why } => status::malformed(field, &why),
        Error::Limit { limit, max, got } => status::refusal(
            Reason::LimitExceeded,
            &format!("{limit}: {got} exceeds {max}"),
            [
                ("limit", limit.to_owned()),
                ("max", max.to_string()),
                ("got", got.to_string()),
            ],
        ),
        Error::Db(error) => service_kit::status::of_db(&error),
        Error::Corrupt(what) => {
            tracing::error!(what, "the store contradicts itself");
            Status::internal("internal error")
        }
    }
}
