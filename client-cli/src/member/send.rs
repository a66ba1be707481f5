//! Messages: kept before they are sent, repeated with the same bytes, framed anew only when the server surely did not take them.

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{Outcome, SendMessageRequest},
    mutants::{self, Mutant},
};
use prost::Message as _;

use super::{Member, commit::Tally, limits};
use crate::{
    core::{
        Context, CoreError, commit,
        outbox::{self, Outgoing},
        pending::{self, MessageStep},
        records::{self, Accepted, GroupName, GroupRecord, GroupState},
    },
    failure::Failure,
    fault,
    progress::Task,
    store::Step,
};

/// How often a message whose epoch has passed is framed anew.
const FRAMINGS: u32 = 20;

/// An accepted message.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Its id.
    pub message_id: [u8; 16],
    /// Where it stands.
    pub accepted: Accepted,
    /// The epoch that it was framed in.
    pub epoch: u64,
    /// That epoch's name.
    pub epoch_seq: u64,
    /// Requests that were sent and got no answer.
    pub unknown_outcomes: u32,
}

/// Frames a message; one that is too large in its frame only uses no key.
fn frame(
    step: &Step<'_>,
    context: Context<'_>,
    record: &GroupRecord,
    id: [u8; 16],
    text: &[u8],
) -> Result<(), CoreError> {
    let outgoing = commit::message(step, context, record, id, text)?;
    let Some(limit) = limits::remembered(step)? else {
        return Ok(());
    };
    let request = SendMessageRequest::decode(outgoing.request.as_slice())
        .map_err(|error| CoreError::Malformed(error.to_string()))?;
    let got = u64::try_from(request.message.len()).unwrap_or(u64::MAX);
    if got > limit.bytes {
        return Err(CoreError::TooLarge {
            max: limit.bytes,
            got,
        });
    }
    Ok(())
}

impl Member {
    /// Sends messages in order. An id that was used before with the same text is the same message.
    ///
    /// # Errors
    /// The refusal, no answer (what is unsent is kept, and `sync` sends it), or the store.
    pub async fn send(
        &self,
        name: &GroupName,
        messages: &[([u8; 16], Vec<u8>)],
    ) -> Result<Vec<Sent>, Failure> {
        for (_, text) in messages {
            self.check_size(text.len()).await?;
        }
        let sent = self.keep_and_send(name, messages).await;
        if matches!(&sent, Err(Failure::Unanswered { kept: true, .. })) {
            self.step(|step, _| {
                for (id, _) in messages {
                    outbox::give_up(step, name, id)?;
                }
                Ok(())
            })?;
        }
        sent
    }

    async fn keep_and_send(
        &self,
        name: &GroupName,
        messages: &[([u8; 16], Vec<u8>)],
    ) -> Result<Vec<Sent>, Failure> {
        self.step(|step, _| {
            let record = records::known(step, name)?;
            if !matches!(
                record.state,
                GroupState::Active | GroupState::NeedsRejoin(_)
            ) {
                return Err(CoreError::State(record.state.name().to_owned()));
            }
            for (id, text) in messages {
                match outbox::get(step, name, id)? {
                    Some(known) if known.text != *text => {
                        return Err(CoreError::MessageIdReused);
                    }
                    Some(_) => {}
                    None => outbox::put(step, name, id, &Outgoing::unframed(text))?,
                }
            }
            Ok(())
        })?;
        let ids: Vec<[u8; 16]> = messages.iter().map(|(id, _)| *id).collect();
        self.frame_unsent(name, &ids).await?;
        fault::point("before-send");
        let mut sent = Vec::with_capacity(messages.len());
        for (id, _) in messages {
            sent.push(self.deliver(name, *id).await?);
            self.progress
                .at(Task::Sending, sent.len() as u64, messages.len() as u64);
        }
        Ok(sent)
    }

    /// Frames what is kept and not framed yet: after the log was read, so that a copy of this profile that was restored sees what it had said already
    /// before it uses a key.
    async fn frame_unsent(&self, name: &GroupName, ids: &[[u8; 16]]) -> Result<(), Failure> {
        let unframed = self.step(|step, _| {
            let mut unframed = Vec::new();
            for id in ids {
                let known = outbox::get(step, name, id)?;
                unframed.extend(
                    known
                        .filter(|o| o.request.is_empty())
                        .map(|o| (*id, o.text)),
                );
            }
            Ok(unframed)
        })?;
        if unframed.is_empty() {
            return Ok(());
        }
        let framed = async {
            self.settle(name, &mut Tally::default()).await?;
            self.read_once(name).await?;
            Box::pin(self.heal(name, true)).await?;
            self.commit_first(name).await?;
            self.step(|step, context| {
                let record = commit::active(step, name)?;
                for (id, text) in &unframed {
                    frame(step, context, &record, *id, text)?;
                }
                Ok(())
            })
        };
        match framed.await {
            Err(failure @ Failure::Unanswered { .. }) => Err(failure.kept_as(unframed[0].0)),
            Err(failure) => {
                self.step(|step, _| {
                    for (id, _) in &unframed {
                        outbox::forget(step, name, id)?;
                    }
                    Ok(())
                })?;
                Err(failure)
            }
            Ok(()) => Ok(()),
        }
    }

