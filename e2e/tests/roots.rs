//! The roots that a profile pins: its own domain's is needed for everything, another domain's for that domain alone.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{fs, path::Path};

use e2e::{device::Device, programs::Programs, server::Server};
use serde_json::{Value, json};

const OWN: &str = "interior.example";
const OTHER: &str = "health.example";

/// Changes the pinned roots of a profile.
fn change(folder: &Path, change: impl FnOnce(&mut Vec<Value>)) {
    let path = folder.join("profile.json");
    let mut profile: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(profile["roots"].as_array_mut().unwrap());
    fs::write(&path, profile.to_string()).unwrap();
}

fn of<'a>(roots: &'a mut [Value], domain: &str) -> &'a mut Value {
    roots.iter_mut().find(|r| r["domain"] == domain).unwrap()
}

#[test]
fn another_domains_root_that_cannot_be_used_ends_nothing_else_and_the_own_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (programs, dir) = (Programs::find().unwrap(), folder.path().join("server"));
    let server = Server::start(&programs, &dir, &[OWN, OTHER]).unwrap();
    let enroll = |place, name| {
        Device::enroll(&programs, &server.node, folder.path(), place, name, name).unwrap()
    };
    let (a, b, c) = (enroll(0, "a"), enroll(0, "b"), enroll(1, "c"));
    let (_, group) = a.create_group([&b]).unwrap();
    let profile = folder.path().join("a");
    let whole = fs::read(profile.join("profile.json")).unwrap();

    change(&profile, |roots| of(roots, OTHER)["root"] = "AAAA".into());
    let synced = a.attempt(&["sync"]).unwrap();
    let failed = &synced.answer["failed"];
    assert_eq!(failed[0]["of"], "roots", "{synced:?}");
    assert_eq!(failed[0]["item"], OTHER);
    assert_eq!(failed.as_array().unwrap().len(), 1);
    a.run(&["send", "--group", &group, "all the same"]).unwrap();
    b.run(&["sync"]).unwrap();
    // Nobody of that domain is trusted meanwhile, and no group is made that would not list its authorities.
    let add = ["group", "add", "--group", &group, "--device", &c.uri];
    let added = a.attempt(&add).unwrap();
    assert_ne!(
        (added.code, &added.answer["left_out"]),
        (0, &json!([])),
        "{added:?}"
    );
    let created = a.attempt(&["group", "create"]).unwrap();
    let why = created.error["error"]["message"].as_str().unwrap();
    assert!(created.code != 0 && why.contains(OTHER), "{why}");

    change(&profile, |roots| {
        roots.retain(|root| root["domain"] == OTHER)
    });
    let asked = a.attempt(&["sync"]).unwrap();
    let why = asked.error["error"]["message"].as_str().unwrap();
    assert!(asked.code == 9 && why.contains("pins no root of"), "{why}");
    change(&profile, Vec::clear);
    assert_eq!(a.attempt(&["sync"]).unwrap().code, 9);

    fs::write(profile.join("profile.json"), whole).unwrap();
    assert_eq!(a.run(&["sync"]).unwrap()["failed"], json!([]));
    // Who was left out comes in by that.
    let shown = a.run(&["group", "show", "--group", &group]).unwrap();
    assert_eq!(shown["members"].as_array().unwrap().len(), 3);
}

#[test]
fn a_root_file_that_is_missing_or_holds_no_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let programs = Programs::find().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    for (file, says) in [
        (empty, "holds no certificate"),
        (folder.path().join("missing.pem"), "No such file"),
    ] {
        let trust = format!(
            "domain={OTHER},url=http://127.0.0.1:9,root={}",
            file.display()
        );
        let mut command = programs.command("client-cli");
        command.arg("--profile").arg(folder.path().join("p"));
        command.args(["enroll", "--auth-url", "http://127.0.0.1:9"]);
        command.args(["--delivery-url", "http://127.0.0.1:9", "--invitation", "x"]);
        command.arg("--root").arg(&file).args(["--trust", &trust]);
        let said = e2e::programs::run(&mut command).unwrap();
        let why = said.error["error"]["message"].as_str().unwrap();
        assert_eq!(said.code, 2, "{why}");
        assert!(
            why.contains(says) && why.contains(&file.display().to_string()),
            "{why}"
        );
    }
}
