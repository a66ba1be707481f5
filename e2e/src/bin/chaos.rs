//! `./dev chaos`: the running system under fire, and a checker that decides.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Parser;
use e2e::chaos::{
    self, Options,
    check::{self, Counts, Verdict},
    double::Broken,
};
use serde::Serialize;

/// Real processes, a bad network, faults drawn from a seed; then a checker reads what was written down and decides.
#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
struct Cli {
    /// How many faults.
    #[arg(long, default_value_t = 100)]
    faults: u64,
    /// Decides which faults come, and what people do. How processes are interleaved no seed decides.
    #[arg(long)]
    seed: Option<u64>,
    /// A server that is broken on purpose: the run fails unless the checker catches it.
    #[arg(long, value_name = "HOW")]
    broken: Option<Broken>,
    /// Print the summary object as the last line.
    #[arg(long)]
    json: bool,
    /// Keep the folder: the history, the logs, the journals, what the services said.
    #[arg(long)]
    keep: bool,
    /// Only let the checker read a folder that was kept.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["broken", "keep"])]
    check: Option<PathBuf>,
}

/// The last line.
#[derive(Serialize)]
struct Summary<'a> {
    faults: u64,
    kills: u64,
    #[serde(flatten)]
    counts: &'a Counts,
}

/// Findings that are printed.
const PRINTED: usize = 40;

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut stdout = std::io::stdout();
    if let Some(folder) = &cli.check {
        let verdict = check::check(folder)?;
        print(&verdict)?;
        writeln!(stdout, "{}", serde_json::to_string(&verdict.counts)?)?;
        return Ok(status(verdict.findings.is_empty()));
    }
    let seed = cli.seed.unwrap_or_else(|| fastrand::u64(..));
    let options = match cli.broken {
        None => Options::whole(cli.faults, seed),
        Some(broken) => Options::broken(broken, cli.faults, seed),
    };
    writeln!(stdout, "seed {seed}")?;
    let folder = tempfile::Builder::new()
        .prefix("chancery-chaos-")
        .tempdir()?;
    let played = chaos::play(folder.path(), &options);
    let good = played
        .as_ref()
        .is_ok_and(|run| run.verdict.findings.is_empty());
    if cli.keep || !good {
        writeln!(stdout, "kept: {}", folder.keep().display())?;
    }
    let run = played?;
    print(&run.verdict)?;
    if !run.small_disk {
        writeln!(stdout, "no disk could be mounted here, so none was filled")?;
    }
    writeln!(stdout, "{}", serde_json::to_string(&run.done.kinds)?)?;
    if cli.json {
        let summary = Summary {
            faults: run.done.faults,
            kills: run.done.kills,
            counts: &run.verdict.counts,
        };
        writeln!(stdout, "{}", serde_json::to_string(&summary)?)?;
    }
    Ok(match cli.broken {
        None => status(good && run.verdict.counts.members_agree),
        Some(_) => status(!good && run.unused.is_empty()),
    })
}

fn print(verdict: &Verdict) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    for finding in verdict.findings.iter().take(PRINTED) {
        writeln!(stdout, "FOUND: {finding}")?;
    }
    if verdict.findings.len() > PRINTED {
        writeln!(stdout, "and {} more", verdict.findings.len() - PRINTED)?;
    }
    Ok(())
}

fn status(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
