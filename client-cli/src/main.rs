//! `client-cli`: a member for scripts.

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use client_cli::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run::run(cli).await {
        Ok(Some(answer)) => match writeln!(std::io::stdout(), "{answer}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Ok(None) => ExitCode::SUCCESS,
        Err(failure) => {
            // There is nobody left to tell when stderr is gone too.
            let _gone = writeln!(std::io::stderr(), "{}", failure.to_json());
            ExitCode::from(failure.exit_code())
        }
    }
}
