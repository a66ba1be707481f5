//! A member on the contract reads the log: the chain, each entry, and whether a Commit did what it says.

use anyhow::{Context as _, ensure};
use chancery_proto::{
    certificate,
    commit_info::{CommitInfo, MessageData},
    delivery::v1::{Entry, EntryKind, LeaveRequestPayload},
    framing::{self, Message},
    signed,
};
use prost::Message as _;
use uuid::Uuid;

use crate::{
    contract::{chain_after, members},
    contract_member::{ContractMember, minus},
    engine::Processed,
    wire::Person,
    world::DOMAIN,
};

const MESSAGE_BYTES: usize = 16 << 20;

/// What a message says of itself in clear, and who joins by it if it comes from outside.
fn read_framing(payload: &[u8]) -> anyhow::Result<(MessageData, Option<Person>)> {
    let bad = |error| anyhow::anyhow!("framing: {error:?}");
    let (data, joiner) = match framing::parse(payload, MESSAGE_BYTES).map_err(bad)? {
        Message::Private(header) => (header.authenticated_data, None),
        Message::ExternalCommit(commit) => {
            let certificate = commit.leaf.certificate().map_err(bad)?;
            let joiner = Person::of(certificate, DOMAIN)?;
            (commit.authenticated_data, Some(joiner))
        }
    };
    Ok((MessageData::decode(&data).map_err(bad)?, joiner))
}

impl ContractMember {
    pub(crate) async fn read(&mut self, group: &[u8]) -> anyhow::Result<()> {
        loop {
            let known = self.known(group)?;
            if known.removed {
                return Ok(());
            }
            let after = known.head_seq;
            let entries = self.device.read(group, after).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for (entry, payload) in entries {
                self.apply(group, &entry, &payload)?;
            }
        }
    }

    /// One entry: the chain, then whatever it is.
    fn apply(&mut self, group: &[u8], entry: &Entry, payload: &[u8]) -> anyhow::Result<()> {
        let known = self.known(group)?;
        let value = chain_after(&known.chain, group, entry, payload);
        ensure!(entry.seq == known.head_seq + 1, "a hole in the log");
        ensure!(
            entry.chain == value[..],
            "the chain breaks at {}",
            entry.seq
        );
        known.head_seq = entry.seq;
        known.chain = value;
        let id = Uuid::from_slice(&entry.message_id)?;
        let pending = known.pending.take_if(|p| p.message_id == id);
        if let Some(text) = known.own.remove(&id) {
            known.texts.extend(text);
        } else if pending.is_some() {
            known.epoch_seq = entry.seq;
            known.proposals.clear();
            self.engine.apply_pending(group)?;
        } else if entry.kind == EntryKind::LeaveRequest as u32 {
            self.leave_request(group, payload)?;
        } else if entry.epoch_seq >= known.joined_seq {
            self.process(group, entry, payload, id)?;
        }
        Ok(())
    }

    /// Somebody asks to be removed: whoever commits next removes it. A request that the leaf's key did not sign is nothing.
    fn leave_request(&mut self, group: &[u8], payload: &[u8]) -> anyhow::Result<()> {
        let request = LeaveRequestPayload::decode(payload)?;
        let device = request.device.context("a leave request of nobody")?;
        let id: [u8; 16] = device.id[..].try_into().context("a device id")?;
        let roster = self.engine.roster(group)?;
        for (_, der) in &roster {
            let leaf = certificate::read_device(der)?;
            if *leaf.device.as_bytes() != id || leaf.domain != device.domain {
                continue;
            }
            let content = signed::leave(
                (DOMAIN, group),
                (&device.domain, &id),
                request.joined_seq,
                request.expires_at,
            );
            let signed = signed::verify(
                &leaf.public_key,
                signed::LEAVE,
                &content,
                &request.signature,
            );
            ensure!(signed, "a leave request that its device did not sign");
            let person = Person::of(der, DOMAIN)?;
            self.known(group)?.leaving.insert(person);
        }
        Ok(())
    }

    fn process(
        &mut self,
        group: &[u8],
        entry: &Entry,
        payload: &[u8],
        id: Uuid,
    ) -> anyhow::Result<()> {
        let (data, joiner) = read_framing(payload)?;
        ensure!(
            data.message_id == Some(*id.as_bytes()),
            "the entry's id is not the sender's"
        );
        let commit = [EntryKind::Commit, EntryKind::ExternalCommit]
            .iter()
            .any(|kind| *kind as u32 == entry.kind);
        let proposal = EntryKind::Proposal as u32 == entry.kind;
        // A message changes nobody's membership.
        let before = match commit || proposal {
            true => self.roster(group)?,
            false => Vec::new(),
        };
        if commit && self.known(group)?.pending.take().is_some() {
            self.engine.clear_pending(group)?;
        }
        match self.engine.process(group, payload)? {
            Processed::Application(text) => {
                let text = String::from_utf8_lossy(&text).into_owned();
                self.known(group)?.texts.push(text);
            }
            Processed::Proposal(leaf) => {
                let whom = before.iter().find(|(index, _)| Some(*index) == leaf);
                let whom = whom.map(|(_, person)| *person);
                self.known(group)?.proposals.push((entry.seq, whom));
            }
            Processed::Commit { active: false } => self.known(group)?.removed = true,
            Processed::Commit { active: true } => {
                let before: Vec<_> = before.into_iter().map(|(_, person)| person).collect();
                let info = data.commit_info.context("a Commit without CommitInfo")?;
                self.check(group, &before, joiner, &info)?;
                let known = self.known(group)?;
                known.epoch_seq = entry.seq;
                known.proposals.clear();
            }
        }
        Ok(())
    }

    /// The CommitInfo is what the Commit did.
    fn check(
        &mut self,
        group: &[u8],
        before: &[Person],
        joiner: Option<Person>,
        info: &CommitInfo,
    ) -> anyhow::Result<()> {
        let after = self.people(group)?;
        self.known(group)?
            .leaving
            .retain(|person| after.contains(person));
        let (added, removed) = match joiner {
            Some(joiner) => {
                let old = before.contains(&joiner).then_some(joiner);
                (vec![joiner], old.into_iter().collect())
            }
            None => (minus(&after, before), minus(before, &after)),
        };
        ensure!(
            info.added == members(DOMAIN, added) && info.removed == members(DOMAIN, removed),
            "the CommitInfo is not what the Commit does"
        );
        Ok(())
    }
}
