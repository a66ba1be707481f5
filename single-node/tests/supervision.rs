//! A node in which a task dies ends, with that task's name, and leaves no PostgreSQL behind.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::time::Duration;

use clap::Parser;
use service_kit::lifecycle::{Shutdown, TaskEnded, spawn_short};
use service_kit::local_postgres::in_directory;
use single_node::{NodeFile, Options};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// A task of each service.
const TASKS: [&str; 2] = ["poll", "certificate_expiry"];

async fn until_ready(dir: &Path) {
    let ready = async {
        while NodeFile::read(dir).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_which_a_task_dies_ends_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().canonicalize().unwrap();
    for name in TASKS {
        let options = Cli::parse_from(["x", "--data", dir.to_str().unwrap()]).options;
        let shutdown = Shutdown::new();
        let running = spawn_short(single_node::run(options, shutdown.clone()));
        until_ready(&dir).await;
        shutdown.panic_in(name);
        let ended = tokio::time::timeout(PATIENCE, running).await;
        let error = ended.unwrap().unwrap().unwrap_err();
        let panicked = true;
        let ended = error.downcast::<TaskEnded>().unwrap();
        assert_eq!(ended, TaskEnded { name, panicked });
        assert!(in_directory(&dir.join("postgres/data")).is_empty());
        std::fs::remove_file(dir.join(single_node::FILE_NAME)).unwrap();
    }
}
