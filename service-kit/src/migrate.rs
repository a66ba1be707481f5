//! Migrations: embedded, forward only, one runner at a time.
//!
//! Each records the oldest binary that may run on it, so that a rolling upgrade works: `serve` refuses only when the binary is older than that,
//! or a migration that it needs is missing.

use anyhow::{Context as _, ensure};
use postgres::NoTls;
use refinery::{Migration, Runner};

use crate::db::{Db, DbError};

/// One step. Applied steps never change.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// `V<number>__<name>`, numbered from 1 without holes.
    pub name: &'static str,
    /// The statements.
    pub sql: &'static str,
    /// Number of the last step that the oldest binary knows which may still run after this one.
    pub oldest_binary: u32,
}

/// All steps of a service, in order. The number of steps is the schema level of the binary.
#[derive(Debug, Clone, Copy)]
pub struct Migrations {
    /// Name of the binary, for messages.
    pub service: &'static str,
    /// In order.
    pub steps: &'static [Step],
}

impl Migrations {
    /// The level that this binary knows.
    pub fn level(&self) -> u32 {
        u32::try_from(self.steps.len()).unwrap_or(u32::MAX)
    }
}

/// Every runner of every service on a database takes this lock.
const LOCK: i64 = 0x6368_616e_6365_7279;

const COMPAT: &str = "CREATE TABLE IF NOT EXISTS schema_compat (\
    level int PRIMARY KEY, oldest_binary int NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())";

/// Applies what is missing, as the owner role; `app_role` may then change rows, not tables.
///
/// # Errors
/// The database cannot be reached, a step fails, or an applied step was changed.
pub fn run(url: &str, migrations: &Migrations, app_role: Option<&str>) -> anyhow::Result<()> {
    let mut client = postgres::Client::connect(url, NoTls).context("cannot reach the database")?;
    client.execute("/* migrate::run */ SELECT pg_advisory_lock($1)", &[&LOCK])?;
    let steps: Vec<Migration> = migrations
        .steps
        .iter()
        .map(|step| Migration::unapplied(step.name, step.sql))
        .collect::<Result<_, _>>()?;
    Runner::new(&steps)
        .set_abort_missing(false)
        .run(&mut client)
        .context("a migration failed")?;
    client.batch_execute(COMPAT)?;
    for (index, step) in migrations.steps.iter().enumerate() {
        let level = i32::try_from(index + 1)?;
        let oldest = i32::try_from(step.oldest_binary)?;
        client.execute(
            "/* migrate::run */ INSERT INTO schema_compat (level, oldest_binary) VALUES ($1, $2) ON CONFLICT (level) DO NOTHING",
            &[&level, &oldest],
        )?;
    }
    if let Some(role) = app_role {
        grant(&mut client, role)?;
    }
    Ok(())
}

fn grant(client: &mut postgres::Client, role: &str) -> anyhow::Result<()> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    client
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA public TO {role};\
             GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};\
             GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role};\
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO {role};"
        ))
        .with_context(|| format!("cannot grant to the role {role}"))
}

/// Refuses to serve on a schema that does not fit this binary, and says the command.
///
/// # Errors
/// A needed migration is missing, this binary is too old, or the database cannot be asked.
pub async fn check(db: &Db, migrations: &Migrations) -> anyhow::Result<()> {
    let client = db.client().await?;
    let exists = client
        .query_one(
            "/* migrate::check */ SELECT to_regclass('schema_compat') IS NOT NULL",
            &[],
        )
        .await
        .map_err(DbError::from)?
        .get::<_, bool>(0);
    let (level, oldest) = if exists {
        let row = client
            .query_one(
                "/* migrate::check */ SELECT coalesce(max(level), 0), coalesce(max(oldest_binary), 0) FROM schema_compat",
                &[],
            )
            .await
            .map_err(DbError::from)?;
        (row.get::<_, i32>(0), row.get::<_, i32>(1))
    } else {
        (0, 0)
    };
    let (mine, service) = (i64::from(migrations.level()), migrations.service);
    ensure!(
        i64::from(level) >= mine,
        "the database is at schema level {level}, this binary needs {mine}: run `{service} migrate --database-url URL-OF-THE-OWNER`"
    );
    ensure!(
        i64::from(oldest) <= mine,
        "the database asks for schema level {oldest} at least, this binary knows {mine}: install a newer {service}"
    );
    Ok(())
}

/// After a restore: gives the database a new `incarnation`, so that clients and operators can tell.
///
/// # Errors
/// The database cannot be reached, or has no `service_state`.
pub fn renew_incarnation(url: &str) -> anyhow::Result<()> {
    let mut client = postgres::Client::connect(url, NoTls).context("cannot reach the database")?;
    let rows = client.execute(
        "/* migrate::renew_incarnation */ UPDATE service_state SET incarnation = gen_random_uuid()",
        &[],
    )?;
    ensure!(rows == 1, "service_state holds {rows} rows instead of one");
    Ok(())
}
