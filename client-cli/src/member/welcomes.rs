//! Welcomes: used, or put aside where they never can be.

use chancery_proto::{
    common::v1::Reason,
    delivery::v1::{
        AckWelcomesRequest, FetchTreeRequest, ListWelcomesRequest, TreeNode, Welcome, WelcomeRef,
    },
    mutants::{self, Mutant},
};
use openmls::prelude::RatchetTreeIn;

use super::{Member, commit::Tally};
use crate::{
    core::{
        CoreError, group, guarded, join,
        records::{self, GroupName, Operation},
    },
    failure::Failure,
    fault,
    outcomes::{Failed, Loop, Outcomes, ends_loop},
    progress::Task,
};

/// What became of a Welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entered {
    /// This device is in the group by it.
    Joined,
    /// It was used before, or opens nothing that this device does not have.
    Known,
    /// It can never be used, with the reason; the device comes back from outside where the policy allows it.
    PutAside(String),
}

/// A Welcome that can never be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutAside {
    /// The group.
    pub group: GroupName,
    /// The seq of the Commit that added this device.
    pub seq: u64,
    /// Why.
    pub why: String,
}

/// What became of all Welcomes that waited.
#[derive(Debug, Default)]
pub struct Joins {
    /// Groups that this device joined, each once.
    pub joined: Vec<GroupName>,
    /// Welcomes that can never be used.
    pub put_aside: Vec<PutAside>,
    /// Welcomes that may be used another time.
    pub failed: Vec<Failed>,
    /// The groups that they are into: coming in from outside would close to this device what they still open.
    pub waiting: Vec<GroupName>,
}

/// Whether a tree that could not be had never can be: the server has it no more, or what it has is no tree.
fn never(failure: &Failure) -> bool {
    match failure {
        Failure::Core(error) => !matches!(error, CoreError::Store(_)),
        Failure::Answer(_) => true,
        failure => matches!(
            failure.reason(),
            Some(Reason::Group | Reason::EpochTooOld | Reason::EpochVoided)
        ),
    }
}

impl Member {
    /// The tree of an epoch.
    ///
    /// # Errors
    /// The refusal, no answer, or nodes that are no tree.
    pub async fn tree(&self, name: &GroupName, epoch_seq: u64) -> Result<RatchetTreeIn, Failure> {
        let request = FetchTreeRequest {
            group: Some(name.to_ref()),
            epoch_seq,
            current: false,
        };
        let (width, nodes) = self
            .delivery(request, async |mut client, request| {
                let mut parts = client.fetch_tree(request).await?.into_inner();
                let (mut width, mut nodes) = (0, Vec::new());
                while let Some(part) = parts.message().await? {
                    width = part.tree_width;
                    nodes.extend(part.nodes);
                    let at = nodes.last().map_or(0, |node: &TreeNode| node.index.into());
                    self.progress.at(Task::Joining, at, 2 * u64::from(width));
                }
                Ok((width, nodes))
            })
            .await?
            .value;
        self.progress.at(Task::Joining, 0, 0);
        Ok(group::ratchet_tree(width, &nodes)?)
    }

    /// Unacknowledged Welcomes of this device.
    ///
    /// # Errors
    /// The refusal, or no answer.
    pub async fn welcomes(&self) -> Result<Vec<Welcome>, Failure> {
        let answer = self
            .delivery(
                ListWelcomesRequest::default(),
                async |mut client, request| {
                    let mut parts = client.list_welcomes(request).await?.into_inner();
                    let mut welcomes = Vec::new();
                    while let Some(part) = parts.message().await? {
                        welcomes.extend(part.welcomes);
                    }
                    Ok(welcomes)
                },
            )
            .await?;
        Ok(answer.value)
    }

    /// Uses every Welcome that waits.
    ///
    /// # Errors
    /// See [`crate::outcomes::ends_loop`]; what fails of one Welcome is in the answer.
    pub async fn join_all(&self) -> Result<Joins, Failure> {
        self.join_these(self.welcomes().await?).await
    }

