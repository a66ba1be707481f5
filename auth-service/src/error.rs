//! What can go wrong, and its one exhaustive map to `tonic::Status`.

use chancery_proto::{common::v1::Reason, status};
use service_kit::{
    db::{DbError, TxError},
    items::ItemError,
};
use tonic::Status;

/// A refusal or failure of a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Refused for this reason; nothing happened.
    #[error("{reason:?}: {text}")]
    Refused {
        /// Machine-readable.
        reason: Reason,
        /// For people; bounded, no personal data.
        text: &'static str,
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
    /// Something that this service makes itself could not be made.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// A refusal.
    pub fn refused(reason: Reason, text: &'static str) -> Self {
        Self::Refused { reason, text }
    }

    /// A field that cannot be read.
    pub fn malformed(field: &'static str, why: impl ToString) -> Self {
        Self::Malformed {
            field,
            why: why.to_string(),
        }
    }

    /// Fails above a published limit.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn within(limit: &'static str, max: u32, got: usize) -> Result<(), Self> {
        if got as u64 > u64::from(max) {
            return Err(Self::Limit {
                limit,
                max: u64::from(max),
                got: got as u64,
            });
        }
        Ok(())
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Db(error.into())
    }
}

impl From<TxError<Error>> for Error {
    fn from(error: TxError<Error>) -> Self {
        match error {
            TxError::Rejected(error) => error,
            TxError::Db(error) => Self::Db(error),
        }
    }
}

impl From<Error> for TxError<Error> {
    fn from(error: Error) -> Self {
        match error {
            Error::Db(error) => Self::Db(error),
            error => Self::Rejected(error),
        }
    }
}

impl ItemError for Error {
    fn is_shared(&self) -> bool {
        // A conflict ends the transaction, and with it all of its items: it is made again.
        matches!(self, Self::Db(error) if error.is_shared() || matches!(error, DbError::Conflict))
    }
}

/// The one map. Internals are logged here, once, and stripped.
pub fn status(error: Error) -> Status {
    match error {
        Error::Refused { reason, text } => status::refusal(reason, text, []),
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
        Error::Internal(cause) => {
            tracing::error!(cause, "internal error");
            Status::internal("internal error")
        }
    }
}
