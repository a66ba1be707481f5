//! A member on the wire contract alone, whatever MLS library does its cryptography: what somebody else's client has to do.
//!
//! It checks the chain and each Commit against its CommitInfo, merges its own Commits where they stand in the log, and commits before speaking when
//! somebody proposed. Nothing of our client is in it.

use std::collections::{BTreeSet, HashMap};

use anyhow::{Context as _, bail, ensure};
use chancery_proto::{
    commit_info::CommitInfo,
    common::v1::Reason,
    delivery::v1::{SendMessageRequest, SubmitCommitRequest, Welcome},
    policy::Policy,
    status::Refusal,
};
use tonic::{Code, Status, async_trait};
use uuid::Uuid;

use crate::{
    contract::{aad, bundle, members},
    engine::{Engine, Identity},
    stack::{Change, EXPORTER_LABEL, Race, Stack, State},
    wire::{Device, Person, full_tree, group_ref},
    world::{DOMAIN, World},
};

const KEY_PACKAGES: usize = 10;
const RACES: usize = 20;

/// Makes an engine for an enrolled device and a suite.
pub type Start = fn(u16, &Identity<'_>) -> anyhow::Result<Box<dyn Engine>>;

/// A Commit that was made and not yet answered.
pub(crate) struct Pending {
    pub(crate) message_id: Uuid,
    request: SubmitCommitRequest,
}

/// A group beside the library's own state.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) head_seq: u64,
    pub(crate) chain: [u8; 32],
    pub(crate) epoch_seq: u64,
    pub(crate) joined_seq: u64,
    pub(crate) removed: bool,
    /// Who asked to be removed.
    pub(crate) leaving: BTreeSet<Person>,
    /// Proposals of this epoch: where they stand, and whom they remove.
    pub(crate) proposals: Vec<(u64, Option<Person>)>,
    /// Own messages that the log has not shown yet; a proposal has no text.
    pub(crate) own: HashMap<Uuid, Option<String>>,
    pub(crate) texts: Vec<String>,
    pub(crate) pending: Option<Pending>,
}

/// A device on the contract.
pub struct ContractMember {
    pub(crate) device: Device,
    pub(crate) engine: Box<dyn Engine>,
    suite: u16,
    groups: HashMap<Vec<u8>, Known>,
}

pub(crate) fn minus(all: &[Person], without: &[Person]) -> Vec<Person> {
    all.iter()
        .filter(|p| !without.contains(p))
        .copied()
        .collect()
}

fn chain32(bytes: &[u8]) -> anyhow::Result<[u8; 32]> {
    bytes.try_into().context("a chain value of another length")
}

/// The winner's seq, when this is the refusal of a lost race.
fn stale(status: &Status) -> Option<u64> {
    let refusal = Refusal::from_status(status);
    let lost = refusal.code == Code::Aborted && refusal.reason == Some(Reason::StaleEpoch);
    lost.then(|| refusal.metadata.get("winner_seq")?.parse().ok())?
}

impl ContractMember {
    /// Enrolls a device and publishes KeyPackages of the suite.
    ///
    /// # Errors
    /// A service refuses, or the library does.
    pub async fn enroll(
        world: &World,
        handle: &str,
        suite: u16,
        start: Start,
    ) -> anyhow::Result<Self> {
        let code = world.invite(handle).await?;
        let device = Device::enroll(&world.place(), code, handle).await?;
        let key = device.leaf_key(suite)?;
        let identity = Identity {
            certificate: &key.certificate,
            secret: &key.secret,
            public_key: &key.public_key,
        };
        let engine = start(suite, &identity)?;
        let mut member = Self {
            device,
            engine,
            suite,
            groups: HashMap::new(),
        };
        let packages = (0..KEY_PACKAGES)
            .map(|_| false)
            .chain([true])
            .map(|last_resort| member.engine.key_package(last_resort))
            .collect::<anyhow::Result<_>>()?;
        member.device.publish(packages).await?;
        Ok(member)
    }

    /// The `authorization` header of this member's calls.
    ///
    /// # Errors
    /// The token is no header value.
    pub fn authorization(&self) -> anyhow::Result<String> {
        let request = self.device.by(())?;
        let header = request.metadata().get("authorization");
        Ok(header.context("no token")?.to_str()?.to_owned())
    }

    pub(crate) fn known(&mut self, group: &[u8]) -> anyhow::Result<&mut Known> {
        self.groups.get_mut(group).context("an unknown group")
    }

    pub(crate) fn roster(&mut self, group: &[u8]) -> anyhow::Result<Vec<(u32, Person)>> {
        let roster = self.engine.roster(group)?;
        roster
            .iter()
            .map(|(index, der)| Ok((*index, Person::of(der, DOMAIN)?)))
            .collect()
    }

