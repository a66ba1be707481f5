//! Groups made and changed. A Commit is kept before it is sent; a lost race is re-based on the winner and tried again.

use chancery_proto::{
    delivery::v1::{
        CreateGroupRequest, GetGroupInfoRequest, LeaveGroupRequest, Outcome, SubmitCommitRequest,
    },
    mutants::{self, Mutant},
    signed,
};
use openmls_traits::signatures::Signer as _;
use prost::Message as _;

use super::{Member, directory::Name};
use crate::{
    core::{
        CoreError, commit,
        group::{self, Founding},
        guarded, join,
        left_out::{self, LeftOut},
        pending::{self, CommitStep, Told},
        proposals,
        records::{self, Accepted, GroupName, GroupState, Intent, Operation, Pending, Person},
        stage,
    },
    failure::Failure,
    fault,
};

/// How often a lost race is tried again.
const RACES: u32 = 50;
/// How long a leave request stands, seconds.
const LEAVE_SECONDS: i64 = 7 * 86_400;

/// What was met on the way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Races lost.
    pub races: u32,
    /// Seqs of the Commits that won them.
    pub winner_seqs: Vec<u64>,
    /// Requests that were sent and got no answer.
    pub unknown_outcomes: u32,
}

impl Tally {
    pub(super) fn add(&mut self, earlier: Self) {
        self.races += earlier.races;
        self.winner_seqs.splice(..0, earlier.winner_seqs);
        self.unknown_outcomes += earlier.unknown_outcomes;
    }

    fn lost_race(&mut self, failure: &Failure) {
        self.races += 1;
        if let Failure::Refused(refusal) = failure
            && let Some(seq) = refusal.metadata.get("winner_seq")
        {
            self.winner_seqs.extend(seq.parse::<u64>());
        }
    }
}

/// What became of a pending operation.
#[derive(Debug, Clone)]
pub struct Settled {
    /// Which.
    pub message_id: [u8; 16],
    /// What it was.
    pub pending: Pending,
    /// Where it stands; `None` when another Commit was first.
    pub accepted: Option<Accepted>,
}

/// An accepted change of a group.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Which group.
    pub group: GroupName,
    /// The Commit's id.
    pub message_id: [u8; 16],
    /// Where it stands.
    pub accepted: Accepted,
    /// Devices that got a leaf.
    pub added: Vec<Person>,
    /// Devices that lost theirs.
    pub removed: Vec<Person>,
    /// Devices that were asked for and got no leaf, with the reason.
    pub left_out: Vec<(String, String)>,
    /// What was met on the way.
    pub tally: Tally,
}

impl Member {
    /// Makes a group with only this device in it. With an `id` that this device made a group by before, it is that group.
    ///
    /// # Errors
    /// The refusal, no answer (the creation is kept and `sync` finishes it), or the store.
    pub async fn create_group(
        &self,
        founding: Founding,
        id: Option<Vec<u8>>,
    ) -> Result<Committed, Failure> {
        let name = GroupName {
            domain: self.profile.delivery_domain.clone(),
            id: id.unwrap_or_else(|| [self.new_id(), self.new_id()].concat()),
        };
        self.step(|step, context| {
            if records::group(step, &name)?.is_none() {
                group::create(step, context, &name, founding, self.new_id(), None)?;
            }
            Ok(())
        })?;
        fault::point("before-send");
        let mut tally = Tally::default();
        match self.settle(&name, &mut tally).await? {
            Some(settled) => finished(name, Some(settled), tally, Vec::new()),
            None => self.as_it_is(name, tally),
        }
    }

    /// What a command that finds everything done answers: where the group is.
    fn as_it_is(&self, name: GroupName, tally: Tally) -> Result<Committed, Failure> {
        let record = self.record(&name)?;
        if record.state != GroupState::Active {
            return Err(CoreError::State(record.state.name().to_owned()).into());
        }
        Ok(Committed {
            group: name,
            message_id: [0; 16],
            accepted: Accepted {
                seq: record.epoch_seq,
                epoch: record.epoch,
                chain: record.chain.to_vec(),
                outcome: Outcome::Standing.into(),
                replayed: true,
            },
            added: Vec::new(),
            removed: Vec::new(),
            left_out: Vec::new(),
            tally,
        })
    }

