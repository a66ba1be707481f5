//! A long random script from a seed: members come and go in every way, secrets are mixed in, and messages are read between all Commits.

use super::script::{Action, Commit, Description, Script, Step};

/// Identities that take part.
const POOL: usize = 6;
/// Past epochs that a resumption PSK is taken from, at most.
const LOOK_BACK: u64 = 3;

struct Walk {
    random: fastrand::Rng,
    steps: Vec<Step>,
    /// Members, and the epoch that each came in with.
    members: Vec<(String, u64)>,
    epoch: u64,
}

fn name(place: usize) -> String {
    format!("walker{place}")
}

/// At least so many steps.
pub fn walk(steps: usize, seed: u64) -> Script {
    let mut walk = Walk {
        random: fastrand::Rng::with_seed(seed),
        steps: Vec::new(),
        members: vec![(name(0), 0)],
        epoch: 0,
    };
    walk.push(
        &name(0),
        Action::CreateGroup {
            members: Vec::new(),
        },
    );
    while walk.steps.len() < steps {
        match walk.random.u8(..5) {
            0 => walk.external_join(),
            1 => walk.say(),
            _ => walk.commit(),
        }
    }
    Script {
        name: format!("random walk/seed_{seed}_steps_{steps}"),
        steps: walk.steps,
    }
}

impl Walk {
    fn push(&mut self, actor: &str, action: Action) -> usize {
        self.steps.push(Step {
            actor: actor.to_owned(),
            action,
        });
        self.steps.len() - 1
    }

    fn pick(&mut self) -> String {
        let place = self.random.usize(..self.members.len());
        self.members[place].0.clone()
    }

    fn others(&self, than: &str) -> Vec<String> {
        let names = self.members.iter().map(|(name, _)| name.clone());
        names.filter(|name| name != than).collect()
    }

    fn outside(&self) -> Vec<String> {
        let inside = |name: &String| self.members.iter().any(|(member, _)| member == name);
        (0..POOL).map(name).filter(|name| !inside(name)).collect()
    }

    fn say(&mut self) {
        let sender = self.pick();
        let text = format!("text {}", self.steps.len());
        let message = Action::Protect {
            authenticated_data: format!("data {}", self.steps.len()),
            plaintext: text,
        };
        let ciphertext = self.push(&sender, message);
        for reader in self.others(&sender) {
            self.push(&reader, Action::Unprotect { ciphertext });
        }
    }

    fn external_join(&mut self) {
        let mut outside = self.outside();
        self.random.shuffle(&mut outside);
        let Some(joiner) = outside.pop() else {
            return;
        };
        let actor = self.pick();
        let join = Action::ExternalJoin {
            joiner: joiner.clone(),
            members: self.others(&actor),
            external_tree: self.random.bool(),
            remove_prior: false,
            psks: Vec::new(),
        };
        self.push(&actor, join);
        self.epoch += 1;
        self.members.push((joiner, self.epoch));
    }

    /// A KeyPackage of somebody who is not in.
    fn add(&mut self, joiners: &mut Vec<String>) -> Option<usize> {
        let mut outside = self.outside();
        outside.retain(|name| !joiners.contains(name));
        self.random.shuffle(&mut outside);
        let joiner = outside.pop()?;
        joiners.push(joiner.clone());
        Some(self.push(&joiner, Action::CreateKeyPackage))
    }

    /// An epoch whose resumption PSK all members have.
    fn common_epoch(&mut self) -> Option<u64> {
        let oldest = self.members.iter().map(|(_, joined)| *joined).max()?;
        let oldest = oldest.max(self.epoch.saturating_sub(LOOK_BACK));
        (oldest < self.epoch).then(|| self.random.u64(oldest..self.epoch))
    }

