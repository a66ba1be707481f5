//! `./dev bench`: figures, each beside its baseline.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};
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
    /// Something else than the log.
    #[command(subcommand)]
    other: Option<Other>,
    /// Be the plain server that fan-out is compared with.
    #[arg(long, hide = true)]
    serve_broadcast: bool,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// A group of thousands, from its creation to a thousand messages, with real members.
    LargeGroup {
        /// Members; 0 leaves this group out.
        #[arg(long, default_value_t = 10_000, value_name = "N")]
        members: usize,
        /// Members with a store on disk that read everything.
        #[arg(long, default_value_t = 20, value_name = "N")]
        full: usize,
        /// Messages.
        #[arg(long, default_value_t = 1_000, value_name = "N")]
        messages: usize,
        /// One of so many members is online when the server asks.
        #[arg(long, default_value_t = 4, value_name = "N")]
        online_one_of: usize,
        /// Members of a second group, of whom there is only what a server sees of them; 0 leaves it out.
        #[arg(long, default_value_t = 100_000, value_name = "N")]
        synthetic: usize,
        /// Print the table as an object in the last line.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    service_kit::lifecycle::raise_file_limit();
    if cli.serve_broadcast {
        bench::broadcast::serve().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let tell = |row: &bench::table::Row| {
        // Whoever reads no more still gets the last line, or the exit code.
        let _told = writeln!(std::io::stdout(), "{row}");
    };
    if let Some(Other::LargeGroup {
        members,
        full,
        messages,
        online_one_of,
        synthetic,
        json,
    }) = cli.other
    {
        let options = bench::large::Options {
            members,
            full,
            messages,
            online_one_of,
            synthetic,
        };
        let programs = Programs::find_these(&[
            "single-node",
            "auth-service",
            "delivery-service",
            "client-cli",
        ])?;
        let mut table = bench::table::Table::new(1.0, tell);
        bench::large::measure(&programs, options, &mut table).await?;
        return ended(table.rows, json || cli.json);
    }
    let mut options = if cli.short {
        Options::short()
    } else {
        Options::whole()
    };
    options.only = cli.only;
    let programs = Programs::find_these(&["delivery-service"])?;
    let rows = bench::run(&programs, &options, tell).await?;
    ended(rows, cli.json)
}

/// The last line, and the exit code.
fn ended(rows: Vec<bench::table::Row>, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        let all = serde_json::json!({ "rows": rows });
        writeln!(std::io::stdout(), "{all}")?;
    }
    let missed = rows.iter().filter(|row| row.met == Some(false)).count();
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
