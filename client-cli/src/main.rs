//! `client-cli`: a member for scripts.

use std::process::ExitCode;

use clap::Parser as _;
use client_cli::cli::{Cli, print, run};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return print::usage(error, std::env::args_os()).into(),
    };
    let changes = cli.command.changes();
    match run::run(cli).await {
        Ok(answer) => print::answer(&answer, changes).into(),
        Err(failure) => print::failure(&failure).into(),
    }
}
