//! Which stacks play which roles, and what came of it.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    mls_rs_member,
    openmls_member::OpenMls,
    scenario::Stop,
    scenarios::{SCENARIOS, Scenario, UNSUPPORTED},
    stack::Stack,
    world::World,
};

/// Stacks that take part.
pub const STACKS: [&str; 2] = ["openmls", "mls-rs"];
/// Stacks that do not yet, with the reason.
pub const SKIPPED: [(&str, &str); 1] = [("ts-mls", "its member is not written yet")];
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
    async fn enroll(world: &World, suite: u16) -> anyhow::Result<Self> {
        let mut members = Vec::new();
        for role in 0..ROLES {
            let mut of_role: Vec<Box<dyn Stack>> = Vec::new();
            let openmls = OpenMls::enroll(world, &format!("openmls-{suite}-{role}"), suite).await;
            of_role.push(Box::new(openmls.context("openmls enrolls")?));
            let handle = format!("mls-rs-{suite}-{role}");
            let mls_rs = mls_rs_member::enroll(world, &handle, suite).await;
            of_role.push(mls_rs.context("mls-rs enrolls")?);
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

/// Every assignment of the stacks to so many roles.
fn assignments(roles: usize) -> Vec<Vec<usize>> {
    (0..STACKS.len().pow(u32::try_from(roles).unwrap_or(0)))
        .map(|number| {
            let digit = |role: usize| {
                number / STACKS.len().pow(u32::try_from(role).unwrap_or(0)) % STACKS.len()
            };
            (0..roles).map(digit).collect()
        })
        .collect()
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
    let world = World::start().await?;
    let mut runs = Vec::new();
    for suite in SUITES {
        let mut ensemble = Ensemble::enroll(&world, suite).await?;
        for scenario in SCENARIOS.iter().filter(|s| s.name.contains(only)) {
            for assignment in assignments(scenario.roles.len()) {
                let stacks: Vec<_> = assignment.iter().map(|stack| STACKS[*stack]).collect();
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
    let scenarios: std::collections::BTreeSet<_> = runs.iter().map(|run| run.scenario).collect();
    json!({
        "stacks": STACKS.len(),
        "skipped": SKIPPED.map(|(stack, _)| stack),
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
        let mut all = assignments(3);
        assert_eq!(all.len(), 8);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 8);
        assert!(SCENARIOS.iter().all(|s| s.roles.len() <= ROLES));
    }
}
