//! Which stacks play which roles, and what came of it.

use std::time::Instant;

use anyhow::Context as _;

use crate::{
    contract_member::ContractMember,
    mls_rs_engine, node_process,
    openmls_member::OpenMls,
    plan::assignments,
    report::{Outcome, Part, Run},
    scenario::Stop,
    scenarios::{SCENARIOS, Scenario, UNSUPPORTED},
    stack::Stack,
    ts_member::TsMember,
    world::World,
};

/// Every stack.
pub const STACKS: [&str; 3] = ["openmls", "mls-rs", "ts-mls"];
/// Suites that every stack has: RFC 9420 section 17.1.
pub const SUITES: [u16; 3] = [1, 2, 3];
/// The most roles that a scenario has.
const ROLES: usize = 4;

/// Enrolls a member of a stack.
///
/// # Errors
/// A service refuses.
pub async fn enroll(
    world: &World,
    stack: &str,
    handle: &str,
    suite: u16,
) -> anyhow::Result<Box<dyn Stack>> {
    let context = || format!("{handle} enrolls");
    Ok(match stack {
        "openmls" => {
            let member = OpenMls::enroll(world, handle, suite).await;
            Box::new(member.with_context(context)?)
        }
        "mls-rs" => {
            let start = mls_rs_engine::start;
            let member = ContractMember::enroll(world, handle, suite, start).await;
            Box::new(member.with_context(context)?)
        }
        _ => {
            let member = TsMember::enroll(world, handle, suite).await;
            Box::new(member.with_context(context)?)
        }
    })
}

/// Enrolled members: one of each stack for each role.
struct Ensemble {
    members: Vec<Vec<Box<dyn Stack>>>,
}

impl Ensemble {
    async fn enroll(world: &World, suite: u16, stacks: &[&'static str]) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        for role in 0..ROLES {
            let mut of_role: Vec<Box<dyn Stack>> = Vec::new();
            for stack in stacks {
                let handle = format!("{stack}-{suite}-{role}");
                of_role.push(enroll(world, stack, &handle, suite).await?);
            }
            members.push(of_role);
        }
        Ok(Self { members })
    }

    fn cast(&mut self, assignment: &[usize]) -> Vec<&mut Box<dyn Stack>> {
        self.members
            .iter_mut()
            .zip(assignment)
            .filter_map(|(of_role, stack)| of_role.get_mut(*stack))
            .collect()
    }
}

/// Stacks that cannot take part on this machine, with the reason.
pub fn skipped() -> Vec<(&'static str, String)> {
    let ts = node_process::missing().map(|why| ("ts-mls", why));
    ts.into_iter().collect()
}

/// Every stack that can take part on this machine.
pub fn taking_part() -> Vec<&'static str> {
    let skipped = skipped();
    let taking_part = |stack: &&str| skipped.iter().all(|(name, _)| name != stack);
    STACKS.into_iter().filter(taking_part).collect()
}

/// Why this assignment is known not to work.
fn known(scenario: &Scenario, stacks: &[&str]) -> Option<&'static str> {
    UNSUPPORTED
        .iter()
        .find(|(name, role, stack, _)| {
            *name == scenario.name && stacks.get(*role).is_some_and(|s| s == stack)
        })
        .map(|(_, _, _, why)| *why)
}

/// Plays the scenarios whose name holds `only`, in all assignments and suites; `seen` hears of each run.
///
/// # Errors
/// The services do not start, or nobody can enroll.
pub async fn play(only: &str, mut seen: impl FnMut(&Run)) -> anyhow::Result<Vec<Run>> {
    let taking = taking_part();
    let world = World::start().await?;
    let mut runs = Vec::new();
    for suite in SUITES {
        let mut ensemble = Ensemble::enroll(&world, suite, &taking).await?;
        for scenario in SCENARIOS.iter().filter(|s| s.name.contains(only)) {
            for assignment in assignments(taking.len(), scenario.roles.len()) {
                let stacks: Vec<_> = assignment.iter().map(|stack| taking[*stack]).collect();
                let began = Instant::now();
                let played = (scenario.play)(ensemble.cast(&assignment)).await;
                let outcome = match (played, known(scenario, &stacks)) {
                    (Ok(()), None) => Outcome::Passed,
                    (Ok(()), Some(why)) => {
                        Outcome::Unexpected(format!("it works, and was known not to: {why}"))
                    }
                    (Err(Stop::Unsupported(_)), Some(why)) => Outcome::Unsupported(why.to_owned()),
                    (Err(Stop::Unsupported(who)), None) => {
                        Outcome::Unexpected(format!("{who} cannot, and that was not known"))
                    }
                    (Err(Stop::Failed(error)), _) => Outcome::Failed(format!("{error:#}")),
                };
                let roles = scenario.roles.iter().zip(&stacks);
                let run = Run {
                    part: Part::Live,
                    scenario: scenario.name.to_owned(),
                    suite,
                    variant: String::new(),
                    roles: roles
                        .map(|(r, s)| ((*r).to_owned(), (*s).to_owned()))
                        .collect(),
                    outcome,
                    elapsed: began.elapsed(),
                };
                seen(&run);
                runs.push(run);
            }
        }
    }
    world.stop().await?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_scenario_has_more_roles_than_members() {
        assert!(SCENARIOS.iter().all(|s| s.roles.len() <= ROLES));
    }
}
