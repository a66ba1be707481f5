//! Our client, as a library, as a member of a scenario.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use client_cli::{
    core::{
        CoreError,
        group::{self, Founding},
        records::{self, GroupName},
    },
    member::{
        Member,
        commit::Tally,
        directory::Name,
        enroll::{Enrolment, enroll},
    },
    profile::Profile,
};
use openmls::prelude::Ciphersuite;
use openmls_traits::OpenMlsProvider as _;
use tonic::async_trait;
use uuid::Uuid;

use crate::{
    stack::{Change, EXPORTER_LABEL, Race, Stack, State},
    wire::Person,
    world::{DOMAIN, World},
};

const DEADLINE: Duration = Duration::from_secs(30);
const KEY_PACKAGES: u32 = 10;

/// A device on openmls.
pub struct OpenMls {
    member: Member,
    folder: PathBuf,
    suite: Ciphersuite,
}

fn name(group: &[u8]) -> GroupName {
    GroupName {
        domain: DOMAIN.to_owned(),
        id: group.to_vec(),
    }
}

fn names(people: &[Person]) -> Vec<Name> {
    people
        .iter()
        .map(|person| (DOMAIN.to_owned(), *person.device.as_bytes()))
        .collect()
}

fn person(person: &records::Person) -> Person {
    Person {
        user: Uuid::from_bytes(person.user),
        device: Uuid::from_bytes(person.device),
    }
}

impl OpenMls {
    /// Enrolls a device and publishes KeyPackages of the suite.
    ///
    /// # Errors
    /// A service refuses.
    pub async fn enroll(world: &World, handle: &str, suite: u16) -> anyhow::Result<Self> {
        let folder = world.folder(handle);
        let profile = Profile::new(&world.node.auth[0].url, &world.node.delivery_url);
        let enrolment = Enrolment {
            invitation: world.invite(handle).await?,
            domain: Some(DOMAIN.to_owned()),
            root: world.node.auth[0].root_pem.clone(),
            other_roots: Vec::new(),
            device_name: handle.to_owned(),
            delivery_domain: None,
            key_packages: 0,
        };
        let member = enroll(&folder, profile, &enrolment, DEADLINE).await?;
        let known = |s: &Ciphersuite| u16::from(*s) == suite;
        let suite = group::SUITES.into_iter().find(known);
        let suite = suite.context("not a suite of this client")?;
        member
            .publish_key_packages(suite, KEY_PACKAGES, true)
            .await?;
        Ok(Self {
            member,
            folder,
            suite,
        })
    }
}

#[async_trait(?Send)]
impl Stack for OpenMls {
    fn library(&self) -> &'static str {
        "openmls"
    }

    fn person(&self) -> Person {
        person(&self.member.identity().person)
    }

    async fn create(&mut self) -> anyhow::Result<Vec<u8>> {
        let made = self.member.create_group(Founding::of(self.suite), None);
        Ok(made.await?.group.id)
    }

    async fn sync(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.member.join_all().await?;
        self.member
            .settle(&name(group), &mut Tally::default())
            .await?;
        self.member.read_up(&name(group)).await?;
        Ok(())
    }

    async fn commit(&mut self, group: &[u8], change: &Change) -> anyhow::Result<u64> {
        let name = name(group);
        let mut seq = None;
        if !change.add.is_empty() {
            let done = self.member.add(&name, &names(&change.add)).await?;
            anyhow::ensure!(done.left_out.is_empty(), "left out: {:?}", done.left_out);
            seq = Some(done.accepted.seq);
        }
        if !change.remove.is_empty() {
            let done = self.member.remove(&name, &names(&change.remove)).await?;
            seq = Some(done.accepted.seq);
        }
        match seq {
            Some(seq) => Ok(seq),
            None => Ok(self.member.update(&name).await?.accepted.seq),
        }
    }

    async fn prepare(&mut self, group: &[u8]) -> anyhow::Result<()> {
        Ok(self.member.prepare_update(&name(group)).await?)
    }

    async fn submit_prepared(&mut self, group: &[u8]) -> anyhow::Result<Race> {
        let mut tally = Tally::default();
        let settled = self.member.settle(&name(group), &mut tally).await?;
        match settled.context("nothing was prepared")?.accepted {
            Some(accepted) => Ok(Race::Won { seq: accepted.seq }),
            None => Ok(Race::Lost {
                winner_seq: *tally.winner_seqs.last().context("no winner was named")?,
            }),
        }
    }

    async fn send(&mut self, group: &[u8], text: &str) -> anyhow::Result<u64> {
        let message = [(self.member.new_id(), text.as_bytes().to_vec())];
        let sent = self.member.send(&name(group), &message).await?;
        Ok(sent.first().context("nothing was sent")?.accepted.seq)
    }

    async fn send_twice(&mut self, group: &[u8], text: &str) -> anyhow::Result<[u64; 2]> {
        let message = [(self.member.new_id(), text.as_bytes().to_vec())];
        let mut seqs = [0; 2];
        for seq in &mut seqs {
            let sent = self.member.send(&name(group), &message).await?;
            *seq = sent.first().context("nothing was sent")?.accepted.seq;
        }
        Ok(seqs)
    }

    async fn send_backwards(
        &mut self,
        _group: &[u8],
        _texts: &[String],
    ) -> anyhow::Result<Option<Vec<u64>>> {
        Ok(None)
    }

    async fn leave(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        Ok(self.member.leave(&name(group)).await?)
    }

    async fn propose_remove(
        &mut self,
        _group: &[u8],
        _whom: Person,
    ) -> anyhow::Result<Option<u64>> {
        Ok(None)
    }

    async fn resync(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        let name = name(group);
        self.member.step(|step, _| {
            group::forget(step, &name)?;
            Ok(records::delete_group(step, &name)?)
        })?;
        Ok(self.member.rejoin(&name).await?.accepted.seq)
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        let profile = Profile::read(&self.folder)?;
        self.member = Member::open(&self.folder, profile, DEADLINE).await?;
        Ok(())
    }

    fn state(&mut self, group: &[u8]) -> anyhow::Result<State> {
        let name = name(group);
        Ok(self.member.step(|step, _| {
            let mls_group = group::load(step, &name)?;
            let mut members: Vec<_> = group::roster(&mls_group)?
                .iter()
                .map(|(_, p)| person(p))
                .collect();
            members.sort();
            let exporter = mls_group
                .export_secret(step.provider().crypto(), EXPORTER_LABEL, &[], 32)
                .map_err(|error| CoreError::Mls(error.to_string()))?;
            Ok(State {
                epoch: mls_group.epoch().as_u64(),
                epoch_authenticator: mls_group.epoch_authenticator().as_slice().to_vec(),
                exporter,
                members,
            })
        })?)
    }

    fn texts(&mut self, group: &[u8]) -> anyhow::Result<Vec<String>> {
        let name = name(group);
        let entries = self
            .member
            .step(|step, _| Ok(records::entries(step, &name, 0, usize::MAX)?))?;
        Ok(entries
            .into_iter()
            .filter_map(|entry| Some(String::from_utf8_lossy(&entry.text?).into_owned()))
            .collect())
    }
}
