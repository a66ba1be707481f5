//! `./dev explore`: explores small worlds completely and prints how many states were found and which promises are broken.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use sim::model::{explore, worlds};

/// Explores small worlds of devices, nodes and a bad network completely.
#[derive(Debug, Parser)]
#[command(name = "explore", version)]
struct Cli {
    /// Also the large worlds: minutes, and gigabytes.
    #[arg(long)]
    large: bool,
    /// Prints the summary as the last line: JSON is the only form.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut out = std::io::stdout();
    let mut explored = Vec::new();
    for (name, bounds) in worlds(cli.large) {
        let one = explore(name, bounds);
        writeln!(
            out,
            "{name}: {} states, {} visited, depth {}, {:.1} s, {} faults",
            one.states,
            one.visited,
            one.depth,
            one.seconds,
            one.faults.len()
        )?;
        for fault in &one.faults {
            writeln!(out, "  BROKEN: {fault}")?;
        }
        explored.push(one);
    }
    let states: usize = explored.iter().map(|one| one.states).sum();
    let faults: usize = explored.iter().map(|one| one.faults.len()).sum();
    let worlds = explored.len();
    let summary = serde_json::json!({ "worlds": worlds, "states": states, "faults": faults });
    writeln!(out, "{summary}")?;
    Ok(ExitCode::from(u8::from(faults > 0)))
}
