//! `single-node up`: the whole server side in one process.

use clap::Parser;
use service_kit::lifecycle::{Shutdown, raise_file_limit};
use service_kit::telemetry::{self, LogFormat};
use single_node::Options;

/// As in `delivery-service`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chancery on one machine: a private PostgreSQL and both services.
#[derive(Debug, Parser)]
#[command(name = "single-node", version)]
struct Cli {
    /// The form of the log lines on stderr.
    #[arg(
        long,
        global = true,
        env = "CHANCERY_LOG_FORMAT",
        default_value = "human"
    )]
    log_format: LogFormat,
    /// Which log lines are written, such as `info` or `delivery_service=debug`.
    #[arg(long, global = true, env = "CHANCERY_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Starts PostgreSQL and both services, and runs until SIGTERM or Ctrl-C.
    Up(Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    telemetry::init(cli.log_format, &cli.log)?;
    raise_file_limit();
    let Command::Up(options) = cli.command;
    let shutdown = Shutdown::new();
    shutdown.clone().on_signals()?;
    single_node::run(options, shutdown).await
}