    fn commit(&mut self) {
        let committer = self.pick();
        let mut commit = Commit {
            force_path: self.random.bool(),
            external_tree: self.random.bool(),
            ..Commit::default()
        };
        let mut joiners = Vec::new();
        let mut removed: Option<String> = None;
        let mut updated = Vec::new();
        for _ in 0..self.random.usize(..4) {
            let by_reference = self.random.bool().then(|| self.pick());
            match self.random.u8(..5) {
                0 | 1 => {
                    if let Some(key_package) = self.add(&mut joiners) {
                        let description = Description {
                            kind: "add".into(),
                            key_package,
                            ..Description::default()
                        };
                        let action = Action::AddProposal { key_package };
                        self.propose(&mut commit, by_reference, description, action);
                    }
                }
                2 if removed.is_none() && self.members.len() > 2 => {
                    let mut others = self.others(&committer);
                    others.retain(|name| !updated.contains(name));
                    self.random.shuffle(&mut others);
                    if let Some(leaves) = others.pop() {
                        removed = Some(leaves.clone());
                        let by_reference = by_reference.filter(|by| *by != leaves);
                        let description = Description {
                            kind: "remove".into(),
                            removed: leaves.clone(),
                            ..Description::default()
                        };
                        let action = Action::RemoveProposal { removed: leaves };
                        self.propose(&mut commit, by_reference, description, action);
                    }
                }
                3 => {
                    let mut others = self.others(&committer);
                    others.retain(|name| !updated.contains(name) && removed.as_ref() != Some(name));
                    self.random.shuffle(&mut others);
                    if let Some(updates) = others.pop() {
                        let step = self.push(&updates, Action::UpdateProposal);
                        commit.by_reference.push(step);
                        updated.push(updates);
                    }
                }
                // A joiner would need the secrets too.
                4 if joiners.is_empty() => self.secret(&mut commit, by_reference),
                _ => {}
            }
            // No joiner after a secret.
            if commit.by_value.iter().any(|d| d.kind.ends_with("PSK")) {
                break;
            }
        }
        self.full(&committer, commit, joiners, removed);
    }

    fn secret(&mut self, commit: &mut Commit, by_reference: Option<String>) {
        if let Some(epoch) = self.common_epoch().filter(|_| self.random.bool()) {
            let description = Description {
                kind: "resumptionPSK".into(),
                epoch,
                ..Description::default()
            };
            commit.by_value.push(description);
            return;
        }
        let psk = self.install();
        if let Some(by) = by_reference {
            let step = self.push(&by, Action::ExternalPskProposal { psk });
            commit.by_reference.push(step);
        }
        let psk = self.install();
        commit.by_value.push(Description {
            kind: "externalPSK".into(),
            psk,
            ..Description::default()
        });
    }

    /// A secret for everybody in the group.
    fn install(&mut self) -> usize {
        let clients = self.members.iter().map(|(name, _)| name.clone()).collect();
        self.push("", Action::InstallExternalPsk { clients })
    }

    fn propose(
        &mut self,
        commit: &mut Commit,
        by_reference: Option<String>,
        description: Description,
        action: Action,
    ) {
        match by_reference {
            Some(by) => {
                let step = self.push(&by, action);
                commit.by_reference.push(step);
            }
            None => commit.by_value.push(description),
        }
    }

    fn full(
        &mut self,
        committer: &str,
        commit: Commit,
        joiners: Vec<String>,
        removed: Option<String>,
    ) {
        let mut members = self.others(committer);
        members.retain(|name| removed.as_ref() != Some(name));
        let action = Action::FullCommit {
            commit,
            members,
            joiners: joiners.clone(),
        };
        self.push(committer, action);
        self.epoch += 1;
        self.members
            .retain(|(name, _)| removed.as_ref() != Some(name));
        let epoch = self.epoch;
        self.members
            .extend(joiners.into_iter().map(|name| (name, epoch)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_one_walk_and_it_does_everything() {
        let script = walk(400, 7);
        assert_eq!(script, walk(400, 7));
        assert_ne!(script, walk(400, 8));
        let kinds: Vec<String> = script
            .steps
            .iter()
            .flat_map(|step| match &step.action {
                Action::FullCommit { commit, .. } => {
                    commit.by_value.iter().map(|d| d.kind.clone()).collect()
                }
                action => vec![
                    format!("{action:?}")
                        .split([' ', '('])
                        .next()
                        .unwrap_or_default()
                        .to_owned(),
                ],
            })
            .collect();
        for kind in [
            "add",
            "remove",
            "externalPSK",
            "resumptionPSK",
            "AddProposal",
            "RemoveProposal",
            "UpdateProposal",
            "ExternalPskProposal",
            "ExternalJoin",
            "Protect",
            "Unprotect",
        ] {
            assert!(kinds.iter().any(|k| k == kind), "no {kind}");
        }
    }
}
