//! The pool on a PostgreSQL with its own default settings.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use service_kit::{
    db::{Db, Object, PoolOptions},
    local_postgres::{Cluster, ClusterOptions, Profile},
};

/// A setting, and what set it.
fn setting(cluster: &Cluster, name: &str) -> String {
    let mut client = postgres::Client::connect(&cluster.admin_url(), postgres::NoTls).unwrap();
    let sql = "SELECT setting || ' from ' || source FROM pg_settings WHERE name = $1";
    client.query_one(sql, &[&name]).unwrap().get(0)
}

/// Whether PostgreSQL compiles a statement that has to read a whole table: the pool's own plan settings make it look dear.
async fn is_compiled(client: &Object) -> bool {
    let sql = "EXPLAIN (ANALYZE, FORMAT JSON) SELECT count(*) FROM pg_proc WHERE prosrc LIKE '%x%'";
    let plan = client.simple_query(sql).await.unwrap();
    format!("{plan:?}").contains("JIT")
}

#[test]
fn statements_are_not_compiled_on_a_stock_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(ClusterOptions::new(dir.path(), Profile::Stock)).unwrap();
    for name in ["jit", "shared_buffers", "max_connections", "fsync"] {
        let setting = setting(&cluster, name);
        assert!(!setting.ends_with("from command line"), "{name}: {setting}");
    }
    assert!(setting(&cluster, "jit").starts_with("on"));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let db = Db::connect(&cluster.admin_url(), &PoolOptions::default()).unwrap();
        let client = db.client().await.unwrap();
        assert!(!is_compiled(&client).await);
        // Other versions count otherwise what a plan costs; this way each would be compiled.
        let dear = "SET jit_above_cost = 0";
        client.batch_execute(dear).await.unwrap();
        assert!(!is_compiled(&client).await);
        client.batch_execute("SET jit = on").await.unwrap();
        let sql = "SELECT pg_jit_available()";
        let can: bool = client.query_one(sql, &[]).await.unwrap().get(0);
        assert_eq!(is_compiled(&client).await, can, "what the setting is for");
    });
}