    pub(crate) fn people(&mut self, group: &[u8]) -> anyhow::Result<Vec<Person>> {
        let roster = self.roster(group)?;
        Ok(roster.into_iter().map(|(_, person)| person).collect())
    }

    fn index_of(&mut self, group: &[u8], whom: Person) -> anyhow::Result<u32> {
        let roster = self.roster(group)?;
        let found = roster.iter().find(|(_, person)| *person == whom);
        Ok(found.context("nobody to remove")?.0)
    }

    async fn join(&mut self, welcome: &Welcome) -> anyhow::Result<()> {
        let id = welcome.group.as_ref().context("no group")?.id.to_vec();
        let tree = self.device.tree(&id, welcome.epoch_seq).await?;
        self.engine.join(&id, &welcome.welcome, &tree)?;
        let texts = self.groups.remove(&id).map(|known| known.texts);
        let known = Known {
            head_seq: welcome.seq,
            chain: chain32(&welcome.chain)?,
            epoch_seq: welcome.epoch_seq,
            joined_seq: welcome.seq,
            texts: texts.unwrap_or_default(),
            ..Known::default()
        };
        self.groups.insert(id, known);
        Ok(self.device.acknowledge(welcome).await?)
    }

    /// Makes a Commit on the group as it is, and keeps it.
    async fn stage(&mut self, group: &[u8], change: &Change) -> anyhow::Result<()> {
        let packages = match change.add.as_slice() {
            [] => Vec::new(),
            add => self.device.claim(group, self.suite, add).await?,
        };
        let id = Uuid::new_v4();
        let own = self.device.person;
        let known = self.known(group)?;
        let mut removed: Vec<Person> = known.proposals.iter().filter_map(|(_, p)| *p).collect();
        let asked: Vec<Person> = known.leaving.iter().copied().collect();
        let wanted = [change.remove.clone(), minus(&asked, &change.remove)].concat();
        let direct = minus(&minus(&wanted, &removed), &[own]);
        removed.extend(&direct);
        let info = CommitInfo {
            added: members(DOMAIN, change.add.iter().copied()),
            removed: members(DOMAIN, removed),
            proposals: known.proposals.iter().map(|(seq, _)| *seq).collect(),
            seen_seq: known.head_seq,
            seen_chain: known.chain,
            ..CommitInfo::default()
        };
        let epoch_seq = known.epoch_seq;
        let leaves = direct
            .iter()
            .map(|person| self.index_of(group, *person))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let aad = aad(*id.as_bytes(), Some(info));
        let made = self.engine.commit(group, &packages, &leaves, &aad)?;
        let request = SubmitCommitRequest {
            group: group_ref(DOMAIN, group),
            bundles: vec![bundle(*id.as_bytes(), made)?],
            epoch_seq,
        };
        self.known(group)?.pending = Some(Pending {
            message_id: id,
            request,
        });
        Ok(())
    }

    fn message(
        &mut self,
        group: &[u8],
        id: Uuid,
        message: Vec<u8>,
    ) -> anyhow::Result<SendMessageRequest> {
        Ok(SendMessageRequest {
            group: group_ref(DOMAIN, group),
            message_id: id.as_bytes().to_vec().into(),
            message: message.into(),
            epoch_seq: self.known(group)?.epoch_seq,
            ..SendMessageRequest::default()
        })
    }
}

