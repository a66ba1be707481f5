//! Refusals on the wire: `google.rpc.ErrorInfo` with domain `chancery` and a reason, `RetryInfo` where a wait helps, `BadRequest` for malformed input.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::common::v1::Reason;

/// `ErrorInfo.domain`.
pub const DOMAIN: &str = "chancery";

/// Longest text of a status in bytes: long trailers break HTTP/2 connections.
const TEXT_BYTES: usize = 512;
/// Longest value of one metadata field in bytes.
const VALUE_BYTES: usize = 256;

/// The gRPC code of each reason.
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::Unspecified => Code::Internal,
        Reason::Malformed
        | Reason::UnsupportedWireFormat
        | Reason::CommitInfoInvalid
        | Reason::WelcomeMismatch
        | Reason::GroupInfoMismatch
        | Reason::TreeMismatch
        | Reason::CredentialInvalid
        | Reason::UnknownValue => Code::InvalidArgument,
        Reason::TokenMissing
        | Reason::TokenInvalid
        | Reason::TokenExpired
        | Reason::ProofInvalid => Code::Unauthenticated,
        Reason::DeviceRevoked | Reason::UserSuspended | Reason::Policy => Code::PermissionDenied,
        Reason::Group | Reason::User | Reason::Device => Code::NotFound,
        Reason::GroupExists
        | Reason::MessageIdReused
        | Reason::InvitationUsed
        | Reason::KeyInUse => Code::AlreadyExists,
        Reason::StaleEpoch | Reason::EpochVoided => Code::Aborted,
        Reason::PendingRemoval
        | Reason::EpochInFuture
        | Reason::EpochTooOld
        | Reason::CommitRequired
        | Reason::CommitterBarred
        | Reason::GroupClosed => Code::FailedPrecondition,
        Reason::CursorTooOld | Reason::OutcomeForgotten => Code::OutOfRange,
        Reason::HistoryChanged => Code::DataLoss,
        Reason::LimitExceeded | Reason::RateLimited => Code::ResourceExhausted,
        Reason::Overloaded
        | Reason::Busy
        | Reason::ShuttingDown
        | Reason::Storage
        | Reason::StatusFeedStale => Code::Unavailable,
    }
}

/// Cuts at a character's end.
fn bounded(text: &str, bytes: usize) -> String {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The name without its prefix, as in `ErrorInfo.reason`.
fn name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

/// A refusal with its typed details.
pub fn refusal<'a>(
    reason: Reason,
    text: &str,
    metadata: impl IntoIterator<Item = (&'a str, String)>,
) -> Status {
    let metadata: HashMap<String, String> = metadata
        .into_iter()
        .take(8)
        .map(|(key, value)| (key.to_owned(), bounded(&value, VALUE_BYTES)))
        .collect();
    let mut details = ErrorDetails::with_error_info(name(reason), DOMAIN, metadata);
    if code(reason) == Code::Unavailable || reason == Reason::RateLimited {
        details.set_retry_info(Some(Duration::from_millis(250)));
    }
    Status::with_error_details(code(reason), bounded(text, TEXT_BYTES), details)
}

/// A malformed field.
pub fn malformed(field: &str, why: &str) -> Status {
    let mut details =
        ErrorDetails::with_error_info(name(Reason::Malformed), DOMAIN, HashMap::new());
    let why = bounded(why, TEXT_BYTES);
    details.add_bad_request_violation(bounded(field, VALUE_BYTES), why.clone());
    Status::with_error_details(Code::InvalidArgument, format!("{field}: {why}"), details)
}

/// What a client reads out of a status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// gRPC code.
    pub code: Code,
    /// The typed reason, where there is one.
    pub reason: Option<Reason>,
    /// Typed details.
    pub metadata: HashMap<String, String>,
    /// Wait before repeating.
    pub retry_after: Option<Duration>,
    /// For people only.
    pub text: String,
    /// `x-request-id`.
    pub request_id: Option<String>,
}

impl Refusal {
    /// Reads a status.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN);
        Self {
            code: status.code(),
            reason: info.and_then(|info| Reason::from_str_name(&format!("REASON_{}", info.reason))),
            metadata: info.map(|info| info.metadata.clone()).unwrap_or_default(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            text: status.message().to_owned(),
            request_id: status
                .metadata()
                .get("x-request-id")
                .and_then(|id| id.to_str().ok())
                .map(str::to_owned),
        }
    }

    /// May the request have been carried out? Then it must be repeated with the same id.
    pub fn outcome_unknown(&self) -> bool {
        matches!(
            self.code,
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Unknown
                | Code::Internal
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_comes_back_typed() {
        let status = refusal(
            Reason::StaleEpoch,
            "taken",
            [("winner_seq", "7".to_owned())],
        );
        let refusal = Refusal::from_status(&status);
        assert_eq!(refusal.code, Code::Aborted);
        assert_eq!(refusal.reason, Some(Reason::StaleEpoch));
        assert_eq!(refusal.metadata["winner_seq"], "7");
        assert_eq!(refusal.retry_after, None);
        assert!(!refusal.outcome_unknown());
    }

    #[test]
    fn unavailable_says_when_to_come_back() {
        let refusal = Refusal::from_status(&refusal(Reason::Busy, "busy", []));
        assert!(refusal.retry_after.is_some());
        assert!(refusal.outcome_unknown());
    }

    #[test]
    fn nothing_makes_a_trailer_too_long() {
        let long = "ü".repeat(10_000);
        let status = refusal(
            Reason::Policy,
            &long,
            [("a", long.clone()), ("b", long.clone())],
        );
        assert!(status.message().len() + status.details().len() < 4096);
        let status = malformed("field", &long);
        assert!(status.message().len() + status.details().len() < 4096);
    }
}
