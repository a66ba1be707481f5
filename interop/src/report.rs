//! What came of the runs: a table, one summary object, JUnit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value, json};

/// Where a run belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Members through the real services.
    Live,
    /// Scripts of the `mls_client` protocol.
    Scripts,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Scripts => "scripts",
        }
    }
}

/// What came of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Passed,
    /// A role's stack cannot, as is known or as it says.
    Unsupported(String),
    /// Something is wrong.
    Failed(String),
    /// It was known not to work, and it did; or the other way round.
    Unexpected(String),
}

/// One run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where it belongs.
    pub part: Part,
    /// Scenario or script.
    pub scenario: String,
    /// RFC 9420 section 17.1.
    pub suite: u16,
    /// What else is special, or nothing.
    pub variant: String,
    /// Roles in order, and the stacks that play them.
    pub roles: Vec<(String, String)>,
    /// What came of it.
    pub outcome: Outcome,
    /// How long it took.
    pub elapsed: Duration,
}

impl Run {
    /// Scenario, suite, variant and roles, on one line.
    pub fn title(&self) -> String {
        let roles: Vec<String> = self
            .roles
            .iter()
            .map(|(r, s)| format!("{r}: {s}"))
            .collect();
        let mut title = format!("{}, suite {}", self.scenario, self.suite);
        if !self.variant.is_empty() {
            title = format!("{title}, {}", self.variant);
        }
        format!("{title} ({})", roles.join(", "))
    }

    /// The stack that plays all roles, or `mixed`.
    fn cast(&self) -> &str {
        let mut stacks = self.roles.iter().map(|(_, stack)| stack.as_str());
        let first = stacks.next().unwrap_or("mixed");
        if stacks.all(|stack| stack == first) {
            first
        } else {
            "mixed"
        }
    }
}

fn count(runs: &[Run], of: impl Fn(&Outcome) -> bool) -> usize {
    runs.iter().filter(|run| of(&run.outcome)).count()
}

/// The summary object.
pub fn summary(runs: &[Run], stacks: usize, skipped: &[&str]) -> Value {
    let scenarios: BTreeSet<_> = runs.iter().map(|run| (run.part, &run.scenario)).collect();
    json!({
        "stacks": stacks,
        "skipped": skipped,
        "scenarios": scenarios.len(),
        "runs": runs.len(),
        "passed": count(runs, |o| *o == Outcome::Passed),
        "failed": count(runs, |o| matches!(o, Outcome::Failed(_))),
        "unsupported": count(runs, |o| matches!(o, Outcome::Unsupported(_))),
        "unexpected": count(runs, |o| matches!(o, Outcome::Unexpected(_))),
    })
}

/// Passed, unsupported, wrong.
#[derive(Default, Clone, Copy)]
struct Cell(usize, usize, usize);

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(passed, unsupported, wrong) = *self;
        let mut parts = Vec::new();
        for (count, text) in [(passed, "passed"), (unsupported, "unsupported")] {
            if count > 0 {
                parts.push(format!("{count} {text}"));
            }
        }
        if wrong > 0 {
            parts.push(format!("**{wrong} wrong**"));
        }
        f.write_str(&parts.join(", "))
    }
}

/// A cast's column.
fn column(cast: &str) -> String {
    match cast {
        "mixed" => cast.to_owned(),
        stack => format!("{stack} alone"),
    }
}

