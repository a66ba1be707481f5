//! A slice of the story on a PostgreSQL with its own default settings, with two nodes of the Delivery Service.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use e2e::{
    chaos::{history::Recorder, servers::Servers},
    device::Device,
    programs::{Programs, arg},
};
use service_kit::local_postgres::Profile;

const PEOPLE: u32 = 1_000;
/// Compiled statements make an import thirty times as long; a busy machine makes it twice as long.
const AT_MOST: u32 = 4;

/// How long it takes an operator to import so many people.
fn import(programs: &Programs, servers: &Servers, folder: &Path) -> Duration {
    let file = folder.join("people.jsonl");
    let line = |n| {
        let handle = format!("person{n}@interior.example");
        serde_json::json!({"handle": handle, "display_name": handle, "organisation": "Interior"})
    };
    let lines: Vec<String> = (0..PEOPLE).map(|n| line(n).to_string()).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let admin = format!("unix:{}", servers.node.auth[0].admin_socket.display());
    let mut command = programs.command("auth-service");
    command.args(["users", "import", "--admin", &admin, &arg(&file)]);
    let began = Instant::now();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    began.elapsed()
}

/// Two people talk over both nodes, and one of them is revoked.
fn talk(programs: &Programs, servers: &Servers, folder: &Path) {
    let device = |name| Device::enroll(programs, &servers.node, folder, 0, name, name).unwrap();
    let [a, b] = ["a", "b"].map(device);
    let (_, group) = a.create_group([&b]).unwrap();
    for (from, to, text) in [(&a, &b, "one"), (&b, &a, "two"), (&a, &b, "three")] {
        from.run(&["send", "--group", &group, text]).unwrap();
        let read = to.run(&["read", "--group", &group]).unwrap();
        assert!(read.to_string().contains(text), "{read}");
    }
    let admin = format!("unix:{}", servers.node.auth[0].admin_socket.display());
    let mut revoke = programs.command("auth-service");
    revoke.args(["devices", "revoke", "--admin", &admin, &b.uri]);
    assert!(revoke.output().unwrap().status.success());
    let until = Instant::now() + Duration::from_secs(20);
    while b.attempt(&["sync"]).unwrap().code == 0 {
        assert!(Instant::now() < until, "it still reads");
    }
}

/// Runs `act` on a whole server side of its own.
fn on<T: Send>(profile: Profile, act: impl FnOnce(&Programs, &Servers, &Path) -> T + Send) -> T {
    let folder = tempfile::Builder::new().prefix("chancery-stock-").tempdir();
    let folder = folder.unwrap();
    let programs = Programs::find().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let starting = Servers::start(&programs, folder.path(), profile, None);
    let servers = runtime.block_on(starting).unwrap();
    let recorder = Recorder::new(folder.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| servers.supervise(&recorder));
        // Whatever fails, the supervisor is told to stop.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            servers.wait().unwrap();
            act(&programs, &servers, folder.path())
        }));
        servers.stop();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_cluster_that_nobody_has_tuned_is_as_good() {
    let private = on(Profile::Durable, import);
    let stock = on(Profile::Stock, |programs, servers, folder| {
        let took = import(programs, servers, folder);
        talk(programs, servers, folder);
        took
    });
    assert!(stock <= private * AT_MOST, "{stock:?} and {private:?}");
}
