//! `./dev bench`: figures, each beside its baseline.

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use e2e::{
    bench::{self, Options},
    programs::Programs,
};

/// How fast the log takes messages, by baselines of the same run. PostgreSQL keeps every promise of durability meanwhile.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Print the table as an object in the last line.
    #[arg(long, global = true)]
    json: bool,
    /// Short, with less of everything: to see that it works.
    #[arg(long)]
    short: bool,
    /// Only parts whose name holds this: alone, crowd, hot, wide, sizes, nodes, steady, fan-out, reconnect, stall, claims.
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// `stock`: the append rows and an import of people on PostgreSQL's own default settings, by the private one of
    /// every other figure.
    #[arg(long, value_enum, default_value_t = Postgres::Private)]
    pg: Postgres,
    /// Something else than the log.
    #[command(subcommand)]
    other: Option<Other>,
    /// Be the plain server that fan-out is compared with.
    #[arg(long, hide = true)]
    serve_broadcast: bool,
}

/// What is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Postgres {
    /// The private one, with the settings that every other figure is measured with.
    Private,
    /// One with its own default settings, beside it.
    Stock,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// A group of thousands, from its creation to a thousand messages, with real members.
    LargeGroup(bench::large::Options),
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
    if let Some(Other::LargeGroup(options)) = cli.other {
        let programs = Programs::find_these(&[
            "single-node",
            "auth-service",
            "delivery-service",
            "client-cli",
        ])?;
        let mut table = bench::table::Table::new(1.0, tell);
        bench::large::measure(&programs, options, &mut table).await?;
        return ended(table.rows, cli.json);
    }
    let mut options = if cli.short {
        Options::short()
    } else {
        Options::whole()
    };
    options.only = cli.only;
    if cli.pg == Postgres::Stock {
        let programs = Programs::find_these(&["auth-service", "delivery-service"])?;
        let rows = bench::stock::run(&programs, &options, tell).await?;
        return ended(rows, cli.json);
    }
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
