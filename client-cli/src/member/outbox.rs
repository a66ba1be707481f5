//! Messages that wait for an answer: what is kept, and how a person takes one out.

use super::{
    Member, blocking,
    limits::{self, USUAL_MESSAGE_BYTES},
};
use crate::{
    core::{
        CoreError,
        outbox::{self, Outgoing},
        records::GroupName,
    },
    failure::Failure,
    store::{Step, StoreError},
};

/// How far an unsent message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It was never sent.
    Unsent,
    /// It was made ready for sending: the service may have accepted it.
    MayBeAccepted,
    /// It is larger than the service takes, and is not read.
    TooLarge,
}

impl Stage {
    /// As in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::MayBeAccepted => "may_be_accepted",
            Self::TooLarge => "too_large",
        }
    }
}

/// A message that waits for an answer.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Where it is to be said.
    pub group: GroupName,
    /// Its id.
    pub message_id: [u8; 16],
    /// How far it has come.
    pub stage: Stage,
    /// What it says, where it is read.
    pub text: Option<Vec<u8>>,
}

fn max(step: &Step<'_>) -> Result<u64, CoreError> {
    Ok(limits::remembered(step)?.map_or(USUAL_MESSAGE_BYTES, |known| known.bytes))
}

impl Member {
    /// Messages of all groups that wait for an answer.
    ///
    /// # Errors
    /// The store.
    pub fn waiting(&self) -> Result<Vec<Waiting>, Failure> {
        self.step(|step, _| {
            let max = max(step)?;
            let mut waiting = Vec::new();
            for (group, id) in outbox::all_unsent(step)? {
                let Ok(message_id) = <[u8; 16]>::try_from(id) else {
                    continue;
                };
                let (stage, text) = match outbox::get_within(step, &group, &message_id, max) {
                    Ok(Some(known)) if known.request.is_empty() => {
                        (Stage::Unsent, Some(known.text))
                    }
                    Ok(known) => (Stage::MayBeAccepted, known.map(|known| known.text)),
                    Err(StoreError::TooLarge { .. }) => (Stage::TooLarge, None),
                    Err(error) => return Err(error.into()),
                };
                waiting.push(Waiting {
                    group,
                    message_id,
                    stage,
                    text,
                });
            }
            Ok(waiting)
        })
    }

    /// Takes a message out: it is not sent any more. One that may have been accepted only with `force`; if it was, it
    /// stays said.
    ///
    /// # Errors
    /// Nothing of this id waits, it may have been accepted, or the store.
    pub fn drop_waiting(&self, id: [u8; 16], force: bool) -> Result<Waiting, Failure> {
        let found = self.waiting()?.into_iter().find(|w| w.message_id == id);
        let found = found.ok_or_else(|| Failure::NotAllowed {
            reason: "NOT_IN_OUTBOX",
            message: "no message of this id waits for an answer".into(),
        })?;
        if found.stage == Stage::MayBeAccepted && !force {
            return Err(Failure::NotAllowed {
                reason: "MAY_BE_ACCEPTED",
                message: "the service may have accepted it, then everybody reads it: `sync` finds out; --force sends it no more all the same".into(),
            });
        }
        self.step(|step, _| {
            match found.stage {
                Stage::MayBeAccepted => outbox::abandon(step, &found.group, &id)?,
                Stage::Unsent | Stage::TooLarge => outbox::forget(step, &found.group, &id)?,
            }
            Ok(())
        })?;
        self.give_space_back();
        Ok(found)
    }

    /// The id of a message with this text whose command ended without an answer: said again, it is that message.
    ///
    /// # Errors
    /// The store.
    pub fn take_up(&self, group: &GroupName, text: &[u8]) -> Result<Option<[u8; 16]>, Failure> {
        let id = self.step(|step, _| Ok(outbox::take_up(step, group, text)?))?;
        Ok(id.and_then(|id| id.try_into().ok()))
    }

    /// An unsent or accepted message. One that is too large to be accepted is taken out.
    pub(super) async fn outgoing(
        &self,
        name: &GroupName,
        id: [u8; 16],
    ) -> Result<Outgoing, Failure> {
        let mut limit = self.step(|step, _| max(step))?;
        let mut asked = false;
        loop {
            match self.step(|step, _| Ok(outbox::get_within(step, name, &id, limit)?)) {
                Err(Failure::Core(CoreError::Store(StoreError::TooLarge { max }))) if asked => {
                    self.step(|step, _| Ok(outbox::forget(step, name, &id)?))?;
                    self.give_space_back();
                    let got = u64::try_from(max).unwrap_or(u64::MAX);
                    return Err(CoreError::TooLarge { max: limit, got }.into());
                }
                Err(Failure::Core(CoreError::Store(StoreError::TooLarge { .. }))) => {
                    let answered = self.ask_message_bytes().await;
                    limit = answered.map_err(|failure| failure.kept_as(id))?;
                    asked = true;
                }
                found => return found?.ok_or_else(|| CoreError::Unknown.into()),
            }
        }
    }

    /// After something large was deleted. Where another process uses the store, the next deletion does it.
    fn give_space_back(&self) {
        let _later = blocking(|| self.locked_store().give_back());
    }
}
