//! What a refusal has to look like.

use anyhow::{bail, ensure};
use chancery_proto::{
    common::v1::Reason,
    status::{self, Refusal},
};
use tonic::Status;

/// The most that a refusal may weigh, bytes.
const REFUSAL_BYTES: usize = 4096;

/// The refusal, if it has one of these reasons, the code that belongs to it, and the form that all have.
///
/// # Errors
/// It was accepted, refused for something else, or refused in another form.
pub fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    reasons: &[Reason],
) -> anyhow::Result<Refusal> {
    let status = match answer {
        Ok(answer) => bail!("accepted, and {reasons:?} was expected: {answer:?}"),
        Err(status) => status,
    };
    let refusal = Refusal::from_status(&status);
    let Some(reason) = refusal.reason else {
        bail!("refused without a typed reason: {status:?}");
    };
    ensure!(
        reasons.contains(&reason),
        "refused with {reason:?}, not {reasons:?}: {}",
        refusal.text
    );
    ensure!(
        refusal.code == status::code(reason),
        "{reason:?} came with code {:?}",
        refusal.code
    );
    ensure!(
        refusal.request_id.is_some(),
        "a refusal without x-request-id"
    );
    let weight = status.message().len() + status.details().len();
    ensure!(weight < REFUSAL_BYTES, "a refusal of {weight} bytes");
    Ok(refusal)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt as _};

    fn stale() -> Status {
        let mut status = status::refusal(Reason::StaleEpoch, "too late", []);
        let id = "1".parse().unwrap();
        status.metadata_mut().insert("x-request-id", id);
        status
    }

    #[test]
    fn a_refusal_is_looked_at_from_all_sides() {
        refused::<()>(Err(stale()), &[Reason::StaleEpoch]).unwrap();
        assert!(refused(Ok("accepted"), &[Reason::StaleEpoch]).is_err());
        assert!(refused::<()>(Err(stale()), &[Reason::Malformed]).is_err());
        let untyped = Status::aborted("too late");
        assert!(refused::<()>(Err(untyped), &[Reason::StaleEpoch]).is_err());
        let without_id = status::refusal(Reason::StaleEpoch, "too late", []);
        assert!(refused::<()>(Err(without_id), &[Reason::StaleEpoch]).is_err());
        let other_code = |code, text: String| {
            let details = ErrorDetails::with_error_info("STALE_EPOCH", "chancery", HashMap::new());
            let metadata = stale().metadata().clone();
            Status::with_error_details_and_metadata(code, text, details, metadata)
        };
        let as_it_should = other_code(Code::Aborted, "x".into());
        refused::<()>(Err(as_it_should), &[Reason::StaleEpoch]).unwrap();
        let another = other_code(Code::Internal, "x".into());
        assert!(refused::<()>(Err(another), &[Reason::StaleEpoch]).is_err());
        let heavy = other_code(Code::Aborted, "x".repeat(REFUSAL_BYTES));
        assert!(refused::<()>(Err(heavy), &[Reason::StaleEpoch]).is_err());
    }
}
