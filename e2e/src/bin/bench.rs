//! `./dev bench`: figures, each beside its baseline.

use std::{io::Write as _, process::ExitCode};

use clap::Parser;
use e2e::{
    bench::{self, Options},
    programs::Programs,
};

/// How fast the log takes messages, by baselines of the same run. PostgreSQL keeps every promise of durability meanwhile.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Print the table as an object in the last line.
    #[arg(long)]
    json: bool,
    /// Short, with less of everything: to see that it works.
    #[arg(long)]
    short: bool,
    /// Only parts whose name holds this: fan-out, reconnect, claims, alone, crowd, hot, wide, sizes, nodes.
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// Be the plain server that fan-out is compared with.
    #[arg(long, hide = true)]
    serve_broadcast: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    service_kit::lifecycle::raise_file_limit();
    if cli.serve_broadcast {
        bench::broadcast::serve().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = if cli.short {
        Options::short()
    } else {
        Options::whole()
    };
    options.only = cli.only;
    let programs = Programs::find_these(&["delivery-service"])?;
    let mut out = std::io::stdout();
    let rows = bench::run(&programs, &options, |row| {
        // Whoever reads no more still gets the last line, or the exit code.
        let _told = writeln!(std::io::stdout(), "{row}");
    })
    .await?;
    if cli.json {
        writeln!(out, "{}", serde_json::json!({ "rows": rows }))?;
    }
    let missed = rows.iter().filter(|row| row.met == Some(false)).count();
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
