//! Pages of `docs/` whose commands are run: each is played, or is listed here with the reason why not.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeSet,
    io::Write as _,
    process::Command,
    sync::{Mutex, PoisonError},
};

use e2e::{programs::Programs, tour};

/// Pages that a test here plays.
const PLAYED: [&str; 3] = ["operating", "protocol", "quickstart"];
/// Pages with commands that no test plays, and why.
const NOT_PLAYED: [(&str, &str); 0] = [];

/// The pages name ports: one page at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

#[test]
fn every_page_with_commands_is_played_or_says_why_not() {
    let with_commands: BTreeSet<String> = tour::pages()
        .unwrap()
        .into_iter()
        .filter(|name| {
            let page = tour::read(name).unwrap();
            !page.blocks.is_empty() || !page.not_played.is_empty()
        })
        .collect();
    let known: BTreeSet<String> = PLAYED
        .into_iter()
        .chain(NOT_PLAYED.map(|(name, _)| name))
        .map(str::to_owned)
        .collect();
    assert_eq!(with_commands, known);
    assert!(NOT_PLAYED.iter().all(|(_, why)| !why.is_empty()));
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("command -v {program} >/dev/null")]);
    let path = std::env::var("PATH").unwrap_or_default();
    let ours = tour::root().join(".grpcurl");
    command.env("PATH", format!("{path}:{}", ours.display()));
    command.status().is_ok_and(|status| status.success())
}

/// Plays a page; without a program that it calls it is skipped, and in CI that is a failure.
fn play(name: &str, needed: &[&str]) {
    let missing: Vec<&&str> = needed.iter().filter(|p| !is_there(p)).collect();
    if !missing.is_empty() {
        let why =
            format!("docs/{name}.md is not played: {missing:?} missing (./dev setup --tests)");
        assert!(std::env::var_os("CI").is_none(), "{why}");
        // Not through the test harness, which would keep it to itself.
        let mut stderr = std::io::stderr();
        writeln!(stderr, "SKIPPED: {why}").unwrap();
        return;
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut said = Vec::new();
    let summary = tour::play(name, &Programs::find().unwrap(), &mut said).unwrap();
    let said = String::from_utf8_lossy(&said);
    assert_eq!(summary.failed, 0, "{said}");
    assert!(summary.commands > 0, "{said}");
}

#[test]
fn the_quick_start_runs_as_written() {
    play("quickstart", &["bash", "jq"]);
}

#[test]
fn the_operators_page_runs_as_written() {
    play(
        "operating",
        &["bash", "jq", "curl", "openssl", "psql", "pg_dump"],
    );
}

#[test]
fn the_calls_of_the_contract_run_as_written() {
    play("protocol", &["bash", "jq", "grpcurl"]);
}
