//! `./dev simulate`: plays seeds, and prints what was exercised and what failed.

use std::{io::Write as _, process::ExitCode, time::Instant};

use chancery_proto::mutants::{self, Mutant};
use clap::Parser;
use sim::{
    adversary::{self, grammar::Kind},
    simulation::{Sums, play},
};

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
    /// A hostile member with full keys among honest ones, instead of a bad network.
    #[arg(long)]
    adversary: bool,
    /// With `--adversary`: only objects whose name holds this text; with `--mutants`: only mutants.
    #[arg(long)]
    kind: Option<String>,
    /// With `--adversary`: these repairs are undone, by their names in `proto/src/mutants.rs`.
    #[arg(long, value_delimiter = ',')]
    undo: Vec<String>,
    /// Undoes single repairs, and lets the adversary find each of them.
    #[arg(long)]
    mutants: bool,
    /// With `--mutants`: only the few that each run of the tests looks for.
    #[arg(long)]
    short: bool,
    /// The last line is the summary, and the only one unless something failed.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    if cli.mutants {
        return undone(&cli);
    }
    if cli.adversary {
        return hostile(&cli);
    }
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

fn hostile(cli: &Cli) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    let wanted = |kind: &&Kind| {
        cli.kind
            .as_ref()
            .is_some_and(|part| kind.name().contains(part))
    };
    let kinds: Vec<Kind> = Kind::ALL.iter().filter(wanted).copied().collect();
    if cli.kind.is_some() && kinds.is_empty() {
        anyhow::bail!("no kind of object has such a name");
    }
    let named = |mutant: &&Mutant| cli.undo.iter().any(|name| *name == format!("{mutant:?}"));
    let undone: Vec<Mutant> = Mutant::ALL.iter().filter(named).copied().collect();
    anyhow::ensure!(undone.len() == cli.undo.len(), "no mutant has such a name");
    mutants::set_all(&undone);
    let mut sums = adversary::Sums::default();
    for seed in cli.first..cli.first + cli.seeds {
        let place = usize::try_from(seed)?.checked_rem(kinds.len());
        let only: Vec<Kind> = place.into_iter().map(|place| kinds[place]).collect();
        let outcome = adversary::play(seed, &only)?;
        sums.add(seed, &outcome);
        if cli.seeds == 1 || !outcome.good() {
            for line in &outcome.story {
                writeln!(out, "{line}")?;
            }
        }
        for fault in &outcome.faults {
            writeln!(out, "seed {seed}, {:?}: {}", fault.class, fault.text)?;
        }
    }
    // A few seeds need not meet everything.
    let never = if cli.seeds >= 200 && cli.kind.is_none() {
        sums.never()
    } else {
        Vec::new()
    };
    if !cli.json {
        for (name, count) in &sums.objects {
            writeln!(out, "{count:>9} {name}")?;
        }
        writeln!(out, "failed: {:?}; never happened: {never:?}", sums.failed)?;
    }
    let mut summary = serde_json::json!({
        "seeds": sums.seeds,
        "failed": sums.failed.len(),
        "objects": sums.objects,
        "never_happened": never,
    });
    for (name, seeds) in &sums.wrong {
        summary[*name] = (*seeds).into();
    }
    writeln!(out, "{summary}")?;
    let good = sums.failed.is_empty() && never.is_empty();
    Ok(ExitCode::from(u8::from(!good)))
}

/// Each mutant is found within its number of seeds, and names what it broke.
fn undone(cli: &Cli) -> anyhow::Result<ExitCode> {
    use adversary::mutants::{HUNTS, find};
    let mut out = std::io::stdout();
    let (mut hunted, mut found) = (0, 0);
    for hunt in HUNTS.iter().filter(|hunt| hunt.short || !cli.short) {
        let name = format!("{:?}", hunt.mutant());
        if cli.kind.as_ref().is_some_and(|part| !name.contains(part)) {
            continue;
        }
        hunted += 1;
        match find(hunt) {
            Err(error) => writeln!(out, "{name}: {error}")?,
            Ok(Some(by)) => {
                found += 1;
                writeln!(
                    out,
                    "{:?}: found by seed {} of {}, {:?}, {:?}: {}",
                    hunt.mutant(),
                    by.seed,
                    hunt.seeds,
                    by.kind.name(),
                    hunt.by,
                    by.fault
                )?;
            }
            Ok(None) => writeln!(
                out,
                "{:?}: NOT FOUND in {} seeds with {:?}",
                hunt.mutant(),
                hunt.seeds,
                hunt.kinds
            )?,
        }
    }
    let summary = serde_json::json!({ "mutants": hunted, "found": found });
    writeln!(out, "{summary}")?;
    Ok(ExitCode::from(u8::from(found < hunted)))
}
