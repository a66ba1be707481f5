//! A slice of the story on a PostgreSQL with its own default settings, behind two nodes of the Delivery Service: people
//! are imported and enrolled, two of them talk, each over a node of its own, and one of them is revoked. Afterwards
//! none of the services' connections may have compiled a statement, which costs 20 to 500 ms each time.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{path::Path, process::Stdio, time::Instant};

use e2e::{
    chaos::{history::Recorder, line::Line, servers::Servers},
    device::Device,
    programs::{Programs, arg, run},
};
use serde_json::{Value, json};
use service_kit::local_postgres::Profile;
use single_node::NodeFile;
use tokio::runtime::Runtime;

/// An import has statements for each person, and its own over all of them.
const PEOPLE: u32 = 100;

/// Runs a command of the Authentication Service's operator.
fn operate(programs: &Programs, servers: &Servers, words: &[&str]) -> Value {
    let admin = format!("unix:{}", servers.node.auth[0].admin_socket.display());
    let mut command = programs.command("auth-service");
    command.args(words).args(["--admin", &admin]);
    run(&mut command).unwrap().ok(words[0]).unwrap()
}

fn import(programs: &Programs, servers: &Servers, folder: &Path) {
    let file = folder.join("people.jsonl");
    let line = |n| {
        let handle = format!("person{n}@interior.example");
        json!({"handle": handle, "display_name": handle, "organisation": "Interior"}).to_string()
    };
    let lines: Vec<String> = (0..PEOPLE).map(line).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    operate(programs, servers, &["users", "import", &arg(&file)]);
}

/// A server side as a client finds it that knows one node alone.
fn by_node(runtime: &Runtime, servers: &Servers, folder: &Path, node: &str) -> NodeFile {
    let line = Line::tcp(vec![folder.join(node)]);
    let (_, delivery_url) = runtime.block_on(line).unwrap();
    NodeFile {
        delivery_url,
        ..servers.node.clone()
    }
}

/// Each message is sent over one node while the other one's client listens for it.
fn talk(from: &Device, to: &Device, group: &str, text: &str) {
    let mut listen = to.command(&["listen", "--group", group, "--until-text", text]);
    let mut listening = listen.stdout(Stdio::null()).spawn().unwrap();
    from.run(&["send", "--group", group, text]).unwrap();
    assert!(listening.wait().unwrap().success(), "{text} was not heard");
}

fn slice(runtime: &Runtime, programs: &Programs, servers: &Servers, folder: &Path) {
    import(programs, servers, folder);
    let device = |name, node| {
        let node = by_node(runtime, servers, folder, node);
        Device::enroll(programs, &node, folder, 0, name, name).unwrap()
    };
    let (a, b) = (device("a", "node-1.sock"), device("b", "node-2.sock"));
    let (_, group) = a.create_group([&b]).unwrap();
    b.run(&["sync"]).unwrap();
    talk(&a, &b, &group, "from the first node to the second");
    talk(&b, &a, &group, "and back");
    operate(programs, servers, &["devices", "revoke", &b.uri]);
    let began = Instant::now();
    let refused = loop {
        assert!(began.elapsed().as_secs() < 20, "it still reads");
        let said = b.attempt(&["sync"]).unwrap();
        if said.code != 0 {
            break said.error;
        }
    };
    assert_eq!(refused["error"]["reason"], "DEVICE_REVOKED");
    // Whoever speaks removes the revoked device first.
    a.run(&["send", "--group", &group, "alone"]).unwrap();
    let shown = a.run(&["group", "show", "--group", &group]).unwrap();
    assert_eq!(shown["members"].as_array().unwrap().len(), 1);
}

/// Whether this process of PostgreSQL has compiled a statement: it loads the compiler's library for the first one.
fn has_compiled(pid: i32) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.contains("llvmjit")
}

fn assert_not_compiled(servers: &Servers) {
    let mut client = servers.postgres.client().unwrap();
    let sql = "SELECT usename::text, pid FROM pg_stat_activity WHERE usename IN ('auth_app', 'delivery_app')";
    let connections = client.query(sql, &[]).unwrap();
    let compiled = |role: &str| -> Vec<bool> {
        let of_role = connections.iter().filter(|c| c.get::<_, &str>(0) == role);
        of_role.map(|c| has_compiled(c.get(1))).collect()
    };
    for (role, processes) in [("auth_app", 1), ("delivery_app", 2)] {
        let compiled = compiled(role);
        assert!(compiled.len() >= processes, "{role}: {compiled:?}");
        assert!(!compiled.contains(&true), "{role}: {compiled:?}");
    }
    // The same look at a connection that sets nothing and runs a statement that is dear enough.
    let sql = "SELECT pg_backend_pid(), pg_jit_available()";
    let row = client.query_one(sql, &[]).unwrap();
    let dear = "SET jit_above_cost = 0; SELECT count(*) FROM pg_proc WHERE prosrc LIKE '%x%'";
    client.batch_execute(dear).unwrap();
    assert_eq!(has_compiled(row.get(0)), row.get::<_, bool>(1));
}

#[test]
fn a_cluster_that_nobody_has_tuned_carries_two_nodes_and_compiles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs::find().unwrap();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().build().unwrap();
    let starting = Servers::start(&programs, folder.path(), Profile::Stock, None);
    let servers = runtime.block_on(starting).unwrap();
    let recorder = Recorder::new(folder.path()).unwrap();
    std::thread::scope(|scope| {
        let supervisor = scope.spawn(|| servers.supervise(&recorder));
        // Whatever fails, the supervisor is told to stop.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            servers.wait().unwrap();
            slice(&runtime, &programs, &servers, folder.path());
            assert_not_compiled(&servers);
        }));
        servers.stop();
        supervisor.join().unwrap().unwrap();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
