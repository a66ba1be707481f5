//! A private PostgreSQL through its whole life: first start, later starts, kills, orphans, zombies, refusals.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rustix::process::{Pid, Signal, kill_process};
use service_kit::local_postgres::{Cluster, ClusterOptions, LocalPostgresError, Profile};

/// A temporary folder that an unprivileged account can pass through.
fn folder() -> tempfile::TempDir {
    tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir()
        .unwrap()
}

fn start(dir: &Path, profile: Profile) -> Cluster {
    Cluster::start(ClusterOptions::new(dir, profile)).unwrap()
}

fn query(cluster: &Cluster, sql: &str) -> String {
    Client::connect(&cluster.admin_url(), NoTls)
        .unwrap()
        .query_one(sql, &[])
        .unwrap()
        .get(0)
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Two different deaths of a supervisor leave a server behind: here it is given up.
fn orphan(dir: &Path) -> u32 {
    start(dir, Profile::Durable).detach().unwrap()
}

#[test]
fn lives_through_starts_stops_kills_and_keeps_its_rows() {
    let folder = folder();
    let dir = folder.path().join("pg");
    let mut cluster = start(&dir, Profile::Durable);
    for (setting, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
    ] {
        assert_eq!(
            query(&cluster, &format!("SHOW {setting}")),
            value,
            "{setting}"
        );
    }
    assert_eq!(
        fs::metadata(cluster.socket_dir())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700,
        "nobody else may enter"
    );
    let mut client = Client::connect(&cluster.admin_url(), NoTls).unwrap();
    client
        .batch_execute("CREATE TABLE kept (what text); INSERT INTO kept VALUES ('acknowledged')")
        .unwrap();

    cluster.kill9().unwrap();
    assert!(
        client.simple_query("SELECT 1").is_err(),
        "the session died with the server"
    );
    assert!(cluster.exited().unwrap().is_some());
    cluster.restart().unwrap();
    assert_eq!(query(&cluster, "SELECT what FROM kept"), "acknowledged");

    cluster.stop().unwrap();
    assert_eq!(cluster.pid(), None);
    let before = Instant::now();
    cluster.restart().unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "a later start took {:?}",
        before.elapsed()
    );
    let pid = cluster.pid().unwrap();
    drop(cluster);
    assert!(!is_alive(pid), "a dropped cluster is stopped");

    let cluster = start(&dir, Profile::Durable);
    assert_eq!(query(&cluster, "SELECT what FROM kept"), "acknowledged");
}

#[test]
fn replaces_an_orphan_and_then_owns_the_folder_alone() {
    let folder = folder();
    let orphan = orphan(folder.path());
    assert!(is_alive(orphan));
    let cluster = start(folder.path(), Profile::Durable);
    assert!(
        !is_alive(orphan),
        "two servers on one data directory destroy it"
    );
    assert_ne!(cluster.pid(), Some(orphan));

    let refused = Cluster::start(ClusterOptions::new(folder.path(), Profile::Durable)).unwrap_err();
    assert!(
        matches!(refused, LocalPostgresError::InUse { .. }),
        "{refused}"
    );
    assert_eq!(query(&cluster, "SELECT 'still here'"), "still here");
}

#[test]
fn a_zombie_and_busy_backends_of_a_killed_server_do_not_block_the_next() {
    let folder = folder();
    let cluster = start(folder.path(), Profile::Durable);
    let mut busy = Client::connect(&cluster.admin_url(), NoTls).unwrap();
    let backend: i32 = busy
        .query_one("SELECT pg_backend_pid()", &[])
        .unwrap()
        .get(0);
    #[expect(clippy::disallowed_methods, reason = "joined at the end of the test")]
    let work = std::thread::spawn(move || {
        busy.batch_execute("SELECT count(*) FROM generate_series(1, 100000000000)")
    });
    while query(
        &cluster,
        &format!("SELECT state FROM pg_stat_activity WHERE pid = {backend}"),
    ) != "active"
    {}

    // Nobody collects this child: it stays a zombie, named by its pid file.
    let pid = cluster.detach().unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    while is_alive(pid) {}
    assert!(
        is_alive(backend.cast_unsigned()),
        "the busy backend outlives its postmaster"
    );

    let cluster = start(folder.path(), Profile::Durable);
    assert!(!is_alive(backend.cast_unsigned()));
    assert!(work.join().unwrap().is_err());
    assert_eq!(query(&cluster, "SELECT 'ready'"), "ready");
}

