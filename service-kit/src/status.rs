//! Database failures as refusals.

use chancery_proto::{common::v1::Reason, status};
use tonic::Status;

use crate::db::DbError;

/// The cause of an internal failure is logged here, once, and stays inside.
pub fn of_db(error: &DbError) -> Status {
    match error {
        DbError::Busy | DbError::Conflict => status::refusal(
            Reason::Busy,
            "the database is busy; repeat with the same id",
            [],
        ),
        DbError::Unavailable => status::refusal(
            Reason::Storage,
            "the database cannot be reached; repeat with the same id",
            [],
        ),
        DbError::NoRoom(cause) => {
            tracing::error!(cause = ?cause, "the database has no room");
            status::refusal(
                Reason::Storage,
                "the database has no room; repeat with the same id",
                [],
            )
        }
        DbError::OutcomeUnknown => status::refusal(
            Reason::Storage,
            "the outcome is unknown; repeat with the same id",
            [],
        ),
        DbError::Text => status::malformed("request", "a text with a zero octet"),
        DbError::NotAsAssumed => {
            tracing::error!("something that a statement rests on is not so");
            Status::internal("internal error")
        }
        DbError::Internal(cause) | DbError::Duplicate(cause) => {
            tracing::error!(cause = ?cause, "database error");
            Status::internal("internal error")
        }
    }
}
