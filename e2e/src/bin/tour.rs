//! `./dev tour`: the commands of a page of `docs/`, played from its own text.

use std::{io::Write as _, process::ExitCode};

use anyhow::ensure;
use clap::Parser;
use e2e::{programs::Programs, tour};

/// Plays the commands of a page of docs/ and compares what they print with what the page says.
#[derive(Debug, Parser)]
#[command(name = "tour", version)]
struct Cli {
    /// The page's name without its ending, such as `quickstart`; `all` takes each that has commands in turn.
    page: String,
    /// Print the summary object as the last line of each page.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let programs = Programs::find()?;
    let names = if cli.page == "all" {
        tour::pages()?
    } else {
        vec![cli.page.trim_end_matches(".md").to_owned()]
    };
    let mut out = std::io::stdout();
    let (mut played, mut failed) = (0, 0);
    for name in names {
        if cli.page == "all" && tour::read(&name)?.blocks.is_empty() {
            continue;
        }
        let summary = tour::play(&name, &programs, &mut out)?;
        played += 1;
        failed += summary.failed;
        if cli.json {
            writeln!(out, "{}", serde_json::to_string(&summary)?)?;
        } else {
            writeln!(
                out,
                "docs/{}.md: {} commands, {} failed",
                summary.page, summary.commands, summary.failed
            )?;
        }
    }
    ensure!(played > 0, "no page has commands");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