    /// Who has seen a proposal commits before speaking (RFC 9420 section 12.4); and who knows of a member that is revoked or leaving removes it first.
    async fn commit_first(&self, name: &GroupName) -> Result<(), Failure> {
        let record = self.record(name)?;
        let leaving = !record.leaving.is_empty() && !mutants::is_on(Mutant::LeavingStays);
        if record.proposals.is_empty() && record.revoked.is_empty() && !leaving {
            return Ok(());
        }
        match self.commit_proposals(name).await {
            Err(Failure::Core(CoreError::Nothing)) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Sends what the outbox holds under this id until it is accepted or refused.
    ///
    /// # Errors
    /// The refusal (the message is forgotten then), no answer, or the store.
    pub async fn deliver(&self, name: &GroupName, id: [u8; 16]) -> Result<Sent, Failure> {
        match self.deliver_kept(name, id).await {
            Err(Failure::Core(CoreError::TooLarge { max, got })) => {
                self.step(|step, _| Ok(outbox::forget(step, name, &id)?))?;
                Err(limits::refused(max, got))
            }
            other => other,
        }
    }

    async fn deliver_kept(&self, name: &GroupName, id: [u8; 16]) -> Result<Sent, Failure> {
        let mut unknown_outcomes = 0;
        if self.outgoing(name, id).await?.request.is_empty() {
            self.frame_unsent(name, &[id]).await?;
        }
        for _ in 0..FRAMINGS {
            let outgoing = self.outgoing(name, id).await?;
            if let Some(accepted) = outgoing.accepted.clone() {
                let accepted = Accepted {
                    replayed: true,
                    ..accepted
                };
                return self.delivered(name, id, outgoing, accepted, unknown_outcomes);
            }
            let request = SendMessageRequest::decode(outgoing.request.as_slice())
                .map_err(|_| Failure::Profile("an unsent message cannot be read".into()))?;
            let answer = self
                .delivery(request, async |mut client, request| {
                    Ok(client.send_message(request).await?.into_inner())
                })
                .await;
            match answer {
                Ok(answer) => {
                    unknown_outcomes += answer.unknown_outcomes;
                    fault::point("after-send");
                    let accepted = Accepted {
                        seq: answer.value.seq,
                        epoch: outgoing.epoch,
                        chain: answer.value.chain.to_vec(),
                        outcome: answer.value.outcome,
                        replayed: answer.value.replayed,
                    };
                    return self.delivered(name, id, outgoing, accepted, unknown_outcomes);
                }
                Err(failure) => self.answered_no(name, id, &outgoing, failure).await?,
            }
        }
        Err(Failure::Races { races: FRAMINGS })
    }

    /// A message that was not accepted: framed anew where it surely was not taken, kept where that is not known.
    async fn answered_no(
        &self,
        name: &GroupName,
        id: [u8; 16],
        outgoing: &Outgoing,
        failure: Failure,
    ) -> Result<(), Failure> {
        let Some(told) = failure.told() else {
            return Err(failure);
        };
        if failure.reason() == Some(Reason::MessageIdReused) && self.log_shows(name, id).await? {
            // An earlier framing of it was late, and landed.
            return Ok(());
        }
        match pending::message_answered(told) {
            MessageStep::Keep => return Err(failure.kept_as(id)),
            MessageStep::Frame => {}
            MessageStep::Heed if self.heeds(name, &failure).await? => {}
            MessageStep::Done | MessageStep::Heed | MessageStep::Forget => {
                self.step(|step, _| Ok(outbox::forget(step, name, &id)?))?;
                return Err(failure);
            }
        }
        self.read_up(name).await?;
        self.settle(name, &mut Tally::default()).await?;
        Box::pin(self.heal(name, true)).await?;
        self.commit_first(name).await?;
        self.step(|step, context| {
            let record = commit::active(step, name)?;
            frame(step, context, &record, id, &outgoing.text)
        })
    }

    /// Whether the log holds this message.
    async fn log_shows(&self, name: &GroupName, id: [u8; 16]) -> Result<bool, Failure> {
        self.read_up(name).await?;
        let shown = self.step(|step, _| Ok(outbox::get(step, name, &id)?))?;
        Ok(shown.is_some_and(|outgoing| outgoing.accepted.is_some()))
    }

    fn delivered(
        &self,
        name: &GroupName,
        message_id: [u8; 16],
        mut outgoing: Outgoing,
        accepted: Accepted,
        unknown_outcomes: u32,
    ) -> Result<Sent, Failure> {
        outgoing.accepted = Some(accepted.clone());
        self.step(|step, _| {
            records::promise(step, name, &accepted)?;
            if accepted.outcome == i32::from(Outcome::Standing) {
                records::settled(step, name, outgoing.epoch_seq)?;
            }
            Ok(outbox::put(step, name, &message_id, &outgoing)?)
        })?;
        Ok(Sent {
            message_id,
            accepted,
            epoch: outgoing.epoch,
            epoch_seq: outgoing.epoch_seq,
            unknown_outcomes,
        })
    }
}
