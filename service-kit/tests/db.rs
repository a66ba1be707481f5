//! What the pool and its transactions say when the database does not do as asked.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use service_kit::{
    db::{Db, DbError, PoolOptions, TxError, when_reachable},
    lifecycle::Shutdown,
    migrate::{self, Migrations, Step},
    test_db::TestDb,
};

const MIGRATIONS: Migrations = Migrations {
    service: "example",
    steps: &[Step {
        name: "V1__initial",
        sql: "CREATE TABLE counters (id int PRIMARY KEY, n int NOT NULL); INSERT INTO counters VALUES (1, 0), (2, 0); \
              CREATE TABLE service_state (incarnation uuid NOT NULL); INSERT INTO service_state VALUES (gen_random_uuid());",
        oldest_binary: 1,
    }],
};

const NEXT: Migrations = Migrations {
    service: "example",
    steps: &[
        MIGRATIONS.steps[0],
        Step {
            name: "V2__more",
            sql: "ALTER TABLE counters ADD COLUMN note text",
            oldest_binary: 2,
        },
    ],
};

fn pool(db: &TestDb, options: PoolOptions) -> Db {
    Db::connect(&db.url(), &options).unwrap()
}

async fn bump(db: &Db, id: i32) -> Result<(), TxError<()>> {
    db.run_tx("bump", move |tx| {
        Box::pin(async move {
            tx.execute("UPDATE counters SET n = n + 1 WHERE id = $1", &[&id])
                .await?;
            Ok(())
        })
    })
    .await
}

async fn value(db: &Db, id: i32) -> i32 {
    let client = db.client().await.unwrap();
    let sql = "SELECT n FROM counters WHERE id = $1";
    client.query_one(sql, &[&id]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_held_lock_and_an_empty_pool_are_busy_and_nothing_happened() {
    let test = TestDb::create(&MIGRATIONS).await;
    let options = PoolOptions {
        pool_connections_items: 1,
        pool_wait_millis: 50,
        lock_timeout_millis: 50,
        ..PoolOptions::default()
    };
    let holder = pool(&test, PoolOptions::default());
    let mut held = holder.client().await.unwrap();
    let held = held.transaction().await.unwrap();
    held.execute("UPDATE counters SET n = 7 WHERE id = 1", &[])
        .await
        .unwrap();
    let db = pool(&test, options);
    let refused = bump(&db, 1).await;
    assert!(
        matches!(refused, Err(TxError::Db(DbError::Busy))),
        "{refused:?}"
    );
    let only = db.client().await.unwrap();
    let refused = bump(&db, 2).await;
    assert!(
        matches!(refused, Err(TxError::Db(DbError::Busy))),
        "{refused:?}"
    );
    drop(only);
    held.rollback().await.unwrap();
    bump(&db, 1).await.unwrap();
    assert_eq!((value(&db, 1).await, value(&db, 2).await), (1, 0));
}

#[tokio::test]
async fn a_rejection_rolls_back() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    let rejected: Result<(), TxError<&str>> = db
        .run_tx("reject", |tx| {
            Box::pin(async move {
                tx.execute("UPDATE counters SET n = 9 WHERE id = 1", &[])
                    .await?;
                Err(TxError::Rejected("no"))
            })
        })
        .await;
    assert!(matches!(rejected, Err(TxError::Rejected("no"))));
    assert_eq!(value(&db, 1).await, 0);
}

#[tokio::test]
async fn a_session_that_dies_is_unavailable_and_the_next_one_works() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    let killed: Result<(), TxError<()>> = db
        .run_tx("die", |tx| {
            Box::pin(async move {
                tx.execute("UPDATE counters SET n = 9 WHERE id = 1", &[])
                    .await?;
                tx.query("SELECT pg_terminate_backend(pg_backend_pid())", &[])
                    .await?;
                Ok(())
            })
        })
        .await;
    assert!(
        matches!(killed, Err(TxError::Db(DbError::Unavailable))),
        "{killed:?}"
    );
    assert_eq!(value(&db, 1).await, 0);
}

#[tokio::test]
async fn deadlocks_are_repeated_until_both_are_done() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    let barrier = Arc::new(tokio::sync::Barrier::new(2));
    let runs = Arc::new(AtomicU32::new(0));
    let cross = |first: i32, second: i32| {
        let (barrier, runs, db) = (barrier.clone(), runs.clone(), db.clone());
        async move {
            db.run_tx("cross", move |tx| {
                let (barrier, run) = (barrier.clone(), runs.fetch_add(1, Ordering::SeqCst));
                Box::pin(async move {
                    let sql = "UPDATE counters SET n = n + 1 WHERE id = $1";
                    tx.execute(sql, &[&first]).await?;
                    // Only the first two runs meet, each holding what the other wants next.
                    if run < 2 {
                        barrier.wait().await;
                    }
                    tx.execute(sql, &[&second]).await?;
                    Ok::<_, TxError<()>>(())
                })
            })
            .await
        }
    };
    let (one, other) = tokio::join!(cross(1, 2), cross(2, 1));
    one.unwrap();
    other.unwrap();
    assert_eq!((value(&db, 1).await, value(&db, 2).await), (2, 2));
    assert_eq!(
        runs.load(Ordering::SeqCst),
        3,
        "one of the two was repeated"
    );
}

#[tokio::test]
async fn a_schema_that_does_not_fit_is_refused_with_the_command() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    migrate::check(&db, &MIGRATIONS).await.unwrap();
    let refused = migrate::check(&db, &NEXT).await.unwrap_err().to_string();
    assert!(refused.contains("example migrate"), "{refused}");
    let url = test.owner_url();
    tokio::task::spawn_blocking(move || {
        migrate::run(&url, &NEXT, None).unwrap();
        migrate::run(&url, &NEXT, None).unwrap();
        migrate::renew_incarnation(&url).unwrap();
    })
    .await
    .unwrap();
    migrate::check(&db, &NEXT).await.unwrap();
    let refused = migrate::check(&db, &MIGRATIONS)
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("newer example"), "{refused}");
}

#[tokio::test]
async fn the_application_role_changes_rows_and_not_tables() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    bump(&db, 1).await.unwrap();
    let client = db.client().await.unwrap();
    let refused = client
        .batch_execute("ALTER TABLE counters ADD COLUMN x int")
        .await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn a_service_waits_for_its_database_and_not_for_a_better_schema() {
    let test = TestDb::create(&MIGRATIONS).await;
    let db = pool(&test, PoolOptions::default());
    let (shutdown, tries) = (Shutdown::new(), AtomicU32::new(0));
    let slow = || async {
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => Err(DbError::Unavailable.into()),
            _ => Ok(value(&db, 1).await),
        }
    };
    assert_eq!(when_reachable(&shutdown, slow).await.unwrap(), Some(0));
    assert_eq!(tries.load(Ordering::SeqCst), 2);

    let never = || async { Err::<(), _>(anyhow::anyhow!("another schema")) };
    assert!(when_reachable(&shutdown, never).await.is_err());
    let gone = || async {
        shutdown.begin();
        Err::<(), _>(DbError::Unavailable.into())
    };
    assert_eq!(when_reachable(&shutdown, gone).await.unwrap(), None);
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_no_reason_to_wait() {
    let test = TestDb::create(&MIGRATIONS).await;
    let (_, place) = test
        .url()
        .split_once('@')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let url = format!("postgresql://nobody_of_that_name@{place}");
    let db = Db::connect(&url, &PoolOptions::default()).unwrap();
    let refused = db.client().await.map(|_| ());
    assert!(refused.is_err_and(|error| !error.passes()));
}
