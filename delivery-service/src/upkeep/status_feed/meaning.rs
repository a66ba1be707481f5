//! What a status does here. Pure: no clock, no database.

use chancery_proto::{
    auth::v1::{DeviceStatus, StatusChange, device_status::Subject as Named},
    mutants::{self, Mutant},
};
use uuid::Uuid;

/// What a kind of status means for access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// Access ends for ever.
    Gone,
    /// Access ends until the subject is reinstated.
    Suspended,
    /// Access ends until the certificate is renewed.
    Expired,
    /// Access begins again.
    Back,
}

/// The kinds of status that a program knows.
#[derive(Debug, Clone, Copy)]
pub struct Kinds(pub &'static [(StatusChange, Meaning)]);

impl Kinds {
    /// All that the contract names.
    pub const ALL: Self = Self(&[
        (StatusChange::Revoked, Meaning::Gone),
        (StatusChange::Deleted, Meaning::Gone),
        (StatusChange::Suspended, Meaning::Suspended),
        (StatusChange::Expired, Meaning::Expired),
        (StatusChange::Reinstated, Meaning::Back),
        (StatusChange::Renewed, Meaning::Back),
    ]);

    fn meaning(self, change: i32) -> Option<Meaning> {
        let known = self.0.iter().find(|(kind, _)| i32::from(*kind) == change);
        known.map(|(_, meaning)| *meaning)
    }
}

/// Whom a status is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// One device.
    Device(Uuid),
    /// A person, with every device.
    User(Uuid),
}

impl Subject {
    /// Its id.
    pub fn id(self) -> Uuid {
        match self {
            Self::Device(id) | Self::User(id) => id,
        }
    }
}

/// What a status does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// For ever: refused from now on, and to be removed from every group.
    Gone(Subject),
    /// Until reinstated, or renewed where it expired: refused, and nowhere removed.
    CutOff {
        /// Whom.
        subject: Subject,
        /// Its certificate ended.
        expired: bool,
    },
    /// Let in again.
    Back(Subject),
    /// Of a kind that this program does not know: kept, and its subject refused until a program that knows it has applied it.
    Unknown(Subject),
    /// Nothing.
    Nothing,
}

/// Whom a status is about cannot be read: it can neither be applied nor kept out of harm's way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "status {seq} is about something that this program cannot read ({why}): a newer delivery-service may"
)]
pub struct Unreadable {
    /// Its place in the feed.
    pub seq: u64,
    /// What is wrong with it.
    pub why: &'static str,
}

/// What a status of this domain's feed does, as far as these kinds are known.
///
/// # Errors
/// [`Unreadable`].
pub fn effect(status: &DeviceStatus, domain: &str, kinds: Kinds) -> Result<Effect, Unreadable> {
    let unreadable = |why| Unreadable {
        seq: status.seq,
        why,
    };
    let (of, id, device) = match &status.subject {
        Some(Named::Device(device)) => (&device.domain, &device.id, true),
        Some(Named::User(user)) => (&user.domain, &user.id, false),
        None if mutants::is_on(Mutant::FeedUnknownDropped) => return Ok(Effect::Nothing),
        None => return Err(unreadable("neither a device nor a user")),
    };
    if of != domain {
        return Err(unreadable("of another domain"));
    }
    let id = Uuid::from_slice(id).map_err(|_| unreadable("an id that is no UUID"))?;
    let subject = if device {
        Subject::Device(id)
    } else {
        Subject::User(id)
    };
    Ok(match kinds.meaning(status.change) {
        Some(Meaning::Gone) => Effect::Gone(subject),
        Some(Meaning::Suspended) => Effect::CutOff {
            subject,
            expired: false,
        },
        Some(Meaning::Expired) => Effect::CutOff {
            subject,
            expired: true,
        },
        Some(Meaning::Back) => Effect::Back(subject),
        None if mutants::is_on(Mutant::FeedUnknownDropped) => Effect::Nothing,
        None => Effect::Unknown(subject),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use chancery_proto::common::v1::{DeviceRef, UserRef};

    const DOMAIN: &str = "a.example";
    /// A value that the contract does not have.
    const LOCKED: i32 = 77;

    fn status(change: i32, subject: Option<Named>) -> DeviceStatus {
        DeviceStatus {
            seq: 3,
            change,
            subject,
            ..DeviceStatus::default()
        }
    }

    fn named(domain: &str, id: &[u8], device: bool) -> Option<Named> {
        let (domain, id) = (domain.to_owned(), id.to_vec().into());
        Some(match device {
            true => Named::Device(DeviceRef { domain, id }),
            false => Named::User(UserRef { domain, id }),
        })
    }

    #[test]
    fn every_kind_of_the_contract_is_known_and_every_other_cuts_off() {
        let id = Uuid::from_u128(9);
        for device in [true, false] {
            let subject = match device {
                true => Subject::Device(id),
                false => Subject::User(id),
            };
            let cut_off = |expired| Effect::CutOff { subject, expired };
            let expected = [
                Effect::Unknown(subject),
                Effect::Gone(subject),
                cut_off(false),
                Effect::Back(subject),
                cut_off(true),
                Effect::Gone(subject),
                Effect::Back(subject),
                Effect::Unknown(subject),
            ];
            for (change, expected) in (0..).zip(expected) {
                let status = status(change, named(DOMAIN, id.as_bytes(), device));
                assert_eq!(
                    effect(&status, DOMAIN, Kinds::ALL),
                    Ok(expected),
                    "{change}"
                );
                // A program from before any of them.
                let unknown = Ok(Effect::Unknown(subject));
                assert_eq!(effect(&status, DOMAIN, Kinds(&[])), unknown, "{change}");
            }
            let locked = status(LOCKED, named(DOMAIN, id.as_bytes(), device));
            let unknown = Ok(Effect::Unknown(subject));
            assert_eq!(effect(&locked, DOMAIN, Kinds::ALL), unknown);
        }
    }

    #[test]
    fn a_subject_that_cannot_be_read_is_never_passed_over() {
        let subjects = [
            None,
            named("b.example", &[1; 16], true),
            named("", &[1; 16], false),
            named(DOMAIN, &[1; 15], true),
            named(DOMAIN, b"", false),
        ];
        for subject in subjects {
            for change in [1, LOCKED] {
                let status = status(change, subject.clone());
                let read = effect(&status, DOMAIN, Kinds::ALL);
                assert_eq!(read.map_err(|e| e.seq), Err(3), "{subject:?}");
            }
        }
    }
}
