//! The hostile member: its keys are true, and nothing of what it emits is kept in its own state.
//!
//! | module | what it emits |
//! |---|---|
//! | this one | what all of them need; one object of a kind |
//! | `propose` | proposals, by reference |
//! | `commit` | Commits, and what goes beside them |
//! | `outside` | external Commits |
//! | `beside` | GroupInfos, KeyPackages, reports |
//! | `say` | application messages |
//! | `several` | what takes more than one request |

mod beside;
mod commit;
mod outside;
mod propose;
mod say;
mod several;

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context as _, anyhow};
use chancery_proto::{
    common::v1::{DeviceRef, Reason},
    delivery::v1::*,
    group_info::GroupInfo,
    policy::{ExternalJoin, POLICY_EXTENSION, Policy},
};
use client_cli::{
    core::{
        Context as MemberContext, CoreError,
        group::{self, MAX_BYTES},
        identity::LeafKey,
        records::{self, GroupName, Person},
    },
    failure::Failure,
    member::{Member, directory::Name},
    store::Step,
};
use openmls::{
    prelude::{tls_codec::Deserialize as _, *},
    schedule::{ExternalPsk, PreSharedKeyId, Psk},
};

use super::{
    craft::InfoChange,
    grammar::Kind,
    hand::{FalseHand, Wrong},
};

/// What came of an object.
#[derive(Debug)]
pub enum Answer {
    /// The service took it; the entries that it became.
    Accepted(Vec<u64>),
    /// The service refused it, for this reason and in these words.
    Refused(Option<Reason>, String),
}

/// The entries that an object became, or the refusal.
type Done = Result<Vec<u64>, Failure>;

/// Its device, the group that it is in, and whom it aims at.
pub struct Actor {
    /// The hostile member.
    pub member: Rc<Member>,
    /// Another device of the same person, which publishes what the first one cannot.
    pub second: Rc<Member>,
    /// The group.
    pub group: GroupName,
    /// An honest member.
    pub victim: Person,
    /// An honest device that is not in the group.
    pub newcomer: Person,
    /// A message that was framed and not sent yet.
    late: RefCell<Option<SendMessageRequest>>,
    texts: RefCell<u64>,
}

/// What a Commit of the actor holds.
#[derive(Default)]
struct Plan {
    add: Vec<Vec<u8>>,
    remove: Vec<Person>,
    psk: bool,
    wrong: Wrong,
    context: Option<Extensions<GroupContext>>,
}

fn broken(error: impl std::fmt::Display) -> CoreError {
    CoreError::Malformed(error.to_string())
}

impl Actor {
    /// A member that does not mean well.
    pub fn new(
        member: Rc<Member>,
        second: Rc<Member>,
        group: GroupName,
        victim: Person,
        newcomer: Person,
    ) -> Self {
        Self {
            member,
            second,
            group,
            victim,
            newcomer,
            late: RefCell::default(),
            texts: RefCell::default(),
        }
    }

    fn id(&self) -> [u8; 16] {
        self.member.new_id()
    }

    fn key(&self) -> anyhow::Result<LeafKey> {
        Ok(self.member.identity().leaf_key(group::SUITES[0])?)
    }

    /// Makes something of the group's state, and keeps nothing of it.
    fn craft<T>(
        &self,
        make: impl FnOnce(&Step<'_>, MemberContext<'_>) -> Result<T, CoreError>,
    ) -> anyhow::Result<T> {
        let mut made = Err(anyhow!("the state cannot be used"));
        let undone = self.member.step(|step, context| {
            made = make(step, context).map_err(|error| anyhow!("{error}"));
            Err::<(), _>(broken("nothing of it is kept"))
        });
        drop(undone);
        made
    }

    /// Comes to where the group is, so that what it emits is of the current epoch.
    async fn catch_up(&self) -> anyhow::Result<()> {
        let look = || self.member.record(&self.group);
        self.member.step(|step, _| {
            if let Some(mut record) = records::group(step, &self.group)? {
                record.copies = 0;
                records::put_group(step, &record)?;
            }
            Ok::<_, CoreError>(())
        })?;
        self.member.sync(None).await?;
        let active = |record: records::GroupRecord| {
            record.state == records::GroupState::Active && record.pending.is_none()
        };
        if !look().is_ok_and(active) {
            self.member.rejoin_by_hand(&self.group).await?;
        }
        Ok(())
    }

