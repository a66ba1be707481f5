//! Databases for tests: one volatile PostgreSQL for all test processes of a run, one template per service, one clone per test.
//!
//! The first test process that needs a database starts the server, every further one shares it. Each holds a shared lock on a file for as long as it
//! lives, however it ends; a watchdog (a few lines of shell) ends the server and removes its files a few seconds after the last one is gone.
//! It works the same under `cargo test` (one process per test file) and `cargo nextest` (one per test), as root and as anybody.

mod shared;

use std::future::Future;

use anyhow::Context as _;
use postgres::{Client, NoTls};

use crate::local_postgres::{fnv1a, quoted};
use crate::migrate::{self, Migrations};

/// The role that owns every test database and runs its migrations.
pub const OWNER_ROLE: &str = "chancery_owner";
/// The role that services use in tests, as in production: it may change rows, not tables.
pub const APP_ROLE: &str = "chancery_app";

/// A database of its own for one test; dropped with the value.
#[derive(Debug)]
pub struct TestDb {
    name: String,
}

impl TestDb {
    /// A fresh database with `migrations` applied, in about 30 ms after the first.
    ///
    /// # Panics
    /// When no PostgreSQL can be had: a test cannot go on without, and the message says how to get it.
    pub async fn create(migrations: &Migrations) -> Self {
        let migrations = *migrations;
        blocking(move || {
            let template = template(&migrations)?;
            clone_of(&template)
        })
        .await
    }

    /// The URL for a service: the role [`APP_ROLE`].
    pub fn url(&self) -> String {
        self.url_as(APP_ROLE)
    }

    /// The URL of [`OWNER_ROLE`], for migrations and for looking at everything.
    pub fn owner_url(&self) -> String {
        self.url_as(OWNER_ROLE)
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn url_as(&self, role: &str) -> String {
        shared::server().map_or_else(
            |error| panic!("the test server was there before: {error:#}"),
            |server| server.url(&self.name, role),
        )
    }

    /// A copy of the present state, as a backup would hold it. Sessions on this database are ended for it, and none is admitted meanwhile.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn copy(&self) -> Self {
        let name = self.name.clone();
        blocking(move || {
            admit(&name, false)?;
            end_sessions(&name)?;
            let copy = clone_of(&name);
            admit(&name, true)?;
            copy
        })
        .await
    }

    /// Puts the state of `backup` in place of this database's, as an operator who restores a backup would. Sessions are ended.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn restore(&self, backup: &Self) {
        let (name, backup) = (self.name.clone(), backup.name.clone());
        blocking(move || {
            drop_database(&name)?;
            end_sessions(&backup)?;
            create_database(&name, &backup)
        })
        .await
    }

    /// Makes the database go away: ends its sessions and admits no new ones until [`TestDb::resume`].
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn interrupt(&self) {
        let name = self.name.clone();
        blocking(move || {
            admit(&name, false)?;
            end_sessions(&name)
        })
        .await
    }

    /// Ends all sessions on this database; new ones are admitted.
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn end_sessions(&self) {
        let name = self.name.clone();
        blocking(move || end_sessions(&name)).await
    }

    /// Lets the database come back after [`TestDb::interrupt`].
    ///
    /// # Panics
    /// When the server refuses.
    pub async fn resume(&self) {
        let name = self.name.clone();
        blocking(move || admit(&name, true)).await
    }
}

impl Drop for TestDb {
    #[expect(clippy::disallowed_methods, reason = "joined in the next line")]
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // The synchronous client must not run on a runtime's thread. A database that stays behind goes with the server.
        let dropped = std::thread::spawn(move || drop_database(&name)).join();
        if !matches!(dropped, Ok(Ok(()))) {
            tracing::debug!("a test database could not be dropped");
        }
    }
}

/// Runs blocking work beside the runtime and panics with its error.
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> impl Future<Output = T> {
    let task = tokio::task::spawn_blocking(work);
    async move {
        match task.await {
            Ok(Ok(value)) => value,
            Ok(Err(error)) => panic!("test database: {error:#}"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

fn admin() -> anyhow::Result<Client> {
    Client::connect(&shared::server()?.admin_url(), NoTls).context("cannot reach the test server")
}

/// Whether new sessions on a database are admitted.
fn admit(name: &str, sessions: bool) -> anyhow::Result<()> {
    let name = quoted(name);
    let sql = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS {sessions}");
    Ok(admin()?.batch_execute(&sql)?)
}

/// The name of the template for these migrations; made by whoever comes first, under a lock that all test processes share.
fn template(migrations: &Migrations) -> anyhow::Result<String> {
    let key = fnv1a(fingerprint(migrations).as_bytes());
    let name = format!("template_{key:016x}");
    let mut client = admin()?;
    client.execute(
        "/* test_db::template */ SELECT pg_advisory_lock($1)",
        &[&key.cast_signed()],
    )?;
    if client
        .query_opt(
            "/* test_db::template */ SELECT 1 FROM pg_database WHERE datname = $1",
            &[&name],
        )?
        .is_none()
    {
        let unfinished = format!("unfinished_{key:016x}");
        drop_database(&unfinished)?;
        client.batch_execute(&format!(
            "CREATE DATABASE {} OWNER {}",
            quoted(&unfinished),
            quoted(OWNER_ROLE)
        ))?;
        prepare(&shared::server()?.url(&unfinished, OWNER_ROLE), migrations)?;
        client.batch_execute(&format!(
            "ALTER DATABASE {} RENAME TO {}",
            quoted(&unfinished),
            quoted(&name)
        ))?;
    }
    Ok(name)
}

fn clone_of(template: &str) -> anyhow::Result<TestDb> {
    let db = TestDb {
        name: format!("test_{}", uuid::Uuid::new_v4().simple()),
    };
    create_database(&db.name, template)?;
    Ok(db)
}

fn create_database(name: &str, template: &str) -> anyhow::Result<()> {
    let sql = format!(
        "CREATE DATABASE {} TEMPLATE {} OWNER {}",
        quoted(name),
        quoted(template),
        quoted(OWNER_ROLE)
    );
    admin()?
        .batch_execute(&sql)
        .with_context(|| format!("cannot clone {template}"))
}

fn drop_database(name: &str) -> anyhow::Result<()> {
    Ok(admin()?.batch_execute(&format!(
        "DROP DATABASE IF EXISTS {} WITH (FORCE)",
        quoted(name)
    ))?)
}

fn end_sessions(name: &str) -> anyhow::Result<()> {
    admin()?.execute("/* test_db::end_sessions */ SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", &[&name])?;
    Ok(())
}

fn fingerprint(migrations: &Migrations) -> String {
    let steps = migrations.steps.iter();
    steps
        .map(|step| format!("{}\n{}\n", step.name, step.sql))
        .collect()
}

fn prepare(url: &str, migrations: &Migrations) -> anyhow::Result<()> {
    migrate::run(url, migrations, Some(APP_ROLE))
}
