//! Why a command failed, and the exit code that says so to a script.

use chancery_proto::{common::v1::Reason, status::Refusal};
use serde_json::{Value, json};
use tonic::Code;

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
        /// It may have been carried out; what was sent is kept, and the same command or `sync` finds out.
        kept: bool,
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

    /// The same, when it is about something that was sent and is kept.
    #[must_use]
    pub fn kept(self) -> Self {
        match self {
            Self::Unanswered { refusal, .. } => Self::Unanswered {
                refusal,
                kept: true,
            },
            other => other,
        }
    }

    /// The process's exit code, as in `docs/cli.md`.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unanswered { kept: false, .. } => 3,
            Self::Unanswered { kept: true, .. } => 4,
            Self::Races { .. } => 5,
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
                | CoreError::Nothing,
            ) => 5,
            Self::Core(CoreError::Distrusted(_) | CoreError::OtherPolicy(_)) => 6,
            Self::Core(CoreError::Mls(_) | CoreError::OtherLog | CoreError::Copied) => 12,
            Self::Core(CoreError::Malformed(_)) | Self::Answer(_) => 10,
        }
    }

    /// The line on stderr.
    pub fn to_json(&self) -> Value {
        let mut error = json!({ "exit": self.exit_code(), "message": self.to_string() });
        if let Self::Refused(refusal) | Self::Unanswered { refusal, .. } = self {
            error["message"] = json!(refusal.text);
            error["code"] = json!(code_name(refusal.code));
            error["reason"] = json!(refusal.reason.map(reason_name));
            error["metadata"] = json!(refusal.metadata);
            error["request_id"] = json!(refusal.request_id);
        }
        if matches!(self, Self::Core(CoreError::State(state)) if state == "history_changed") {
            // Seen by this device itself; said as the server would.
            error["code"] = json!("DATA_LOSS");
            error["reason"] = json!("HISTORY_CHANGED");
        }
        json!({ "error": error })
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
            (
                Failure::Unanswered {
                    refusal: refusal(Code::Unavailable),
                    kept: false,
                },
                3,
            ),
            (
                Failure::Unanswered {
                    refusal: refusal(Code::Unavailable),
                    kept: false,
                }
                .kept(),
                4,
            ),
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
            (state("needs_rejoin"), 12),
        ];
        for (failure, code) in cases {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
    }
}
