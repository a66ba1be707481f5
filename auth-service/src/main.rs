//! `auth-service serve`, `auth-service migrate`, and the operator's commands.

use std::process::ExitCode;

use auth_service::{Config, Listeners, migration, operator, serve};
use clap::Parser;
use service_kit::{
    db::{Db, PoolOptions},
    lifecycle::{Shutdown, raise_file_limit},
    listen::{ListenAddr, TlsFiles, bind},
    migrate,
    telemetry::{self, LogOptions},
};

/// Who is who: enrols devices, issues certificates and tokens, revokes, keeps the directory.
#[derive(Debug, Parser)]
#[command(name = "auth-service", version)]
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
    /// Invitations.
    #[command(subcommand)]
    Invite(operator::Invite),
    /// People.
    #[command(subcommand)]
    Users(operator::Users),
    /// Devices.
    #[command(subcommand)]
    Devices(operator::Devices),
    /// Prints who changed what, from the audit log.
    Audit(operator::Audit),
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// `postgres://…` of the application role.
    #[arg(long, env = "CHANCERY_AS_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Where clients connect: `IP:PORT` or `unix:/path`.
    #[arg(long, env = "CHANCERY_AS_LISTEN", default_value = "127.0.0.1:7401")]
    listen: ListenAddr,
    /// Where operators connect; whoever can connect is one. `unix:/path`, or `IP:PORT` on loopback.
    #[arg(
        long,
        env = "CHANCERY_AS_LISTEN_ADMIN",
        default_value = "unix:/run/chancery/auth-admin.sock"
    )]
    listen_admin: ListenAddr,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; nowhere when absent.
    #[arg(long, env = "CHANCERY_AS_LISTEN_OPS")]
    listen_ops: Option<ListenAddr>,
    /// PEM file of the certificate chain.
    #[arg(long, env = "CHANCERY_AS_TLS_CERT", requires = "tls_key")]
    tls_cert: Option<std::path::PathBuf>,
    /// PEM file of the private key.
    #[arg(long, env = "CHANCERY_AS_TLS_KEY", requires = "tls_cert")]
    tls_key: Option<std::path::PathBuf>,
    /// Accept plaintext beyond loopback, for example behind a TLS-terminating proxy.
    #[arg(long, env = "CHANCERY_AS_INSECURE_PLAINTEXT")]
    insecure_plaintext: bool,
    #[command(flatten)]
    config: Config,
    #[command(flatten)]
    pool: PoolOptions,
}

#[derive(Debug, clap::Args)]
struct Migrate {
    /// `postgres://…` of the owner role.
    #[arg(long, env = "CHANCERY_AS_OWNER_DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// Role that `serve` uses: gets rows, not tables.
    #[arg(long, env = "CHANCERY_AS_APP_ROLE")]
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
            let renamed = migration::run(&options.database_url, options.app_role.as_deref())?;
            if options.restored {
                migrate::renew_incarnation(&options.database_url)?;
            }
            operator::renamed(&renamed)
        }
        Command::Serve(options) => block_on(run(*options)),
        Command::Invite(command) => block_on(operator::invite(command)),
        Command::Users(command) => block_on(operator::users(command)),
        Command::Devices(command) => block_on(operator::devices(command)),
        Command::Audit(command) => block_on(operator::audit(command)),
    }
}

/// Not around `migrate`: it is synchronous, with a runtime of its own.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

async fn run(options: Serve) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.clone().on_signals()?;
    let tls = options.tls_cert.zip(options.tls_key);
    let tls = tls.map(|(cert, key)| TlsFiles { cert, key });
    let public = bind(&options.listen, tls.as_ref(), options.insecure_plaintext).await?;
    let admin = bind(&options.listen_admin, None, false).await?;
    let ops = match &options.listen_ops {
        Some(addr) => Some(bind(addr, None, options.insecure_plaintext).await?),
        None => None,
    };
    tracing::info!(listen = %public.local_addr(), "serving");
    let db = Db::connect(&options.database_url, &options.pool)?;
    let listeners = Listeners { public, admin, ops };
    serve(listeners, options.config, db, shutdown).await
}
