//! `./dev demo`: the whole story, told as it happens; fails when a promise breaks.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use e2e::story;

/// Plays the whole story in a fresh folder with real processes and a real PostgreSQL.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Cli {
    /// Print the summary object as the last line.
    #[arg(long)]
    json: bool,
    /// Keep the folder with the server's data and the devices' profiles.
    #[arg(long)]
    keep: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let folder = tempfile::Builder::new()
        .prefix("chancery-demo-")
        .tempdir()?;
    let played = story::play(folder.path());
    let mut stdout = std::io::stdout();
    if cli.keep || played.is_err() {
        writeln!(stdout, "\nkept: {}", folder.keep().display())?;
    }
    let summary = played?;
    let broken = summary.broken();
    writeln!(stdout)?;
    for promise in &broken {
        writeln!(stdout, "BROKEN: {promise}")?;
    }
    if broken.is_empty() {
        writeln!(stdout, "every promise held, in {} s", summary.elapsed_s)?;
    }
    if cli.json {
        writeln!(stdout, "{}", serde_json::to_string(&summary)?)?;
    }
    Ok(if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
