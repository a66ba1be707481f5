//! The command line as scripts meet it: every answer's shape, every exit code. `UPDATE_SHAPES=1` writes `cli.shapes` anew.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{fmt::Write as _, path::Path, process::Stdio};

use e2e::{device::Device, programs::run};
use serde_json::{Value, json};
use support::{DOMAIN, Fixture};
use uuid::Uuid;

/// Field names with the kinds of their values: what a script relies on.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(text) if text.starts_with("mimi://") => json!("uri"),
        Value::String(text) if Uuid::try_parse(text).is_ok() => json!("uuid"),
        Value::String(text) if text.starts_with(DOMAIN) && text.contains('/') => json!("group"),
        Value::String(text) if text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) => {
            json!("hash")
        }
        Value::String(_) => json!("text"),
        Value::Array(items) => items
            .first()
            .map_or(json!([]), |first| json!([shape(first)])),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

struct Shapes(String);

impl Shapes {
    fn note(&mut self, what: &str, answer: &Value) {
        writeln!(self.0, "{what}\n  {}", shape(answer)).unwrap();
    }

    fn compare(self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli.shapes");
        if std::env::var_os("UPDATE_SHAPES").is_some() {
            std::fs::write(&path, &self.0).unwrap();
        }
        let known = std::fs::read_to_string(&path).unwrap();
        for (line, (seen, known)) in self.0.lines().zip(known.lines()).enumerate() {
            assert_eq!(seen, known, "line {} of cli.shapes", line + 1);
        }
        assert_eq!(self.0.lines().count(), known.lines().count());
    }
}

#[test]
fn every_answer_has_the_shape_that_it_had() {
    let fixture = Fixture::start();
    let mut shapes = Shapes(String::new());
    let a = fixture.device("a");
    let b = fixture.device("b");
    let mut note = |device: &Device, words: &[&str], what: &str| {
        let answer = device.run(words).unwrap();
        shapes.note(what, &answer);
        answer
    };
    note(&a, &["whoami"], "whoami");
    note(&a, &["devices"], "devices");
    note(&a, &["users", "search", "aa"], "users search, nobody");
    fixture.server.invite(0, "clara@x", "Clara").unwrap();
    note(&a, &["users", "search", "cla"], "users search");
    note(&a, &["keys", "stock"], "keys stock");
    note(&a, &["keys", "publish", "--count", "2"], "keys publish");
    let created = note(&a, &["group", "create", "--device", &b.uri], "group create");
    let group = created["group"].as_str().unwrap().to_owned();
    note(&b, &["sync"], "sync, joining");
    note(&a, &["send", "--group", &group, "hello"], "send");
    let file = fixture.folder.path().join("lines");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let file = file.to_str().unwrap();
    note(
        &a,
        &["send", "--group", &group, "--lines", file],
        "send --lines",
    );
    note(&b, &["read", "--group", &group], "read");
    note(&a, &["group", "update", "--group", &group], "group update");
    note(&b, &["sync"], "sync");
    note(&a, &["group", "list"], "group list");
    note(&a, &["group", "show", "--group", &group], "group show");
    b.run(&["debug", "forget", "--group", &group]).unwrap();
    note(&b, &["group", "rejoin", "--group", &group], "group rejoin");
    note(&b, &["group", "leave", "--group", &group], "group leave");
    a.run(&["sync"]).unwrap();
    note(
        &a,
        &["group", "show", "--group", &group],
        "group show, one leaving",
    );
    note(
        &a,
        &["group", "remove", "--group", &group, "--device", &b.uri],
        "group remove",
    );
    note(&a, &["read", "--group", &group], "read, with Commits");
    note(
        &b,
        &["debug", "read-log", "--group", &group],
        "debug read-log",
    );
    note(
        &b,
        &["debug", "group-info", "--group", &group],
        "debug, refused",
    );
    note(&b, &["debug", "token"], "debug token");
    let phone = fixture.device("a2");
    note(&phone, &["revoke", &phone.uri], "revoke");
    let listened = a.attempt(&["listen", "--seconds", "1"]).unwrap();
    shapes.note("listen, last line", &listened.answer);
    shapes.compare();
}

#[test]
fn exit_codes_tell_failures_apart() {
    let mut fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let nobody = format!("mimi://{DOMAIN}/d/{}", Uuid::new_v4());
    let unknown = format!("{DOMAIN}/{}", "00".repeat(32));
    let exit = |device: &Device, words: &[&str], code: i32| {
        let said = device.attempt(words).unwrap();
        assert_eq!(said.code, code, "{words:?}: {said:?}");
        assert_eq!(said.error["error"]["exit"], code, "{said:?}");
        assert!(said.error["error"]["message"].is_string());
        assert_eq!(said.answer, Value::Null, "nothing on stdout");
    };
    exit(a, &["nonsense"], 2);
    exit(a, &["send", "--group", "not-a-group", "x"], 2);
    exit(a, &["group", "add", "--group", &group], 2);
    exit(
        a,
        &["group", "add", "--group", &group, "--device", "bob"],
        2,
    );
    exit(
        a,
        &["group", "remove", "--group", &group, "--device", &nobody],
        5,
    );
    exit(a, &["send", "--group", &unknown, "x"], 7);
    exit(a, &["group", "show", "--group", &unknown], 7);
    exit(a, &["group", "rejoin", "--group", &unknown], 7);
    exit(a, &["users", "search", "x"], 10);
    a.run(&["group", "remove", "--group", &group, "--device", &b.uri])
        .unwrap();
    b.run(&["sync"]).unwrap();
    exit(b, &["send", "--group", &group, "x"], 5);
    exit(b, &["group", "rejoin", "--group", &group], 7);
    let mut stranger = fixture.programs.command("client-cli");
    stranger
        .arg("--profile")
        .arg(fixture.folder.path().join("nobody"));
    assert_eq!(run(stranger.arg("whoami")).unwrap().code, 9);
    let used = fixture.server.invite(0, "c", "C").unwrap();
    let enroll = |profile: &str| {
        let node = &fixture.server.node;
        let mut command = fixture.programs.command("client-cli");
        command
            .arg("--profile")
            .arg(fixture.folder.path().join(profile));
        command.args(["enroll", "--invitation", &used, "--root"]);
        command.arg(&node.auth[0].root_pem);
        command.args(["--auth-url", &node.auth[0].url]);
        command.args(["--delivery-url", &node.delivery_url]);
        run(&mut command).unwrap().code
    };
    assert_eq!((enroll("c1"), enroll("c2")), (0, 5));
    // With nobody there: a question fails, something to be sent is kept, and later it is sent once.
    fixture.server.stop().unwrap();
    let quick = |words: &[&str]| {
        let mut command = a.command(words);
        run(command.args(["--timeout-seconds", "1"])).unwrap().code
    };
    assert_eq!(quick(&["devices"]), 3);
    assert_eq!(quick(&["send", "--group", &group, "later"]), 4);
    fixture.server.start_again().unwrap();
    let synced = a.run(&["sync"]).unwrap();
    assert_eq!(synced["resolved"].as_array().unwrap().len(), 1);
    assert_eq!(support::texts(a, &group), ["later"]);
}

#[test]
fn help_and_completions_need_no_profile() {
    let fixture = Fixture::start();
    for words in [
        &["--help"][..],
        &["completions", "bash"],
        &["group", "--help"],
    ] {
        let mut command = fixture.programs.command("client-cli");
        let output = command.args(words).stderr(Stdio::null()).output().unwrap();
        assert!(
            output.status.success() && output.stdout.len() > 300,
            "{words:?}"
        );
    }
}
