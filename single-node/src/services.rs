//! Migrations, listeners and `serve` of both services, exactly as they run alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use auth_service::keys;
use clap::Parser;
use delivery_service::config::AuthServiceConfig;
use service_kit::{
    db::{Db, PoolOptions},
    lifecycle::Shutdown,
    listen::{Bound, ListenAddr, bind},
    local_postgres::{Cluster, socket_folder},
    migrate::{self, Migrations},
};
use tokio::task::{JoinSet, spawn_blocking};

use crate::{AuthFile, NodeFile, Options, database::Database};

/// Longest path of a unix socket on every system.
const SOCKET_PATH_BYTES: usize = 100;

/// One database for each service, migrated.
#[derive(Debug)]
pub(crate) struct Databases {
    /// In the order of the domains.
    auth: Vec<Database>,
    delivery: Database,
}

/// Services that serve, and where.
pub(crate) struct Running {
    pub(crate) tasks: JoinSet<anyhow::Result<()>>,
    pub(crate) file: NodeFile,
}

/// The services' own options, from the environment; what the node decides is set below.
#[derive(Debug, Parser)]
struct AuthOptions {
    #[command(flatten)]
    config: auth_service::Config,
    #[command(flatten)]
    pool: PoolOptions,
}

#[derive(Debug, Parser)]
struct DeliveryOptions {
    #[command(flatten)]
    config: delivery_service::Config,
    #[command(flatten)]
    pool: PoolOptions,
}

/// Makes the databases and brings them up to date. Blocks.
pub(crate) fn prepare(cluster: &Cluster, domains: &[String]) -> anyhow::Result<Databases> {
    let auth = domains
        .iter()
        .map(|domain| {
            let name = format!("auth_{}", database_part(domain));
            let database = Database::ensure(cluster, &name)?;
            let renamed =
                auth_service::migration::run(&database.owner_url, Some(&database.app_role))
                    .with_context(|| format!("cannot migrate the database {name}"))?;
            for person in renamed {
                tracing::warn!(domain, ?person, "a handle had to be changed");
            }
            Ok(database)
        })
        .collect::<anyhow::Result<_>>()?;
    let delivery = migrated(cluster, "delivery", &delivery_service::MIGRATIONS)?;
    Ok(Databases { auth, delivery })
}

/// A domain as part of a database's name: letters and digits, the rest escaped, so that two domains never share one.
fn database_part(domain: &str) -> String {
    domain
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' => char::from(byte).to_string(),
            byte => format!("_{byte:02x}"),
        })
        .collect()
}

fn migrated(cluster: &Cluster, name: &str, migrations: &Migrations) -> anyhow::Result<Database> {
    let database = Database::ensure(cluster, name)?;
    migrate::run(&database.owner_url, migrations, Some(&database.app_role))
        .with_context(|| format!("cannot migrate the database {name}"))?;
    Ok(database)
}

