//! `./dev requests`: spoilt requests at running services. The last line is a summary; any fault is a failure.

use std::io::Write as _;

use anyhow::ensure;
use clap::Parser;
use e2e::{programs::Programs, requests};

/// Sends requests that nobody meant to services of their own, and looks whether every answer is typed.
#[derive(Debug, Parser)]
#[command(name = "requests", version)]
struct Cli {
    /// How many.
    #[arg(long, default_value_t = 100_000)]
    calls: usize,
    /// Of the first; each later one counts on.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli { calls, seed } = Cli::parse();
    let folder = tempfile::tempdir()?;
    let began = std::time::Instant::now();
    let summary = requests::round(&Programs::find()?, folder.path(), calls, seed).await?;
    let mut out = std::io::stdout();
    for (method, answers) in &summary.answers {
        writeln!(out, "{method} {}", serde_json::to_string(answers)?)?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let faults = summary.faults.len();
    for fault in summary.faults.iter().take(20) {
        writeln!(out, "{fault}")?;
    }
    writeln!(
        out,
        "{}",
        serde_json::json!({ "calls": calls, "faults": faults, "seconds": seconds.round() })
    )?;
    ensure!(faults == 0, "{faults} answers that no request may get");
    Ok(())
}