    /// Uses every Welcome into one group.
    ///
    /// # Errors
    /// See [`Member::join_all`].
    pub(super) async fn join_waiting(&self, name: &GroupName) -> Result<Joins, Failure> {
        let mut welcomes = self.welcomes().await?;
        let into = |welcome: &Welcome| welcome.group.as_ref().map(GroupName::from_ref);
        welcomes.retain(|welcome| into(welcome).as_ref() == Some(name));
        self.join_these(welcomes).await
    }

    async fn join_these(&self, welcomes: Vec<Welcome>) -> Result<Joins, Failure> {
        let mut joins = Joins::default();
        let mut outcomes = Outcomes::of(Loop::Welcomes);
        for welcome in welcomes {
            let Some(group) = welcome.group.as_ref().map(GroupName::from_ref) else {
                outcomes.record("a Welcome", Err::<(), _>(no_group()))?;
                continue;
            };
            match outcomes.run(&group, Box::pin(self.join(&welcome))).await? {
                Some(Entered::Joined) if !joins.joined.contains(&group) => joins.joined.push(group),
                Some(Entered::PutAside(why)) => joins.put_aside.push(PutAside {
                    group,
                    seq: welcome.seq,
                    why,
                }),
                None => joins.waiting.push(group),
                _ => {}
            }
        }
        joins.failed = outcomes.failed();
        Ok(joins)
    }

    /// Uses one Welcome, or puts it aside, and acknowledges it.
    ///
    /// # Errors
    /// What may pass: the refusal, no answer, or the store.
    pub async fn join(&self, welcome: &Welcome) -> Result<Entered, Failure> {
        let Some(reference) = &welcome.group else {
            return Err(no_group());
        };
        let name = GroupName::from_ref(reference);
        let known = self.step(|step, _| join::known(step, &name, welcome.seq))?;
        let entered = if known {
            Entered::Known
        } else {
            // A return that is under way is another membership: what became of it is asked first.
            Box::pin(self.settle_return(&name)).await?;
            // Another membership may have ended before this one began: what was said in it is read first, as long as
            // its keys are here.
            self.read_before(&name, welcome.seq).await?;
            match self.tree(&name, welcome.epoch_seq).await {
                Ok(tree) => self.enter(welcome, &name, tree)?,
                Err(failure) if never(&failure) && !mutants::is_on(Mutant::UnusableWelcomeKept) => {
                    let why = failure.to_string();
                    self.step(|step, _| join::put_aside(step, welcome, &name, &why))?;
                    Entered::PutAside(why)
                }
                Err(failure) => return Err(failure),
            }
        };
        fault::point("before-welcome-ack");
        let request = AckWelcomesRequest {
            welcomes: vec![WelcomeRef {
                group: welcome.group.clone(),
                seq: welcome.seq,
            }],
        };
        self.delivery(request, async |mut client, request| {
            client.ack_welcomes(request).await
        })
        .await?;
        fault::point("after-welcome-ack");
        Ok(entered)
    }

    /// Finds out what became of an external Commit that was kept.
    async fn settle_return(&self, name: &GroupName) -> Result<(), Failure> {
        let record = self.step(|step, _| Ok(records::group(step, name)?))?;
        let pending = record.and_then(|record| record.pending);
        if pending.is_none_or(|pending| pending.operation != Operation::External) {
            return Ok(());
        }
        match self.settle(name, &mut Tally::default()).await {
            Err(failure) if ends_loop(&failure) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Uses a Welcome with the tree of its epoch, or puts it aside where it can never be used. Another process of this
    /// profile may have used it meanwhile, whose state is not to be lost.
    ///
    /// # Errors
    /// The store.
    pub fn enter(
        &self,
        welcome: &Welcome,
        name: &GroupName,
        tree: RatchetTreeIn,
    ) -> Result<Entered, Failure> {
        self.step(|step, context| {
            if join::known(step, name, welcome.seq)? {
                return Ok(Entered::Known);
            }
            match step.attempt(|| guarded(|| join::welcome(step, context, welcome, tree))) {
                Ok(_) => Ok(Entered::Joined),
                Err(CoreError::Store(error)) => Err(error.into()),
                Err(error) => {
                    let why = error.to_string();
                    join::put_aside(step, welcome, name, &why)?;
                    Ok(Entered::PutAside(why))
                }
            }
        })
    }
}

fn no_group() -> Failure {
    Failure::Answer("a Welcome without a group".into())
}
