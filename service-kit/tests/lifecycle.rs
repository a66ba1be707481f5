//! Tasks that must live until the drain, and what becomes of a process when one does not.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use service_kit::lifecycle::{Shutdown, TaskEnded};

const SOON: Duration = Duration::from_secs(10);

/// Waits for the drain, and gives what the process would end with.
async fn ended(shutdown: &Shutdown) -> Result<(), TaskEnded> {
    let soft = shutdown.soft();
    tokio::time::timeout(SOON, soft.cancelled()).await.unwrap();
    tokio::time::timeout(SOON, shutdown.join()).await.unwrap()
}

#[tokio::test]
async fn a_task_that_panics_or_returns_before_the_drain_begins_it_and_is_named() {
    for (panicked, fails) in [(true, false), (false, false), (false, true)] {
        let shutdown = Shutdown::new();
        let soft = shutdown.soft();
        shutdown.spawn("other", async move { soft.cancelled().await });
        shutdown.spawn("faulty", async move {
            assert!(!panicked, "as asked");
            anyhow::ensure!(!fails, "as asked");
            Ok(())
        });
        let name = "faulty";
        assert_eq!(ended(&shutdown).await, Err(TaskEnded { name, panicked }));
    }
}

#[tokio::test]
async fn tasks_that_end_with_the_drain_are_waited_for_and_are_no_failure() {
    let shutdown = Shutdown::new();
    let (done, is_done) = tokio::sync::oneshot::channel();
    let soft = shutdown.soft();
    shutdown.spawn("task", async move {
        soft.cancelled().await;
        tokio::task::yield_now().await;
        done.send(()).unwrap();
    });
    assert_eq!(shutdown.running()["task"], 1);
    shutdown.begin();
    assert_eq!(ended(&shutdown).await, Ok(()));
    assert_eq!(shutdown.running()["task"], 0);
    is_done.await.unwrap();
}

#[tokio::test]
async fn a_job_may_end_at_any_time_but_not_panic() {
    let shutdown = Shutdown::new();
    shutdown.spawn_job("job", async {});
    while shutdown.running()["job"] > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!shutdown.soft().is_cancelled());
    shutdown.spawn_job("job", async { panic!("as asked") });
    let name = "job";
    let panicked = true;
    assert_eq!(ended(&shutdown).await, Err(TaskEnded { name, panicked }));
}

#[tokio::test]
async fn a_thread_that_panics_or_returns_before_the_drain_counts_like_a_task() {
    for panicked in [true, false] {
        let shutdown = Shutdown::new();
        let work = move || assert!(!panicked, "as asked");
        let thread = shutdown.spawn_thread("thread", work).unwrap();
        let name = "thread";
        assert_eq!(ended(&shutdown).await, Err(TaskEnded { name, panicked }));
        assert_eq!(thread.join().unwrap().is_err(), panicked);
    }
    let shutdown = Shutdown::new();
    shutdown.begin();
    let thread = shutdown.spawn_thread("thread", || 7).unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), 7);
    assert_eq!(ended(&shutdown).await, Ok(()));
}

#[tokio::test]
async fn the_end_of_the_drain_waits_for_nobody() {
    let shutdown = Shutdown::new();
    shutdown.spawn("stuck", std::future::pending::<()>());
    shutdown.abort();
    assert_eq!(ended(&shutdown).await, Ok(()));
}
