//! Application messages.

use chancery_proto::{commit_info::MessageData, delivery::v1::*};
use client_cli::core::{group, records};

use super::*;

impl Actor {
    pub(super) fn framed(
        &self,
        text: &[u8],
        inside: [u8; 16],
        outside: [u8; 16],
    ) -> anyhow::Result<SendMessageRequest> {
        self.craft(|step, context| {
            let record = records::known(step, &self.group)?;
            let mut mls = group::load(step, &self.group)?;
            let data = MessageData {
                message_id: Some(inside),
                commit_info: None,
            };
            mls.set_aad(data.encode());
            let key = context.identity.leaf_key(mls.ciphersuite())?;
            let message = mls
                .create_message(step.provider(), &key, text)
                .map_err(broken)?;
            Ok(SendMessageRequest {
                group: Some(self.group.to_ref()),
                message_id: outside.to_vec().into(),
                message: message.to_bytes().map_err(broken)?.into(),
                epoch_seq: record.epoch_seq,
                ..SendMessageRequest::default()
            })
        })
    }

    pub(super) async fn message(&self, kind: Kind) -> anyhow::Result<Done> {
        *self.texts.borrow_mut() += 1;
        let text = format!("{} {}", super::super::world::EVIL, self.texts.borrow()).into_bytes();
        let (id, other) = (self.id(), self.id());
        let request = match kind {
            Kind::MessageBytes => self.framed(&[0xff, 0xfe, 0], id, id)?,
            Kind::MessageEmpty => self.framed(&[], id, id)?,
            Kind::MessageOtherId => self.framed(&text, id, other)?,
            Kind::MessageRepeated => {
                let first = self.framed(&text, id, id)?;
                let again = SendMessageRequest {
                    message_id: other.to_vec().into(),
                    ..first.clone()
                };
                drop(self.send(first).await);
                again
            }
            _ => {
                // What was framed the last time goes out today, and today's the next time.
                let framed = self.framed(&text, id, id)?;
                let late = self.late.borrow_mut().replace(framed);
                match late {
                    Some(late) => late,
                    None => return Ok(Ok(Vec::new())),
                }
            }
        };
        Ok(self.send(request).await)
    }
}
