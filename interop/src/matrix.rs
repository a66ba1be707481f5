//! Which stacks play which roles, and what came of it.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    contract_member::ContractMember,
    engine::{Engine, Identity},
    mls_rs_engine,
    openmls_member::OpenMls,
    scenario::Stop,
    scenarios::{SCENARIOS, Scenario, UNSUPPORTED},
    stack::Stack,
    ts_engine::{self, TsMls},
    world::World,
};

/// Every stack.
pub const STACKS: [&str; 3] = ["openmls", "mls-rs", "ts-mls"];
/// Suites that both stacks have and a certificate fits: RFC 9420 section 17.1.
pub const SUITES: [u16; 2] = [1, 3];
/// The most roles that a scenario has.
const ROLES: usize = 4;

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Passed,
    /// A role's stack cannot, as is known.
    Unsupported(String),
    /// Something is wrong.
    Failed(String),
    /// It was known not to work, and it did; or the other way round.
    Unexpected(String),
}

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Its scenario.
    pub scenario: &'static str,
    /// Cipher suite.
    pub suite: u16,
    /// Stacks by role.
    pub stacks: Vec<&'static str>,
    /// What came of it.
    pub outcome: Outcome,
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
                let context = || format!("{handle} enrolls");
                of_role.push(match *stack {
                    "openmls" => {
                        let member = OpenMls::enroll(world, &handle, suite).await;
                        Box::new(member.with_context(context)?)
                    }
                    "mls-rs" => {
                        let start = mls_rs_engine::start;
                        let member = ContractMember::enroll(world, &handle, suite, start).await;
                        Box::new(member.with_context(context)?)
                    }
                    _ => {
                        let start = |suite: u16, identity: &Identity<'_>| {
                            let engine = TsMls::start(suite, identity)?;
                            Ok(Box::new(engine) as Box<dyn Engine>)
                        };
                        let member = ContractMember::enroll(world, &handle, suite, start).await;
                        Box::new(member.with_context(context)?)
                    }
                });
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

/// Every assignment of so many stacks to so many roles.
fn assignments(stacks: usize, roles: usize) -> Vec<Vec<usize>> {
    (0..roles).fold(vec![Vec::new()], |shorter, _| {
        let longer = |known: &Vec<usize>, stack: usize| [known.clone(), vec![stack]].concat();
        shorter
            .iter()
            .flat_map(|known| (0..stacks).map(move |stack| longer(known, stack)))
            .collect()
    })
}

/// Stacks that cannot take part on this machine, with the reason.
pub fn skipped() -> Vec<(&'static str, String)> {
    let ts = ts_engine::missing().map(|why| ("ts-mls", why));
    ts.into_iter().collect()
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
    let skipped = skipped();
    let taking_part = |stack: &&str| skipped.iter().all(|(name, _)| name != stack);
    let taking: Vec<&'static str> = STACKS.into_iter().filter(taking_part).collect();
    let world = World::start().await?;
    let mut runs = Vec::new();
    for suite in SUITES {
        let mut ensemble = Ensemble::enroll(&world, suite, &taking).await?;
        for scenario in SCENARIOS.iter().filter(|s| s.name.contains(only)) {
            for assignment in assignments(taking.len(), scenario.roles.len()) {
                let stacks: Vec<_> = assignment.iter().map(|stack| taking[*stack]).collect();
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
                let run = Run {
                    scenario: scenario.name,
                    suite,
                    stacks,
                    outcome,
                };
                seen(&run);
                runs.push(run);
            }
        }
    }
    world.stop().await?;
    Ok(runs)
}

fn count(runs: &[Run], of: impl Fn(&Outcome) -> bool) -> usize {
    runs.iter().filter(|run| of(&run.outcome)).count()
}

/// The summary object.
pub fn summary(runs: &[Run]) -> Value {
    let skipped = skipped();
    let scenarios: std::collections::BTreeSet<_> = runs.iter().map(|run| run.scenario).collect();
    json!({
        "stacks": STACKS.len() - skipped.len(),
        "skipped": skipped.iter().map(|(stack, _)| *stack).collect::<Vec<_>>(),
        "scenarios": scenarios.len(),
        "runs": runs.len(),
        "passed": count(runs, |o| *o == Outcome::Passed),
        "failed": count(runs, |o| matches!(o, Outcome::Failed(_))),
        "unsupported": count(runs, |o| matches!(o, Outcome::Unsupported(_))),
        "unexpected": count(runs, |o| matches!(o, Outcome::Unexpected(_))),
    })
}

/// Passed, unsupported and other runs of each scenario and suite, as a Markdown table.
pub fn table(runs: &[Run]) -> String {
    // Passed, unsupported, wrong.
    type Cell = (usize, usize, usize);
    let mut rows: BTreeMap<(usize, &str), BTreeMap<u16, Cell>> = BTreeMap::new();
    for run in runs {
        let place = SCENARIOS.iter().position(|s| s.name == run.scenario);
        let row = rows.entry((place.unwrap_or_default(), run.scenario));
        let cell = row.or_default().entry(run.suite).or_default();
        match run.outcome {
            Outcome::Passed => cell.0 += 1,
            Outcome::Unsupported(_) => cell.1 += 1,
            Outcome::Failed(_) | Outcome::Unexpected(_) => cell.2 += 1,
        }
    }
    let mut table = String::from("| scenario |");
    for suite in SUITES {
        // Writing to a String cannot fail.
        let _written = write!(table, " suite {suite} |");
    }
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(SUITES.len()));
    for ((_, scenario), cells) in rows {
        let _written = write!(table, "\n| {scenario} |");
        for suite in SUITES {
            let (passed, unsupported, wrong) = cells.get(&suite).copied().unwrap_or_default();
            let _written = write!(table, " {passed} passed");
            if unsupported > 0 {
                let _written = write!(table, ", {unsupported} unsupported");
            }
            if wrong > 0 {
                let _written = write!(table, ", **{wrong} wrong**");
            }
            table.push_str(" |");
        }
    }
    table.push('\n');
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_assignment_is_there_once() {
        let mut all = assignments(3, 4);
        assert_eq!(all.len(), 81);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 81);
        assert!(SCENARIOS.iter().all(|s| s.roles.len() <= ROLES));
    }
}