#[async_trait(?Send)]
impl Stack for ContractMember {
    fn library(&self) -> &'static str {
        self.engine.library()
    }

    fn person(&self) -> Person {
        self.device.person
    }

    async fn create(&mut self) -> anyhow::Result<Vec<u8>> {
        let id = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let epoch = self
            .engine
            .create(&id, &Policy::for_domain(DOMAIN).encode())?;
        let tree = full_tree(&epoch.tree)?;
        self.device
            .create_group(&id, self.suite, epoch.group_info, tree)
            .await?;
        self.groups.insert(id.clone(), Known::default());
        Ok(id)
    }

    async fn sync(&mut self, group: &[u8]) -> anyhow::Result<()> {
        for welcome in self.device.welcomes().await? {
            self.join(&welcome).await?;
        }
        self.read(group).await
    }

    async fn commit(&mut self, group: &[u8], change: &Change) -> anyhow::Result<u64> {
        for _ in 0..RACES {
            self.read(group).await?;
            self.stage(group, change).await?;
            if let Race::Won { seq } = self.submit_prepared(group).await? {
                return Ok(seq);
            }
        }
        bail!("lost {RACES} races in a row")
    }

    async fn prepare(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.read(group).await?;
        self.stage(group, &Change::default()).await
    }

    async fn submit_prepared(&mut self, group: &[u8]) -> anyhow::Result<Race> {
        let pending = self.known(group)?.pending.as_ref();
        let request = pending.context("nothing was prepared")?.request.clone();
        let race = match self.device.submit(request).await {
            Ok(answer) => Race::Won {
                seq: answer.results.first().context("no result")?.seq,
            },
            Err(status) => Race::Lost {
                winner_seq: stale(&status).ok_or(status)?,
            },
        };
        self.read(group).await?;
        Ok(race)
    }

    async fn send(&mut self, group: &[u8], text: &str) -> anyhow::Result<u64> {
        if !self.known(group)?.proposals.is_empty() {
            self.commit(group, &Change::default()).await?;
        }
        let id = Uuid::new_v4();
        let message = self
            .engine
            .send(group, text.as_bytes(), &aad(*id.as_bytes(), None))?;
        let request = self.message(group, id, message)?;
        self.known(group)?.own.insert(id, Some(text.to_owned()));
        Ok(self.device.send(request).await?.seq)
    }

    async fn send_twice(&mut self, group: &[u8], text: &str) -> anyhow::Result<[u64; 2]> {
        let id = Uuid::new_v4();
        let message = self
            .engine
            .send(group, text.as_bytes(), &aad(*id.as_bytes(), None))?;
        let request = self.message(group, id, message)?;
        self.known(group)?.own.insert(id, Some(text.to_owned()));
        let first = self.device.send(request.clone()).await?;
        let second = self.device.send(request).await?;
        ensure!(
            second.replayed,
            "the second one is not marked as a repetition"
        );
        Ok([first.seq, second.seq])
    }

    async fn send_backwards(
        &mut self,
        group: &[u8],
        texts: &[String],
    ) -> anyhow::Result<Option<Vec<u64>>> {
        let mut requests = Vec::new();
        for text in texts {
            let id = Uuid::new_v4();
            let message = self
                .engine
                .send(group, text.as_bytes(), &aad(*id.as_bytes(), None))?;
            requests.push(self.message(group, id, message)?);
            self.known(group)?.own.insert(id, Some(text.clone()));
        }
        let mut seqs = Vec::new();
        for request in requests.into_iter().rev() {
            seqs.push(self.device.send(request).await?.seq);
        }
        seqs.reverse();
        Ok(Some(seqs))
    }

    async fn leave(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        let joined = self.known(group)?.joined_seq;
        Ok(self.device.leave(group, self.suite, joined).await?)
    }

    async fn propose_remove(&mut self, group: &[u8], whom: Person) -> anyhow::Result<Option<u64>> {
        self.read(group).await?;
        let id = Uuid::new_v4();
        let leaf = self.index_of(group, whom)?;
        let message = self
            .engine
            .propose_remove(group, leaf, &aad(*id.as_bytes(), None))?;
        let request = self.message(group, id, message)?;
        // The library keeps its own proposal; its entry in the log brings nothing new.
        self.known(group)?.own.insert(id, None);
        let seq = self.device.send(request).await?.seq;
        self.known(group)?.proposals.push((seq, Some(whom)));
        Ok(Some(seq))
    }

    async fn resync(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        let own = self.device.person;
        for _ in 0..RACES {
            let info = self.device.group_info(group).await?;
            let tree = self.device.tree(group, info.epoch_seq).await?;
            let id = Uuid::new_v4();
            let commit_info = CommitInfo {
                added: members(DOMAIN, [own]),
                removed: members(DOMAIN, [own]),
                seen_seq: info.head_seq,
                seen_chain: chain32(&info.chain)?,
                ..CommitInfo::default()
            };
            let aad = aad(*id.as_bytes(), Some(commit_info));
            let made = self.engine.external(group, &info.group_info, &tree, &aad)?;
            let request = SubmitCommitRequest {
                group: group_ref(DOMAIN, group),
                bundles: vec![bundle(*id.as_bytes(), made)?],
                epoch_seq: info.epoch_seq,
            };
            let result = match self.device.submit(request).await {
                Ok(answer) => answer.results.into_iter().next().context("no result")?,
                Err(status) => {
                    stale(&status).ok_or(status)?;
                    continue;
                }
            };
            let texts = self.groups.remove(group).map(|known| known.texts);
            let known = Known {
                head_seq: result.seq,
                chain: chain32(&result.chain)?,
                epoch_seq: result.epoch_seq,
                joined_seq: result.seq,
                texts: texts.unwrap_or_default(),
                ..Known::default()
            };
            self.groups.insert(group.to_vec(), known);
            return Ok(result.seq);
        }
        bail!("lost {RACES} races in a row")
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        self.engine.restart()
    }

    fn state(&mut self, group: &[u8]) -> anyhow::Result<State> {
        let mut members = self.people(group)?;
        members.sort();
        let secrets = self.engine.secrets(group, EXPORTER_LABEL)?;
        Ok(State {
            epoch: secrets.epoch,
            epoch_authenticator: secrets.authenticator,
            exporter: secrets.exporter,
            members,
        })
    }

    fn texts(&mut self, group: &[u8]) -> anyhow::Result<Vec<String>> {
        Ok(self.known(group)?.texts.clone())
    }
}
