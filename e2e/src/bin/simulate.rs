//! `./dev simulate`: plays seeds, and prints what was exercised and what failed.

use std::{io::Write as _, process::ExitCode, time::Instant};

use clap::Parser;
use e2e::sim::{Sums, play};

/// Whole groups in one thread, with real members, a bad network, and time that a seed decides.
#[derive(Debug, Parser)]
#[command(name = "simulate", version)]
struct Cli {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one; with `--seeds 1` its whole story is printed.
    #[arg(long, default_value_t = 0)]
    first: u64,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut out = std::io::stdout();
    let (began, mut sums) = (Instant::now(), Sums::default());
    for seed in cli.first..cli.first + cli.seeds {
        let played = play(seed)?;
        if cli.seeds == 1 {
            for line in &played.story {
                writeln!(out, "{line}")?;
            }
        }
        if !played.faults.is_empty() {
            writeln!(
                out,
                "seed {seed} failed; repeat it with: ./dev simulate --seeds 1 --first {seed}"
            )?;
            for fault in &played.faults {
                writeln!(out, "  {fault}")?;
            }
        }
        sums.add(seed, played);
    }
    let seconds = began.elapsed().as_secs_f64();
    for (name, count) in &sums.counts {
        writeln!(out, "{count:>9} {name}")?;
    }
    // A few seeds need not meet everything.
    let never = if cli.seeds >= 50 {
        sums.never()
    } else {
        Vec::new()
    };
    if !never.is_empty() {
        writeln!(out, "never happened: {}", never.join(", "))?;
    }
    let summary = serde_json::json!({
        "seeds": cli.seeds,
        "seeds_per_second": (cli.seeds as f64 / seconds * 100.0).round() / 100.0,
        "failed": sums.failed.len(),
        "never_happened": never,
        "counts": sums.counts,
    });
    writeln!(out, "{summary}")?;
    let good = sums.failed.is_empty() && never.is_empty();
    Ok(ExitCode::from(u8::from(!good)))
}
