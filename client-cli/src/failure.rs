//! Why a command failed, and the exit code that says so to a script.

use chancery_proto::{command_line::InputError, common::v1::Reason, status::Refusal};
use serde_json::{Value, json};
use tonic::Code;
use uuid::Uuid;

use crate::{
    core::{CoreError, pending::Told},
    store::StoreError,
};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The server said no; nothing happened.
    #[error("refused: {0:?}")]
    Refused(Box<Refusal>),
    /// No answer in time.
    #[error("no answer: {refusal:?}")]
    Unanswered {
        /// The last thing heard.
        refusal: Box<Refusal>,
        /// It may have been carried out; what was sent is kept, and `sync` finds out.
        kept: bool,
        /// The id under which it is kept, where it has one.
        message_id: Option<[u8; 16]>,
    },
    /// The member's own state or a check says no.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// The profile cannot be used.
    #[error("{0}")]
    Profile(String),
    /// The command makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What the command was given to read cannot be used; nothing of it was.
    #[error(transparent)]
    Input(#[from] InputError),
    /// This device's own state does not allow it.
    #[error("{message}")]
    NotAllowed {
        /// Its name for scripts.
        reason: &'static str,
        /// What stands in the way, and what to do.
        message: String,
    },
    /// A race was lost too often.
    #[error("lost {races} races in a row")]
    Races {
        /// How many.
        races: u32,
    },
    /// The answer of a server cannot be used.
    #[error("unusable answer: {0}")]
    Answer(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Core(error.into())
    }
}

impl Failure {
    /// The reason that the server gave, if it did.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(refusal) | Self::Unanswered { refusal, .. } => refusal.reason,
            _ => None,
        }
    }

    /// What the server answered to something that was sent, for whoever keeps it; `None` for a failure of this device's own.
    pub fn told(&self) -> Option<Told> {
        match self {
            Self::Unanswered { .. } => Some(Told::Nothing),
            Self::Refused(refusal) => Some(match refusal.reason {
                Some(Reason::StaleEpoch | Reason::EpochVoided | Reason::EpochTooOld) => {
                    Told::Passed
                }
                Some(Reason::PendingRemoval) => Told::Barred,
                _ => Told::Refused,
            }),
            _ => None,
        }
    }

    /// No answer to something that is not kept.
    pub fn unanswered(refusal: Refusal) -> Self {
        Self::Unanswered {
            refusal: Box::new(refusal),
            kept: false,
            message_id: None,
        }
    }

    /// The same, when it is about something that was sent and is kept.
    #[must_use]
    pub fn kept(self) -> Self {
        match self {
            Self::Unanswered {
                refusal,
                message_id,
                ..
            } => Self::Unanswered {
                refusal,
                kept: true,
                message_id,
            },
            other => other,
        }
    }

    /// The same, kept under this id.
    #[must_use]
    pub fn kept_as(self, id: [u8; 16]) -> Self {
        match self {
            Self::Unanswered { refusal, .. } => Self::Unanswered {
                refusal,
                kept: true,
                message_id: Some(id),
            },
            other => other,
        }
    }

    /// The process's exit code, as in `docs/cli.md`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Input(InputError::TooLarge { .. }) | Self::Core(CoreError::TooLarge { .. }) => 11,
            Self::Usage(_) | Self::Input(_) => 2,
            Self::Unanswered { kept: false, .. } => 3,
            Self::Unanswered { kept: true, .. } => 4,
            Self::Races { .. } | Self::NotAllowed { .. } => 5,
            Self::Refused(refusal) => refused(refusal),
            Self::Profile(_) | Self::Core(CoreError::Store(_)) => 9,
            Self::Core(CoreError::Unknown) => 7,
            Self::Core(CoreError::State(state))
                if state == "history_changed" || state == "alarm" =>
            {
                8
            }
            Self::Core(CoreError::State(state)) if state == "needs_rejoin" => 12,
            Self::Core(
                CoreError::State(_)
                | CoreError::Unusable(_)
                | CoreError::LeftOut(_)
                | CoreError::Nothing
                | CoreError::MessageIdReused,
            ) => 5,
            Self::Core(CoreError::Distrusted(_) | CoreError::OtherPolicy(_)) => 6,
            Self::Core(CoreError::Mls(_) | CoreError::OtherLog | CoreError::Copied) => 12,
            Self::Core(CoreError::Malformed(_)) | Self::Answer(_) => 10,
        }
    }

    /// The line on stderr: every failure has the same fields.
    pub fn to_json(&self) -> Value {
        let mut error = match self {
            Self::Refused(refusal) | Self::Unanswered { refusal, .. } => json!({
                "message": refusal.text,
                "code": code_name(refusal.code),
                "reason": refusal.reason.map(reason_name),
                "metadata": refusal.metadata,
                "request_id": refusal.request_id,
            }),
            own => {
                let (code, reason) = own.named();
                json!({
                    "message": own.to_string(),
                    "code": code_name(code),
                    "reason": reason,
                    "metadata": own.metadata(),
                    "request_id": null,
                })
            }
        };
        error["exit"] = json!(self.exit_code());
        if let Self::Unanswered {
            kept: true,
            message_id,
            ..
        } = self
        {
            error["kept"] = json!(true);
            error["message_id"] = json!(message_id.map(Uuid::from_bytes));
            error["hint"] = json!(KEPT);
        }
        json!({ "error": error })
    }

    /// Code and reason of a failure of this device's own, said as the server would say them.
    fn named(&self) -> (Code, &'static str) {
        match self {
            Self::Usage(_) => (Code::InvalidArgument, "USAGE"),
            Self::Input(InputError::TooLarge { .. }) | Self::Core(CoreError::TooLarge { .. }) => {
                (Code::ResourceExhausted, "LIMIT_EXCEEDED")
            }
            Self::Input(InputError::NotUtf8 { .. }) => (Code::InvalidArgument, "NOT_UTF8"),
            Self::Input(InputError::Empty { .. }) => (Code::InvalidArgument, "EMPTY"),
            Self::Input(_) => (Code::InvalidArgument, "INPUT_UNREADABLE"),
            Self::NotAllowed { reason, .. } => (Code::FailedPrecondition, *reason),
            Self::Profile(_) => (Code::FailedPrecondition, "PROFILE"),
            Self::Races { .. } => (Code::Aborted, "STALE_EPOCH"),
            Self::Answer(_) => (Code::Internal, "UNUSABLE_ANSWER"),
            Self::Core(error) => core_named(error),
            Self::Refused(_) | Self::Unanswered { .. } => (Code::Unknown, "UNANSWERED"),
        }
    }

    /// Typed details of a failure of this device's own.
    fn metadata(&self) -> Value {
        match self {
            Self::Input(InputError::TooLarge { max, .. }) => {
                json!({ "limit": "input_bytes", "max": max.to_string() })
            }
            Self::Core(CoreError::TooLarge { max, got }) => {
                json!({ "limit": "message_bytes", "max": max.to_string(), "got": got.to_string() })
            }
            Self::Core(CoreError::State(state)) => json!({ "state": state }),
            Self::Races { races } => json!({ "races": races.to_string() }),
            _ => json!({}),
        }
    }
}

