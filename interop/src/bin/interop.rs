//! `./dev interop`: other stacks as members, in every role, through the real services.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use interop::matrix::{self, Outcome};

/// Plays every scenario with every assignment of MLS stacks to its roles.
#[derive(Debug, Parser)]
#[command(name = "interop", version)]
struct Cli {
    /// Only scenarios whose name holds this.
    #[arg(long, default_value = "")]
    only: String,
    /// Print the summary object as the last line.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut stdout = std::io::stdout();
    let runs = matrix::play(&cli.only, |run| {
        let stacks = run.stacks.join(", ");
        let (name, suite) = (run.scenario, run.suite);
        let mut stdout = std::io::stdout();
        // Nobody may be watching.
        let _gone = match &run.outcome {
            Outcome::Passed => Ok(()),
            Outcome::Unsupported(why) => {
                writeln!(
                    stdout,
                    "unsupported: {name}, suite {suite} ({stacks}): {why}"
                )
            }
            Outcome::Failed(why) => {
                writeln!(stdout, "FAILED: {name}, suite {suite} ({stacks}): {why}")
            }
            Outcome::Unexpected(why) => {
                writeln!(
                    stdout,
                    "UNEXPECTED: {name}, suite {suite} ({stacks}): {why}"
                )
            }
        };
    })
    .await?;
    writeln!(stdout, "\n{}", matrix::table(&runs))?;
    let skipped = matrix::skipped();
    for (stack, why) in &skipped {
        writeln!(stdout, "SKIPPED: {stack}: {why}")?;
    }
    let summary = matrix::summary(&runs);
    if cli.json {
        writeln!(stdout, "{summary}")?;
    }
    let wrong = summary["failed"] != 0 || summary["unexpected"] != 0;
    Ok(match (wrong, skipped.is_empty()) {
        (true, _) => ExitCode::FAILURE,
        (false, true) => ExitCode::SUCCESS,
        // Never silently.
        (false, false) => ExitCode::from(3),
    })
}
