//! What takes more than one request, by more than one device.

use chancery_proto::delivery::v1::ClaimOutcome;
use client_cli::core::group::Founding;

use super::*;

impl Actor {
    pub(super) fn name_of(person: &Person) -> Name {
        (person.domain.clone(), person.device)
    }

    pub(super) fn second_person(&self) -> &Person {
        &self.second.identity().person
    }

    pub(super) fn is_in(&self, person: &Person) -> bool {
        let of = self.craft(|step, _| {
            let mls = group::load(step, &self.group)?;
            leaf_of(&mls, person)
        });
        of.is_ok()
    }

    /// The second device is in, and asks to leave.
    pub(super) async fn second_asks_to_leave(&self) -> anyhow::Result<()> {
        if !self.is_in(self.second_person()) {
            let name = Self::name_of(self.second_person());
            self.member.add(&self.group, &[name]).await?;
        }
        self.second.sync(None).await?;
        self.second.leave(&self.group).await?;
        Ok(())
    }

    /// A new group into which an honest device is welcomed with garbage.
    pub(super) async fn welcomes_elsewhere(&self) -> anyhow::Result<Done> {
        let made = self.member.create_group(Founding::default(), None).await?;
        let elsewhere = Self::new(
            self.member.clone(),
            self.second.clone(),
            made.group,
            self.victim.clone(),
            self.newcomer.clone(),
        );
        let request = elsewhere.commit(Kind::WelcomeSpoilt).await?;
        Ok(elsewhere.submit(request).await)
    }

    /// Claims all that a device has in stock, and its last resort.
    pub(super) async fn claims_everything(&self) -> anyhow::Result<Done> {
        let newcomer = Self::name_of(&self.newcomer);
        for _ in 0..64 {
            let request = self.claim_request(std::slice::from_ref(&newcomer));
            let claims = match self.member.ask_for_key_packages(request).await {
                Ok(claims) => claims,
                Err(failure) => return Ok(Err(failure)),
            };
            let claim = claims.first().context("no answer")?;
            if claim.last_resort || claim.outcome() != ClaimOutcome::KeyPackage {
                break;
            }
        }
        Ok(Ok(Vec::new()))
    }

    /// Frames a message, moves to a leaf further left, lets a newcomer have the old one, and sends the message then.
    pub(super) async fn message_after_a_move(&self) -> anyhow::Result<Done> {
        let (victim, newcomer) = (Self::name_of(&self.victim), Self::name_of(&self.newcomer));
        for (person, name) in [(&self.newcomer, &newcomer), (&self.victim, &victim)] {
            if self.is_in(person) {
                let name = std::slice::from_ref(name);
                self.member.remove(&self.group, name).await?;
            }
        }
        *self.texts.borrow_mut() += 1;
        let text = format!("{} {}", super::super::world::EVIL, self.texts.borrow());
        let id = self.id();
        let framed = self.framed(text.as_bytes(), id, id)?;
        self.member.rejoin_by_hand(&self.group).await?;
        self.member.add(&self.group, &[newcomer]).await?;
        let sent = self.send(framed).await;
        self.member.add(&self.group, &[victim]).await?;
        Ok(sent)
    }
}
