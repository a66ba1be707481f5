//! `delivery-service serve` and `delivery-service migrate`.

use std::process::ExitCode;

use clap::Parser;
use delivery_service::Config;
use delivery_service::Listeners;
use delivery_service::MIGRATIONS;
use delivery_service::serve;
use service_kit::{
    db::{Db, PoolOptions},
    lifecycle::{Shutdown, raise_file_limit},
    listen::{ListenAddr, TlsFiles, bind},
    migrate,
    telemetry::{self, LogOptions},
};

/// Many small objects that one thread makes and another drops: the system's allocator takes a quarter longer for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Orders groups' messages; sees ciphertext and opaque ids only.
#[derive(Debug, Parser)]
#[command(name = "delivery-service", version)]
struct Cli {
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Serves clients until SIGTERM or Ctrl-C.
    Serve(Box<Serve>),
    /// Brings the schema up to date, as the owner of the database.
    Migrate(Migrate),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// `postgres://…` of the application role.
    #[arg(long, env = "CHANCERY_DS_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Where clients connect: `IP:PORT` or `unix:/path`.
    #[arg(long, env = "CHANCERY_DS_LISTEN", default_value = "127.0.0.1:7402")]
    listen: ListenAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; nowhere when absent.
    #[arg(long, env = "CHANCERY_DS_LISTEN_OPS")]
    listen_ops: Option<ListenAddr>,
    /// PEM file of the certificate chain.
    #[arg(long, env = "CHANCERY_DS_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<std::path::PathBuf>,
    /// PEM file of the private key.
    #[arg(long, env = "CHANCERY_DS_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<std::path::PathBuf>,
    /// Accept plaintext beyond loopback, for example behind a TLS-terminating proxy.
    #[arg(long, env = "CHANCERY_DS_INSECURE_PLAINTEXT")]
    insecure_plaintext: bool,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    pool: PoolOptions,
}

#[derive(Debug, clap::Args)]
struct Migrate {
    /// `postgres://…` of the owner role.
    #[arg(long, env = "CHANCERY_DS_OWNER_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Role that `serve` uses: gets rows, not tables.
    #[arg(long, env = "CHANCERY_DS_APP_ROLE")]
    app_role: Option<String>,
    /// The database was restored from a backup: renews the incarnation, so that everybody can tell.
    #[arg(long)]
    restored: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    telemetry::run(&cli.log, || {
        raise_file_limit();
        carry_out(cli.command)
    })
}

fn carry_out(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Migrate(options) => {
            migrate::run(
                &options.database_url,
                &MIGRATIONS,
                options.app_role.as_deref(),
            )?;
            if options.restored {
                migrate::renew_incarnation(&options.database_url)?;
            }
            Ok(())
        }
        Command::Serve(options) => run(*options),
    }
}

#[tokio::main]
async fn run(options: Serve) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.clone().on_signals()?;
    let tls = options.tls_cert.zip(options.tls_key);
    let tls = tls.map(|(cert, key)| TlsFiles { cert, key });
    let public = bind(&options.listen, tls.as_ref(), options.insecure_plaintext).await?;
    let ops = match &options.listen_ops {
        Some(addr) => Some(bind(addr, None, options.insecure_plaintext).await?),
        None => None,
    };
    tracing::info!(listen = %public.local_addr(), "serving");
    let db = Db::connect(&options.database_url, &options.pool)?;
    serve(Listeners { public, ops }, options.config, db, shutdown).await
}