    /// Emits one object of a kind.
    ///
    /// # Errors
    /// It cannot be made: the actor is out of the group, or somebody is not where it must be.
    pub async fn emit(&self, kind: Kind) -> anyhow::Result<Answer> {
        self.catch_up().await?;
        let done = match kind {
            Kind::ProposePsk
            | Kind::ProposeMember
            | Kind::ProposeTwice
            | Kind::ProposeRemove
            | Kind::ProposeUpdate
            | Kind::ProposeCustom
            | Kind::ProposeWindow
            | Kind::ProposeNoJoin
            | Kind::ProposeHome
            | Kind::ProposeNothing
            | Kind::ProposeUnpublished => self.propose(kind).await?,
            Kind::ExternalOther
            | Kind::ExternalNone
            | Kind::ExternalTwo
            | Kind::ExternalUnsigned => self.submit(self.external(kind).await?).await,
            Kind::PutSuite | Kind::PutWindow | Kind::PutAlone | Kind::PutPub => {
                self.put(kind).await?
            }
            Kind::PutAloneGarbage => {
                let put = self.put(Kind::PutAlone).await?;
                let spoilt = self.submit(self.garbage_with_its_tree().await?).await;
                put.and(spoilt)
            }
            Kind::CommitLeaverStays => {
                self.second_asks_to_leave().await?;
                self.submit(self.commit(kind).await?).await
            }
            Kind::WelcomeElsewhere => self.welcomes_elsewhere().await?,
            Kind::ClaimEverything => self.claims_everything().await?,
            Kind::PackageInit
            | Kind::PackageLeaf
            | Kind::PackageLowOrder
            | Kind::PackageSame
            | Kind::PackageDefaults
            | Kind::PackageGrease => self.package(kind).await?,
            Kind::ReportSlander | Kind::ReportSpoilt => self.report(kind).await?,
            Kind::LeaveAndStay => self.member.leave(&self.group).await.map(|seq| vec![seq]),
            Kind::MessageBytes
            | Kind::MessageEmpty
            | Kind::MessageOtherId
            | Kind::MessageRepeated
            | Kind::MessageLate => self.message(kind).await?,
            Kind::MessageMoved => self.message_after_a_move().await?,
            _ => {
                let request = self.commit(kind).await?;
                let first = self.submit(request.clone()).await;
                if kind == Kind::CommitRepeated && first.is_ok() {
                    let mut again = request;
                    let mut bytes = again.bundles[0].commit.to_vec();
                    spoil_last(&mut bytes);
                    again.bundles[0].commit = bytes.into();
                    self.submit(again).await
                } else {
                    first
                }
            }
        };
        Ok(match done {
            Ok(seqs) => Answer::Accepted(seqs),
            Err(failure) => Answer::Refused(failure.reason(), failure.to_string()),
        })
    }

    async fn submit(&self, request: SubmitCommitRequest) -> Done {
        let answer = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.submit_commit(request).await?.into_inner())
            })
            .await?;
        Ok(answer
            .value
            .results
            .iter()
            .map(|result| result.seq)
            .collect())
    }

    async fn send(&self, request: SendMessageRequest) -> Done {
        let answer = self
            .member
            .delivery(request, async |mut client, request| {
                Ok(client.send_message(request).await?.into_inner())
            })
            .await?;
        Ok(vec![answer.value.seq])
    }

    /// KeyPackages of these devices, asked for like anybody does.
    async fn packages(&self, devices: &[Name]) -> anyhow::Result<Vec<Vec<u8>>> {
        let request = self.claim_request(devices);
        let claims = self.member.ask_for_key_packages(request).await?;
        let packages: Vec<Vec<u8>> = claims.iter().map(|c| c.key_package.to_vec()).collect();
        if packages.iter().any(Vec::is_empty) {
            return Err(anyhow!("somebody has no KeyPackage"));
        }
        Ok(packages)
    }

    fn claim_request(&self, devices: &[Name]) -> ClaimKeyPackagesRequest {
        ClaimKeyPackagesRequest {
            claim_id: self.id().to_vec().into(),
            devices: devices
                .iter()
                .map(|(domain, id)| DeviceRef {
                    domain: domain.clone(),
                    id: id.to_vec().into(),
                })
                .collect(),
            suites: vec![u16::from(group::SUITES[0]).into()],
            ..ClaimKeyPackagesRequest::default()
        }
    }

    async fn newcomers_package(&self) -> anyhow::Result<Vec<u8>> {
        let packages = self
            .packages(&[(self.newcomer.domain.clone(), self.newcomer.device)])
            .await?;
        packages.into_iter().next().context("no answer")
    }
}

fn spoil_last(bytes: &mut [u8]) {
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
}

fn unknown_psk(step: &Step<'_>, mls: &MlsGroup) -> Result<PreSharedKeyId, CoreError> {
    let provider = step.provider();
    let external = Psk::External(ExternalPsk::new(b"a secret that nobody has".to_vec()));
    let psk = PreSharedKeyId::new(mls.ciphersuite(), provider.rand(), external).map_err(broken)?;
    psk.store(provider, b"secret").map_err(broken)?;
    Ok(psk)
}

fn read_package(step: &Step<'_>, bytes: &[u8]) -> Result<KeyPackage, CoreError> {
    let message = MlsMessageIn::tls_deserialize_exact(bytes).map_err(broken)?;
    let MlsMessageBodyIn::KeyPackage(package) = message.extract() else {
        return Err(broken("no KeyPackage"));
    };
    let crypto = step.provider().crypto();
    package
        .validate(crypto, ProtocolVersion::Mls10)
        .map_err(broken)
}

fn leaf_of(mls: &MlsGroup, person: &Person) -> Result<LeafNodeIndex, CoreError> {
    let roster = group::roster(mls)?;
    let found = roster.iter().find(|(_, member)| member == person);
    found
        .map(|(index, _)| *index)
        .ok_or_else(|| broken("not a member"))
}

/// The group's extensions with another policy.
fn policy_of_kind(mls: &MlsGroup, kind: Kind) -> Result<Extensions<GroupContext>, CoreError> {
    let mut extensions = mls.extensions().clone();
    let mut policy = group::policy_of(&extensions)?;
    match kind {
        Kind::ProposeNoJoin => policy.external_join = ExternalJoin::None,
        Kind::ProposeHome => policy.home_domain = "elsewhere.example".into(),
        _ => policy.past_epochs += 1,
    }
    let extension = Extension::Unknown(POLICY_EXTENSION, UnknownExtension(policy.encode()));
    extensions.add_or_replace(extension).map_err(broken)?;
    Ok(extensions)
}

/// Another policy in a GroupInfo, of the same length.
fn other_policy(bytes: &[u8]) -> anyhow::Result<InfoChange> {
    let policy = GroupInfo::parse(bytes, MAX_BYTES)?.policy()?;
    let other = Policy {
        past_epochs: policy.past_epochs ^ 8,
        ..policy.clone()
    };
    Ok(InfoChange {
        replace: Some((policy.encode(), other.encode())),
        ..InfoChange::default()
    })
}
