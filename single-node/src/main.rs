//! `single-node up`: the whole server side in one process.

use std::process::ExitCode;

use clap::Parser;
use service_kit::lifecycle::{Shutdown, raise_file_limit};
use service_kit::telemetry::{self, LogOptions};
use single_node::Options;

/// As in `delivery-service`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chancery on one machine: a private PostgreSQL and both services.
#[derive(Debug, Parser)]
#[command(name = "single-node", version)]
struct Cli {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Starts PostgreSQL and both services, and runs until SIGTERM or Ctrl-C.
    Up(Options),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let Command::Up(options) = cli.command;
    telemetry::run(&cli.log, || {
        raise_file_limit();
        run(options)
    })
}

#[tokio::main]
async fn run(options: Options) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.clone().on_signals()?;
    single_node::run(options, shutdown).await
}