#[test]
fn a_half_made_directory_is_made_again() {
    let folder = folder();
    fs::create_dir(folder.path().join("data.new")).unwrap();
    fs::write(folder.path().join("data.new/PG_VERSION"), "15\n").unwrap();
    let cluster = start(folder.path(), Profile::Volatile);
    assert_eq!(query(&cluster, "SHOW fsync"), "off");
    assert!(!folder.path().join("data.new").exists());
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let folder = folder();
    let mut options = ClusterOptions::new(folder.path(), Profile::Volatile);
    options
        .settings
        .push(("shared_buffers".to_owned(), "a lot".to_owned()));
    let error = Cluster::start(options).unwrap_err().to_string();
    assert!(
        error.contains("shared_buffers") && error.contains("postgres.log"),
        "{error}"
    );
    // The folder is not spoilt by it.
    start(folder.path(), Profile::Volatile);
}

#[test]
fn another_major_version_is_refused() {
    let folder = folder();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/PG_VERSION"), "8\n").unwrap();
    let error = Cluster::start(ClusterOptions::new(folder.path(), Profile::Durable)).unwrap_err();
    assert!(
        matches!(error, LocalPostgresError::WrongVersion { wanted: 8, .. }),
        "{error}"
    );
}

#[test]
fn a_long_path_and_odd_names_work() {
    let folder = folder();
    let dir = folder
        .path()
        .join(format!("a, \"b\" é {}", "x".repeat(120)));
    let cluster = start(&dir, Profile::Volatile);
    cluster.ensure_role("ministry \"a\"").unwrap();
    cluster.ensure_role("ministry \"a\"").unwrap();
    cluster.ensure_role("guest").unwrap();
    for _ in 0..2 {
        cluster
            .ensure_database("as/a", "ministry \"a\"", &["guest"])
            .unwrap();
    }
    Client::connect(&cluster.url("as/a", "ministry \"a\""), NoTls)
        .unwrap()
        .batch_execute("CREATE SCHEMA own")
        .unwrap();
    Client::connect(&cluster.url("as/a", "guest"), NoTls).unwrap();
    cluster.ensure_role("stranger").unwrap();
    let refused = Client::connect(&cluster.url("as/a", "stranger"), NoTls)
        .map(|_| ())
        .unwrap_err();
    assert!(
        refused.to_string().contains("db error") || refused.as_db_error().is_some(),
        "{refused}"
    );
    let run = cluster.socket_dir().to_owned();
    assert!(run.as_os_str().len() < 90, "{}", run.display());
    drop(cluster);
    fs::remove_dir_all(run).unwrap();
}

#[test]
fn values_of_rows_stay_out_of_the_log() {
    let folder = folder();
    let cluster = start(folder.path(), Profile::Volatile);
    let mut client = Client::connect(&cluster.admin_url(), NoTls).unwrap();
    client
        .batch_execute("CREATE TABLE people (name text PRIMARY KEY)")
        .unwrap();
    for _ in 0..2 {
        drop(client.execute("INSERT INTO people VALUES ($1)", &[&"Secret Person"]));
    }
    drop(client.batch_execute("INSERT INTO people VALUES ('Secret Person')"));
    let log = fs::read_to_string(cluster.log_file()).unwrap();
    assert!(
        log.contains("duplicate key") && !log.contains("Secret"),
        "{log}"
    );
}

#[test]
fn as_root_an_unreachable_folder_is_named() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let closed = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .unwrap();
    let error = Cluster::start(ClusterOptions::new(
        closed.path().join("pg"),
        Profile::Durable,
    ))
    .unwrap_err();
    let LocalPostgresError::Unreachable { blocked, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(blocked, &closed.path().canonicalize().unwrap());
    assert_eq!(
        fs::metadata(closed.path()).unwrap().permissions().mode() & 0o777,
        0o700,
        "a folder that is not ours keeps its mode"
    );
}