/// What a script does about an unknown outcome.
const KEPT: &str = "it is kept: `sync` settles it, and so does the same command; a `send` may name it with --message-id, \
                    `outbox list` shows what is kept";

fn core_named(error: &CoreError) -> (Code, &'static str) {
    match error {
        CoreError::Store(error) if error.is_busy() => (Code::Unavailable, "STORE_BUSY"),
        CoreError::Store(_) => (Code::FailedPrecondition, "STORE"),
        CoreError::Unknown => (Code::NotFound, "GROUP"),
        CoreError::State(state) if state == "history_changed" => {
            (Code::DataLoss, "HISTORY_CHANGED")
        }
        CoreError::State(state) if state == "alarm" => (Code::DataLoss, "ALARM"),
        CoreError::State(state) if state == "needs_rejoin" => {
            (Code::FailedPrecondition, "NEEDS_REJOIN")
        }
        CoreError::Nothing => (Code::FailedPrecondition, "NOTHING_TO_DO"),
        CoreError::Unusable(_) => (Code::FailedPrecondition, "NO_KEY_PACKAGE"),
        CoreError::Distrusted(_) => (Code::PermissionDenied, "DISTRUSTED"),
        CoreError::Malformed(_) => (Code::InvalidArgument, "MALFORMED"),
        CoreError::MessageIdReused => (Code::AlreadyExists, "MESSAGE_ID_REUSED"),
        CoreError::OtherLog => (Code::FailedPrecondition, "OTHER_LOG"),
        CoreError::Copied => (Code::FailedPrecondition, "COPIED"),
        CoreError::Mls(_) => (Code::FailedPrecondition, "MLS"),
        _ => (Code::FailedPrecondition, "GROUP_STATE"),
    }
}

/// As in `google.rpc.Code`.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Without the prefix.
pub fn reason_name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

fn refused(refusal: &Refusal) -> u8 {
    match refusal.code {
        Code::Aborted | Code::FailedPrecondition | Code::AlreadyExists | Code::OutOfRange => 5,
        Code::PermissionDenied | Code::Unauthenticated => 6,
        Code::NotFound => 7,
        Code::DataLoss => 8,
        Code::InvalidArgument | Code::Unimplemented => 10,
        Code::ResourceExhausted => 11,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: Code) -> Box<Refusal> {
        Box::new(Refusal::from_status(&tonic::Status::new(code, "x")))
    }

    #[test]
    fn every_kind_of_failure_has_the_exit_code_of_the_documentation() {
        let state = |s: &str| Failure::Core(CoreError::State(s.into()));
        let cases = [
            (Failure::Usage("x".into()), 2),
            (Failure::unanswered(*refusal(Code::Unavailable)), 3),
            (Failure::unanswered(*refusal(Code::Unavailable)).kept(), 4),
            (Failure::Refused(refusal(Code::Aborted)), 5),
            (Failure::Races { races: 9 }, 5),
            (Failure::Refused(refusal(Code::PermissionDenied)), 6),
            (Failure::Refused(refusal(Code::NotFound)), 7),
            (Failure::Core(CoreError::Unknown), 7),
            (Failure::Refused(refusal(Code::DataLoss)), 8),
            (state("history_changed"), 8),
            (Failure::Profile("x".into()), 9),
            (Failure::Refused(refusal(Code::InvalidArgument)), 10),
            (Failure::Refused(refusal(Code::ResourceExhausted)), 11),
            (Failure::Core(CoreError::TooLarge { max: 1, got: 2 }), 11),
            (
                Failure::Input(InputError::TooLarge {
                    name: "x".into(),
                    max: 1,
                }),
                11,
            ),
            (Failure::Input(InputError::Empty { name: "x".into() }), 2),
            (
                Failure::NotAllowed {
                    reason: "ALREADY_ENROLLED",
                    message: "x".into(),
                },
                5,
            ),
            (Failure::Core(CoreError::MessageIdReused), 5),
            (state("needs_rejoin"), 12),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit_code(), code, "{failure}");
            let said = failure.to_json();
            for field in [
                "exit",
                "code",
                "reason",
                "message",
                "metadata",
                "request_id",
            ] {
                assert!(said["error"].get(field).is_some(), "no {field} in {said}");
            }
        }
    }
}