/// One part as a Markdown table: a row for each scenario in the order of its first run, a column for each suite and for each cast.
pub fn table(part: Part, runs: &[Run]) -> String {
    let runs: Vec<&Run> = runs.iter().filter(|run| run.part == part).collect();
    let suites: BTreeSet<u16> = runs.iter().map(|run| run.suite).collect();
    let casts: BTreeSet<&str> = runs.iter().map(|run| run.cast()).collect();
    let mut columns: Vec<String> = suites.iter().map(|s| format!("suite {s}")).collect();
    columns.extend(casts.into_iter().map(column));
    let mut order: Vec<&str> = Vec::new();
    let mut cells: BTreeMap<(&str, String), Cell> = BTreeMap::new();
    for run in runs {
        if !order.contains(&run.scenario.as_str()) {
            order.push(&run.scenario);
        }
        for column in [format!("suite {}", run.suite), column(run.cast())] {
            let cell = cells.entry((&run.scenario, column)).or_default();
            match run.outcome {
                Outcome::Passed => cell.0 += 1,
                Outcome::Unsupported(_) => cell.1 += 1,
                Outcome::Failed(_) | Outcome::Unexpected(_) => cell.2 += 1,
            }
        }
    }
    let mut table = format!(
        "| {} | {} |\n|---|{}\n",
        part.name(),
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    for scenario in order {
        let cell = |column: &String| {
            let cell = cells.get(&(scenario, column.clone()));
            cell.copied().unwrap_or_default().to_string()
        };
        let cells: Vec<String> = columns.iter().map(cell).collect();
        // Writing to a String cannot fail.
        let _written = writeln!(table, "| {scenario} | {} |", cells.join(" | "));
    }
    table
}

/// All runs as JUnit XML: unsupported ones are skipped tests with their reason.
///
/// # Errors
/// The XML cannot be written.
pub fn junit(runs: &[Run]) -> anyhow::Result<String> {
    let mut report = quick_junit::Report::new("interop");
    for part in [Part::Live, Part::Scripts] {
        let mut suite = TestSuite::new(part.name());
        for run in runs.iter().filter(|run| run.part == part) {
            let status = match &run.outcome {
                Outcome::Passed => TestCaseStatus::success(),
                Outcome::Unsupported(why) => {
                    let mut status = TestCaseStatus::skipped();
                    status.set_message(why.as_str());
                    status
                }
                Outcome::Failed(why) | Outcome::Unexpected(why) => {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(why.as_str());
                    status
                }
            };
            let mut case = TestCase::new(run.title(), status);
            case.set_classname(run.scenario.as_str());
            case.set_time(run.elapsed);
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    Ok(report.to_string()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(scenario: &str, stacks: [&str; 2], outcome: Outcome) -> Run {
        let roles = ["first", "second"].into_iter().zip(stacks);
        Run {
            part: Part::Scripts,
            scenario: scenario.to_owned(),
            suite: 1,
            variant: "public handshake".to_owned(),
            roles: roles.map(|(r, s)| (r.to_owned(), s.to_owned())).collect(),
            outcome,
            elapsed: Duration::from_millis(1500),
        }
    }

    fn runs() -> Vec<Run> {
        vec![
            run("one", ["a", "a"], Outcome::Passed),
            run(
                "one",
                ["a", "b"],
                Outcome::Unsupported("no <ReInit>".into()),
            ),
            run(
                "two",
                ["b", "b"],
                Outcome::Failed("step 3: another text".into()),
            ),
            run("two", ["b", "a"], Outcome::Unexpected("it works".into())),
        ]
    }

    #[test]
    fn a_row_for_each_scenario_and_a_column_for_each_suite_and_cast() {
        let table = table(Part::Scripts, &runs());
        let expected = "| scripts | suite 1 | a alone | b alone | mixed |\n|---|---|---|---|---|\n\
                        | one | 1 passed, 1 unsupported | 1 passed |  | 1 unsupported |\n\
                        | two | **2 wrong** |  | **1 wrong** | **1 wrong** |\n";
        assert_eq!(table, expected);
    }

    #[test]
    fn nothing_is_lost_between_the_runs_and_the_summary() {
        let summary = summary(&runs(), 2, &["c"]);
        let expected = json!({
            "stacks": 2, "skipped": ["c"], "scenarios": 2, "runs": 4,
            "passed": 1, "failed": 1, "unsupported": 1, "unexpected": 1,
        });
        assert_eq!(summary, expected);
    }

    #[test]
    fn junit_has_failures_as_failures_and_the_unsupported_as_skipped() {
        let xml = junit(&runs()).unwrap();
        for (what, count) in [("<testcase ", 4), ("<failure ", 2), ("<skipped ", 1)] {
            assert_eq!(xml.matches(what).count(), count, "{what}: {xml}");
        }
        assert!(xml.contains("step 3: another text") && xml.contains("no &lt;ReInit&gt;"));
    }
}