    /// Removes devices in one Commit, and with them those that asked to leave.
    ///
    /// # Errors
    /// The refusal, no answer, nobody to remove, or the store.
    pub async fn remove(&self, name: &GroupName, devices: &[Name]) -> Result<Committed, Failure> {
        let mut tally = Tally::default();
        let before = self.settle(name, &mut tally).await?;
        self.read_up(name).await?;
        let remove = self.step(|step, context| {
            left_out::forget(step, name, devices)?;
            let roster = group::look(step, name, group::roster)?;
            let leaving = records::group(step, name)?
                .map(|r| r.leaving)
                .unwrap_or_default();
            let named = |p: &Person| devices.iter().any(|d| p.domain == d.0 && p.device == d.1);
            let people = roster.into_iter().map(|(_, person)| person);
            Ok(people
                .filter(|p| *p != context.identity.person)
                .filter(|p| named(p) || leaving.contains(p))
                .collect::<Vec<_>>())
        })?;
        if remove.is_empty() {
            return finished(name.clone(), before, tally, Vec::new());
        }
        let intent = Intent {
            remove,
            ..Intent::default()
        };
        self.change(name, intent, tally).await
    }

    /// Asks the others to remove this device: the request is signed with the leaf's key, and becomes an entry of the log. Its seq.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub async fn leave(&self, name: &GroupName) -> Result<u64, Failure> {
        let (record, key) = self.step(|step, context| {
            let record = commit::active(step, name)?;
            let suite = group::look(step, name, |group| Ok(group.ciphersuite()))?;
            Ok::<_, CoreError>((record, context.identity.leaf_key(suite)?))
        })?;
        let joined_seq = record.joined_seq.max(record.rejoined_seq);
        let expires_at = self.now() + LEAVE_SECONDS;
        let own = &self.identity.person;
        let content = signed::leave(
            (&name.domain, &name.id),
            (&own.domain, &own.device),
            joined_seq,
            expires_at,
        );
        let signature = key
            .sign(&signed::to_be_signed(signed::LEAVE, &content))
            .map_err(|_| Failure::Profile("the device key cannot sign".into()))?;
        let request = LeaveGroupRequest {
            group: Some(name.to_ref()),
            message_id: self.new_id().to_vec().into(),
            joined_seq,
            expires_at,
            signature: signature.into(),
        };
        let answer = self
            .delivery(request, async |mut client, request| {
                Ok(client.leave_group(request).await?.into_inner())
            })
            .await?;
        self.step(|step, _| {
            records::change(step, name, |record| {
                // Its membership may have ended before the answer came.
                record.leaves = record.state == GroupState::Active;
            })
        })?;
        Ok(answer.value.seq)
    }

    /// The devices of users that are in a group, as this device sees it.
    ///
    /// # Errors
    /// The group is not known here, or the store.
    pub fn devices_in(&self, name: &GroupName, users: &[Name]) -> Result<Vec<Name>, Failure> {
        self.step(|step, _| {
            let roster = group::look(step, name, group::roster)?;
            Ok(roster
                .into_iter()
                .filter(|(_, p)| users.iter().any(|u| p.domain == u.0 && p.user == u.1))
                .map(|(_, p)| (p.domain, p.device))
                .collect())
        })
    }

    /// Renews the keys of this device's leaf.
    ///
    /// # Errors
    /// The refusal, no answer, or the store.
    pub async fn update(&self, name: &GroupName) -> Result<Committed, Failure> {
        let intent = Intent {
            update: true,
            ..Intent::default()
        };
        self.change(name, intent, Tally::default()).await
    }

    /// Commits what others proposed, and nothing else.
    ///
    /// # Errors
    /// The refusal, no answer, nothing proposed, or the store.
    pub async fn commit_proposals(&self, name: &GroupName) -> Result<Committed, Failure> {
        self.change(name, Intent::default(), Tally::default()).await
    }

    /// Makes the Commit of an update and keeps it, without sending it: for whoever wants to hold it a moment.
    ///
    /// # Errors
    /// No answer, or the store.
    pub async fn prepare_update(&self, name: &GroupName) -> Result<(), Failure> {
        self.settle(name, &mut Tally::default()).await?;
        self.read_up(name).await?;
        let update = Intent {
            update: true,
            ..Intent::default()
        };
        self.step(|step, context| {
            let mut record = commit::active(step, name)?;
            stage::stage(step, context, &mut record, &update, self.new_id()).map(|_| ())
        })
    }

    /// Comes back: by a Welcome that waits for a device whose state is lost, or else by an external Commit, which takes
    /// its old leaf in the roster and its key.
    ///
    /// # Errors
    /// The refusal (the policy may not allow it), no answer, or the store.
    pub async fn rejoin(&self, name: &GroupName) -> Result<Committed, Failure> {
        if Box::pin(self.read_before_return(name)).await? {
            return self.as_it_is(name.clone(), Tally::default());
        }
        let mut tally = Tally::default();
        loop {
            let known = self.step(|step, _| Ok(records::group(step, name)?))?;
            if known.is_some_and(|r| r.pending.is_some()) {
                let settled = self.settle(name, &mut tally).await?;
                if settled.as_ref().is_some_and(|s| {
                    s.accepted.is_some() && s.pending.operation == Operation::External
                }) {
                    return finished(name.clone(), settled, tally, Vec::new());
                }
            }
            if tally.races > RACES {
                return Err(Failure::Races { races: tally.races });
            }
            let request = GetGroupInfoRequest {
                group: Some(name.to_ref()),
            };
            let info = self
                .delivery(request, async |mut client, request| {
                    Ok(client.get_group_info(request).await?.into_inner())
                })
                .await?
                .value;
            let tree = self.tree(name, info.epoch_seq).await?;
            let made = self.step(|step, context| {
                guarded(|| join::external(step, context, name, &info, tree, self.new_id()))
                    .map(|_| ())
            });
            if let Err(Failure::Core(CoreError::OtherPolicy(differs))) = &made {
                self.waits_for_its_policy(name, differs)?;
            }
            made?;
            fault::point("before-send");
        }
    }

    /// Uses a Welcome that waits for a device whose state is lost; whether that brought it back. Then reads what only
    /// the state that is about to be given up can read: by that a device may learn that it was removed, and added
    /// again. Not where a return is under way already: reading would take it over, and it would be made a second time.
    async fn read_before_return(&self, name: &GroupName) -> Result<bool, Failure> {
        let known = || self.step(|step, _| Ok(records::group(step, name)?));
        let record = known()?;
        if record
            .as_ref()
            .is_some_and(|record| record.pending.is_some())
        {
            return Ok(false);
        }
        let lost = record.is_none_or(|r| {
            matches!(r.state, GroupState::Removed | GroupState::NeedsRejoin(_))
                && !mutants::is_on(Mutant::WelcomeKnownByHead)
        });
        let mut joined = lost && self.joins(name).await?;
        self.read_to_the_end(name).await?;
        if known()?.is_none_or(|record| record.state == GroupState::Removed) {
            joined |= self.joins(name).await?;
            self.read_to_the_end(name).await?;
        }
        let active = known()?.is_some_and(|record| record.state == GroupState::Active);
        Ok(joined && active)
    }

    /// Uses the Welcomes into a group; whether this device is in by one of them.
    async fn joins(&self, name: &GroupName) -> Result<bool, Failure> {
        Ok(!self.join_waiting(name).await?.joined.is_empty())
    }

    /// The GroupInfo was not used: whoever waits for a return is told why.
    fn waits_for_its_policy(&self, name: &GroupName, differs: &str) -> Result<(), Failure> {
        self.step(|step, _| {
            records::change(step, name, |record| {
                if let GroupState::NeedsRejoin(why) = &mut record.state {
                    *why = format!("ALARM: a GroupInfo of another policy was not used: {differs}");
                }
            })
        })
    }

    /// The same on a person's word: other copies of this profile that were seen before are forgiven.
    ///
    /// # Errors
    /// See [`Member::rejoin`].
    pub async fn rejoin_by_hand(&self, name: &GroupName) -> Result<Committed, Failure> {
        self.step(|step, _| {
            if let Some(mut record) = records::group(step, name)? {
                record.copies = 0;
                records::put_group(step, &record)?;
            }
            Ok(())
        })?;
        self.rejoin(name).await
    }

    /// One intent until it is done: settle what is open, catch up, build, send, and once more after a lost race.
    pub(super) async fn change(
        &self,
        name: &GroupName,
        intent: Intent,
        mut tally: Tally,
    ) -> Result<Committed, Failure> {
        let intent = self.with_left_out(name, intent)?;
        let mut unusable = Vec::new();
        loop {
            let settled = self.settle(name, &mut tally).await?;
            if settled
                .as_ref()
                .is_some_and(|s| s.accepted.is_some() && same_change(&s.pending.intent, &intent))
            {
                return finished(name.clone(), settled, tally, unusable);
            }
            if tally.races > RACES {
                return Err(Failure::Races { races: tally.races });
            }
            self.read_up(name).await?;
            let plan = self.step(|step, context| {
                let mut record = commit::active(step, name)?;
                if record.pending.is_some() {
                    // Another command of this profile was faster; its Commit goes first.
                    return Ok(commit::Plan::default());
                }
                let plan = stage::stage(step, context, &mut record, &intent, self.new_id())?;
                let left_out = |(person, why): &(Option<Person>, String)| {
                    let person = person.as_ref()?;
                    let device = (person.domain.clone(), person.device);
                    Some(LeftOut::own(&device, Some(person.user), why, context.now))
                };
                let devices = plan.unusable.iter().filter_map(left_out).collect();
                left_out::note(step, name, devices)?;
                Ok(plan)
            })?;
            let unreachable = plan.unreachable.into_iter();
            let unreachable = unreachable.map(|(person, why)| (Some(person), why));
            unusable = plan
                .unusable
                .into_iter()
                .chain(unreachable)
                .map(|(person, why)| (person.map_or_else(String::new, |p| p.device_uri()), why))
                .collect();
            fault::point("before-send");
        }
    }

    /// Each Commit of this device says whom it could not add: who came in by the Commit that left somebody out has
    /// not read that one.
    fn with_left_out(&self, name: &GroupName, mut intent: Intent) -> Result<Intent, Failure> {
        let known = self.step(|step, _| Ok(left_out::of_group(step, name)?))?;
        let own = known.iter().filter(|left_out| left_out.own);
        for person in own.filter_map(LeftOut::person).take(left_out::AT_ONCE) {
            if !intent.left_out.contains(&person) {
                intent.left_out.push(person);
            }
        }
        Ok(intent)
    }

    /// Finds out what became of a group's pending operation, sending it again if need be.
    ///
    /// # Errors
    /// A refusal other than a lost race, no answer, or the store.
    pub async fn settle(
        &self,
        name: &GroupName,
        tally: &mut Tally,
    ) -> Result<Option<Settled>, Failure> {
        let record = self.step(|step, _| Ok(records::group(step, name)?))?;
        let Some(pending) = record.and_then(|record| record.pending) else {
            return Ok(None);
        };
        let settled = |accepted| {
            Ok(Some(Settled {
                message_id: pending.message_id,
                pending: pending.clone(),
                accepted,
            }))
        };
        let sent = match &pending.accepted {
            Some(accepted) => Ok((accepted.clone(), 0)),
            None => self.submit(&pending).await,
        };
        let told = match &sent {
            Ok(_) => Told::Accepted,
            Err(failure) => match failure.told() {
                Some(told) => told,
                None => return sent.map(|_| None),
            },
        };
        let step = pending::commit_answered(pending.operation, told);
        let (accepted, unknown) = match (step, sent) {
            (_, Ok(sent)) => sent,
            (CommitStep::Keep | CommitStep::TakeOver, Err(failure)) => {
                return Err(failure.kept_as(pending.message_id));
            }
            (CommitStep::GiveWay, Err(failure)) => {
                tally.lost_race(&failure);
                self.give_way(name, &pending).await?;
                return settled(None);
            }
            (CommitStep::Heed, Err(failure)) => {
                self.drop_pending(name, &pending)?;
                if !self.heeds(name, &failure).await? {
                    return Err(failure);
                }
                // Built again, it removes them too.
                tally.races += 1;
                return settled(None);
            }
            (CommitStep::Drop, Err(failure)) => {
                self.drop_pending(name, &pending)?;
                if told == Told::Passed {
                    tally.lost_race(&failure);
                } else if !self.refuses_proposals_of(name, &pending, &failure)? {
                    return Err(failure);
                }
                return settled(None);
            }
        };
        tally.unknown_outcomes += unknown;
        fault::point("after-send");
        self.accept(name, &pending, &accepted).await?;
        settled(Some(accepted))
    }

    async fn submit(&self, pending: &Pending) -> Result<(Accepted, u32), Failure> {
        let unreadable = |_| Failure::Profile("a pending request cannot be read".into());
        if pending.operation == Operation::Create {
            let request =
                CreateGroupRequest::decode(pending.request.as_slice()).map_err(unreadable)?;
            let answer = self
                .delivery(request, async |mut client, request| {
                    Ok(client.create_group(request).await?.into_inner())
                })
                .await?;
            let created = answer.value;
            let accepted = Accepted {
                seq: created.head_seq,
                epoch: created.epoch,
                chain: created.chain.to_vec(),
                outcome: 1,
                replayed: created.replayed,
            };
            return Ok((accepted, answer.unknown_outcomes));
        }
        let request =
            SubmitCommitRequest::decode(pending.request.as_slice()).map_err(unreadable)?;
        let mut answer = self
            .delivery(request, async |mut client, request| {
                Ok(client.submit_commit(request).await?.into_inner())
            })
            .await?;
        let result = answer
            .value
            .results
            .pop()
            .ok_or_else(|| Failure::Answer("an accepted Commit without a result".into()))?;
        let accepted = Accepted {
            seq: result.seq,
            epoch: result.epoch,
            chain: result.chain.to_vec(),
            outcome: result.outcome,
            replayed: result.replayed,
        };
        Ok((accepted, answer.unknown_outcomes))
    }

    /// Takes over an accepted operation: a Commit is merged where it stands in the log, after what came before it.
    async fn accept(
        &self,
        name: &GroupName,
        pending: &Pending,
        accepted: &Accepted,
    ) -> Result<(), Failure> {
        self.step(|step, _| {
            let Some(mut record) = records::group(step, name)? else {
                return Ok(());
            };
            // Another command of this profile may have taken it over meanwhile.
            if let Some(known) = &mut record.pending
                && known.message_id == pending.message_id
            {
                known.accepted = Some(accepted.clone());
                if pending.operation == Operation::Create {
                    record.state = GroupState::Active;
                    record.head_seq = accepted.seq;
                    record.chain = accepted
                        .chain
                        .as_slice()
                        .try_into()
                        .map_err(|_| CoreError::Malformed("chain".into()))?;
                    record.pending = None;
                }
                records::put_group(step, &record)?;
                records::promise(step, name, accepted)?;
                if accepted.outcome == i32::from(Outcome::Standing) {
                    records::settled(step, name, accepted.seq)?;
                }
            }
            Ok(())
        })?;
        if pending.operation != Operation::Create {
            self.read_up(name).await?;
        }
        Ok(())
    }

    /// Another Commit was first: its entry makes this device drop its own.
    async fn give_way(&self, name: &GroupName, pending: &Pending) -> Result<(), Failure> {
        self.read_up(name).await?;
        self.drop_pending(name, pending)
    }

    /// What others proposed may be why the server refused a Commit, and the server cannot say so: it is built again without. False where it took in nothing.
    fn refuses_proposals_of(
        &self,
        name: &GroupName,
        pending: &Pending,
        failure: &Failure,
    ) -> Result<bool, Failure> {
        if pending.proposals.is_empty() || mutants::is_on(Mutant::RefusedProposalsKept) {
            return Ok(false);
        }
        let why = format!("the server refused a Commit with it: {failure}");
        self.step(|step, _| {
            let mut record = records::known(step, name)?;
            proposals::refuse(step, &mut record, &pending.proposals, &why)?;
            Ok(records::put_group(step, &record)?)
        })?;
        Ok(true)
    }

    fn drop_pending(&self, name: &GroupName, pending: &Pending) -> Result<(), Failure> {
        self.step(|step, _| {
            let Some(mut record) = records::group(step, name)? else {
                return Ok(());
            };
            match &record.pending {
                Some(known) if known.message_id == pending.message_id => {
                    commit::drop_pending(step, &mut record)
                }
                _ => Ok(()),
            }
        })
    }
}

/// What was settled is what is wanted now: a command repeated after a crash.
fn same_change(settled: &Intent, wanted: &Intent) -> bool {
    settled.update == wanted.update
        && settled.remove == wanted.remove
        && settled.key_packages == wanted.key_packages
}

pub(super) fn finished(
    group: GroupName,
    settled: Option<Settled>,
    tally: Tally,
    left_out: Vec<(String, String)>,
) -> Result<Committed, Failure> {
    let settled = settled.ok_or(CoreError::Nothing)?;
    let accepted = settled.accepted.ok_or(CoreError::Nothing)?;
    Ok(Committed {
        group,
        message_id: settled.message_id,
        accepted,
        added: settled.pending.added,
        removed: settled.pending.removed,
        left_out,
        tally,
    })
}