/// Binds everything and starts every service.
pub(crate) async fn start(
    options: &Options,
    dir: &Path,
    databases: Databases,
    last: Option<&NodeFile>,
    shutdown: &Shutdown,
) -> anyhow::Result<Running> {
    let mut tasks = JoinSet::new();
    let mut auth = Vec::new();
    let delivery_domain = options.domains.first().context("no domain")?.clone();
    for (place, domain) in options.domains.iter().enumerate() {
        let any = "127.0.0.1:0".parse().map_err(anyhow::Error::msg)?;
        let wanted = options.listen_auth.get(place).unwrap_or(&any);
        let before = last.and_then(|file| file.auth_url(domain));
        let public = bind_as_before(wanted, before).await?;
        let folder = dir.join("auth").join(domain);
        fs::create_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        let admin_socket = admin_socket(dir, &folder, place)?;
        let admin = bind(&ListenAddr::Unix(admin_socket.clone()), None, false).await?;
        let keys_folder = folder.join("keys");
        make_keys(&keys_folder, domain).await?;
        auth.push(AuthFile {
            domain: domain.clone(),
            url: public.url(),
            admin_socket,
            root_pem: keys_folder.join(keys::ROOT_PEM),
        });
        let mut parsed = AuthOptions::try_parse_from([
            "auth-service",
            "--domain",
            domain,
            "--keys",
            &keys_folder.to_string_lossy(),
        ])?;
        parsed.config.keys = keys_folder;
        parsed.config.delivery_domains = vec![delivery_domain.clone()];
        let database = databases.auth.get(place).context("no database")?;
        let db = Db::connect(&database.app_url, &parsed.pool)?;
        let listeners = auth_service::Listeners {
            public,
            admin,
            ops: None,
        };
        tasks.spawn(auth_service::serve(
            listeners,
            parsed.config,
            db,
            shutdown.clone(),
        ));
    }
    let before = last.map(|file| file.delivery_url.as_str());
    let public = bind_as_before(&options.listen_delivery, before).await?;
    let file = NodeFile {
        pid: std::process::id(),
        postgres_pid: 0,
        delivery_url: public.url(),
        delivery_domain,
        auth,
    };
    let (config, pool) = delivery_config(&file)?;
    let ops = match &options.listen_ops {
        Some(addr) => Some(bind(addr, None, false).await?),
        None => None,
    };
    let db = Db::connect(&databases.delivery.app_url, &pool)?;
    let listeners = delivery_service::Listeners { public, ops };
    tasks.spawn(delivery_service::serve(
        listeners,
        config,
        db,
        shutdown.clone(),
    ));
    Ok(Running { tasks, file })
}

/// A port that nobody chose stays the same over restarts, if it is still free.
async fn bind_as_before(wanted: &ListenAddr, before: Option<&str>) -> anyhow::Result<Bound> {
    let chosen = !matches!(wanted, ListenAddr::Tcp(addr) if addr.port() == 0);
    let before = before
        .and_then(|url| url.strip_prefix("http://"))
        .and_then(|addr| addr.parse().ok());
    if let Some(before) = before
        && !chosen
        && let Ok(bound) = bind(&before, None, false).await
    {
        return Ok(bound);
    }
    bind(wanted, None, false).await
}

fn admin_socket(dir: &Path, folder: &Path, place: usize) -> anyhow::Result<PathBuf> {
    let near = folder.join("admin.sock");
    if near.as_os_str().len() <= SOCKET_PATH_BYTES {
        return Ok(near);
    }
    let short = socket_folder(dir)?;
    Ok(short.join(format!("admin-{place}.sock")))
}

/// Before anybody asks for the root certificate.
async fn make_keys(folder: &Path, domain: &str) -> anyhow::Result<()> {
    let (folder, domain) = (folder.to_owned(), domain.to_owned());
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    spawn_blocking(move || keys::Keys::load_or_make(&folder, &domain, now)).await??;
    Ok(())
}

fn delivery_config(file: &NodeFile) -> anyhow::Result<(delivery_service::Config, PoolOptions)> {
    let mut parsed = DeliveryOptions::try_parse_from([
        "delivery-service",
        "--domain",
        &file.delivery_domain,
        "--auth-service",
        "domain=set.below,url=http://127.0.0.1:1,root=/",
    ])?;
    parsed.config.auth_services = file
        .auth
        .iter()
        .map(|auth| AuthServiceConfig {
            domain: auth.domain.clone(),
            url: auth.url.clone(),
            root: auth.root_pem.clone(),
            ca: None,
        })
        .collect();
    Ok((parsed.config, parsed.pool))
}

#[cfg(test)]
mod tests {
    use super::database_part;

    #[test]
    fn two_domains_never_share_a_database() {
        assert_eq!(database_part("a-b.example"), "a_2db_2eexample");
        assert_ne!(database_part("a_b"), database_part("a.b"));
    }
}
