//! `./dev vectors DIR`: the MLS working group's test vectors, from a folder that a person fetched.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Parser;
use interop::vectors;

/// Plays the MLS working group's test vectors through our readers and our client's stack. They are in no registry: fetch them from
/// <https://github.com/mlswg/mls-implementations> (the folders test-vectors and interop/passive).
#[derive(Debug, Parser)]
#[command(name = "vectors", version)]
struct Cli {
    /// The folder; every JSON file below it is played or named
    dir: PathBuf,
    /// Print the summary as one JSON object in the last line
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let mut out = std::io::stdout();
    let summary = vectors::play(&cli.dir, &mut |name, counts| {
        let unsupported: usize = counts.unsupported.values().sum();
        let (passed, failed) = (counts.passed, counts.failed);
        // Nobody may be watching.
        let _gone = writeln!(
            out,
            "{name}: {passed} passed, {failed} failed, {unsupported} unsupported"
        );
        for (why, count) in &counts.unsupported {
            let _gone = writeln!(out, "    {count} unsupported: {why}");
        }
        for failure in &counts.failures {
            let _gone = writeln!(out, "    FAILED {failure}");
        }
    })?;
    for name in &summary.unknown {
        writeln!(out, "{name}: nothing here plays it")?;
    }
    if cli.json {
        writeln!(out, "{}", serde_json::to_string(&summary)?)?;
    }
    Ok(if summary.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
