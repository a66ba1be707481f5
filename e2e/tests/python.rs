//! The example device in Python: it shares no code with this project, and our client adds it to a group.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use e2e::tour;
use serde_json::Value;
use support::Fixture;

fn folder() -> PathBuf {
    tour::root().join("examples/python")
}

/// The interpreter of the example's virtual environment, which the project's script makes; `None` where there is no Python, which is a failure in CI.
fn python() -> Option<PathBuf> {
    let made = Command::new(tour::root().join("dev"))
        .arg("venv")
        .stdin(Stdio::null())
        .status()
        .unwrap();
    if made.success() {
        return Some(folder().join(".venv/bin/python"));
    }
    assert!(std::env::var_os("CI").is_none(), "./dev venv failed");
    // Not through the test harness, which would keep it to itself.
    let mut stderr = std::io::stderr();
    writeln!(
        stderr,
        "SKIPPED: no Python with venv for the example device"
    )
    .unwrap();
    None
}

/// Killed with the value.
struct Device(Child);

impl Drop for Device {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _collected = self.0.wait();
    }
}

#[test]
fn our_client_adds_a_device_that_is_written_in_python() {
    let Some(python) = python() else { return };
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["alice"]);
    let alice = &devices[0];
    let code = fixture.server.invite(0, "bob", "Bob").unwrap();
    let address = |url: &str| url.trim_start_matches("http://").to_owned();
    let node = &fixture.server.node;
    let mut command = Command::new(python);
    command.arg(folder().join("device.py"));
    command.args(["--auth", &address(&node.auth[0].url)]);
    command.args(["--delivery", &address(&node.delivery_url)]);
    command.args(["--invitation", &code]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut device = Device(command.spawn().unwrap());
    let mut lines = BufReader::new(device.0.stdout.take().unwrap()).lines();
    let mut event = |name: &str| -> Value {
        let line = lines.next().unwrap_or_else(|| panic!("no {name}")).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["event"], name, "{event}");
        event
    };
    let uri = event("enrolled")["device"].as_str().unwrap().to_owned();
    let published = event("published");
    assert_eq!(
        (&published["one_time"], &published["last_resort"]),
        (&2.into(), &true.into())
    );
    let added = alice
        .run(&["group", "add", "--group", &group, "--device", &uri])
        .unwrap();
    assert_eq!(added["added"][0], *uri, "{added}");
    let welcome = event("welcome");
    assert_eq!(
        (&welcome["group"], &welcome["seq"]),
        (&Value::from(group), &added["seq"])
    );
    assert_eq!(welcome["joiner_secret_bytes"], 32);
    assert!(device.0.wait().unwrap().success());
}

#[test]
fn its_layouts_are_those_of_the_vectors() {
    let Some(python) = python() else { return };
    let output = Command::new(python)
        .arg(folder().join("check_vectors.py"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["failed"], 0);
    assert!(summary["vectors"].as_u64() > Some(20), "{summary}");
}
