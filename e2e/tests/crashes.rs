//! The client is killed at each step of each operation, by a fault point and not by chance, and goes on: everything happens exactly once.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use e2e::{
    device::Device,
    programs::{run, text},
};
use serde_json::Value;
use support::{DOMAIN, Fixture, assert_agree, head, read, show, texts};
use uuid::Uuid;

/// Crashes at the point, then runs the same command again; its answer.
fn crash_and_repeat(device: &Device, point: &str, words: &[&str]) -> Value {
    device.crash(point, words).unwrap();
    device.run(words).unwrap()
}

const COMMIT_POINTS: [&str; 5] = [
    "before-send",
    "after-send",
    "before-merge",
    "between-process-and-merge",
    "after-merge",
];

#[test]
fn a_commit_is_made_once_wherever_its_device_dies() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    for point in COMMIT_POINTS {
        let before = head(a, &group);
        let update = ["group", "update", "--group", &group];
        let answer = crash_and_repeat(a, point, &update);
        // A crash after the merge leaves nothing open: the repeat is a second update.
        let commits = if point == "after-merge" { 2 } else { 1 };
        assert_eq!(answer["seq"], before + commits, "{point}: {answer}");
        assert_agree(&[a, b], &group);
        assert_eq!(head(b, &group), before + commits, "{point}");
    }
    for point in COMMIT_POINTS {
        let c = fixture.device(&format!("c-{point}"));
        let before = head(a, &group);
        let add = ["group", "add", "--group", &group, "--device", &c.uri];
        a.crash(point, &add).unwrap();
        // The repeat either finds it done, or finishes it; then there is nothing left to add.
        let again = a.attempt(&add).unwrap();
        assert!(again.code == 0 || again.code == 5, "{point}: {again:?}");
        c.run(&["sync"]).unwrap();
        assert_agree(&[a, b, &c], &group);
        assert_eq!(head(a, &group), before + 1, "{point}: added once");
        let remove = ["group", "remove", "--group", &group, "--device", &c.uri];
        a.crash(point, &remove).unwrap();
        let again = a.attempt(&remove).unwrap();
        assert!(again.code == 0 || again.code == 5, "{point}: {again:?}");
        assert_agree(&[a, b], &group);
        assert_eq!(head(a, &group), before + 2, "{point}: removed once");
        c.run(&["sync"]).unwrap();
        assert_eq!(show(&c, &group)["state"], "removed", "{point}");
    }
}

#[test]
fn a_claim_repeated_after_a_crash_takes_no_second_key_package() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let c = fixture.device("c");
    let stock = || c.run(&["keys", "stock"]).unwrap()["stock"][0]["one_time"].clone();
    let before = stock().as_u64().unwrap();
    let add = ["group", "add", "--group", &group, "--device", &c.uri];
    crash_and_repeat(&devices[0], "after-claim", &add);
    assert_eq!(stock(), before - 1);
}

#[test]
fn a_group_is_made_once_and_known_after_a_crash() {
    let fixture = Fixture::start();
    let a = fixture.device("a");
    for (made, point) in (1..).zip(["before-send", "after-send"]) {
        a.crash(point, &["group", "create"]).unwrap();
        let synced = a.run(&["sync"]).unwrap();
        let groups = synced["groups"].as_array().unwrap();
        assert_eq!(groups.len(), made, "{point}");
        assert!(groups.iter().all(|g| g["state"] == "active"), "{synced}");
        assert_eq!(synced["resolved"].as_array().unwrap().len(), 1, "{point}");
    }
}

#[test]
fn a_replaced_group_takes_everybody_along_wherever_its_maker_dies() {
    let fixture = Fixture::start();
    let (devices, mut group) = fixture.group(&["a", "b", "c"]);
    let a = &devices[0];
    let points = [
        "before-send",
        "after-send",
        "between-create-and-add",
        "after-claim",
    ];
    for (round, point) in points.into_iter().enumerate() {
        let words = ["group", "replace", "--group", &group];
        a.crash(point, &words).unwrap();
        if round % 2 == 0 {
            a.run(&["sync"]).unwrap();
        } else {
            a.run(&words).unwrap();
        }
        let old = show(a, &group);
        assert_eq!(old["state"], "replaced", "{point}: {old}");
        group = text(&old, "successor").unwrap().to_owned();
        for device in &devices {
            device.run(&["sync"]).unwrap();
        }
        let everybody: Vec<_> = devices.iter().collect();
        assert_agree(&everybody, &group);
        let members = show(a, &group)["members"].as_array().unwrap().len();
        assert_eq!(members, devices.len(), "{point}");
    }
}

#[test]
fn a_message_stands_once_wherever_its_sender_or_reader_dies() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let mut expected = Vec::new();
    for point in ["before-send", "after-send"] {
        // Repeated by the same command.
        let id = Uuid::new_v4().to_string();
        let text = format!("repeated after {point}");
        let words = ["send", "--group", &group, "--message-id", &id, &text];
        let answer = crash_and_repeat(a, point, &words);
        assert_eq!(answer["replayed"], point == "after-send", "{point}");
        expected.push(text);
        // Found and sent by `sync`.
        let text = format!("synced after {point}");
        a.crash(point, &["send", "--group", &group, &text]).unwrap();
        let synced = a.run(&["sync"]).unwrap();
        assert_eq!(synced["resolved"][0]["replayed"], point == "after-send");
        expected.push(text);
    }
    for point in ["before-merge", "between-process-and-merge", "after-merge"] {
        let text = format!("read while dying {point}");
        a.run(&["send", "--group", &group, &text]).unwrap();
        expected.push(text);
        b.crash(point, &["sync"]).unwrap();
        assert_eq!(texts(b, &group), expected, "{point}");
    }
    assert_eq!(texts(a, &group), expected);
    assert_agree(&[a, b], &group);
}

#[test]
fn a_welcome_is_used_once_wherever_its_device_dies() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    for point in ["before-welcome-ack", "after-welcome-ack"] {
        let c = fixture.device(point);
        let add = ["group", "add", "--group", &group, "--device", &c.uri];
        devices[0].run(&add).unwrap();
        c.crash(point, &["sync"]).unwrap();
        c.run(&["sync"]).unwrap();
        assert_eq!(
            c.run(&["debug", "welcomes"]).unwrap()["welcomes"],
            Value::Array(vec![])
        );
        assert_agree(&[&devices[0], &devices[1], &c], &group);
    }
}

#[test]
fn a_rejoin_is_made_once_wherever_its_device_dies() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    for point in ["before-send", "after-send", "before-merge"] {
        let before = head(a, &group);
        b.run(&["debug", "forget", "--group", &group]).unwrap();
        crash_and_repeat(b, point, &["group", "rejoin", "--group", &group]);
        assert_agree(&[a, b], &group);
        assert_eq!(head(a, &group), before + 1, "{point}");
        b.run(&["send", "--group", &group, point]).unwrap();
        assert_eq!(texts(a, &group).last().unwrap(), point);
    }
}

#[test]
fn an_enrolment_makes_one_device_wherever_it_dies() {
    let fixture = Fixture::start();
    let node = &fixture.server.node;
    for point in ["enroll-after-key", "enroll-after-answer"] {
        let code = fixture.server.invite(0, point, point).unwrap();
        let profile = fixture.folder.path().join(point);
        let enroll = |fault: &str| {
            let mut command = fixture.programs.command("client-cli");
            command.arg("--profile").arg(&profile);
            command.args(["enroll", "--invitation", &code, "--domain", DOMAIN]);
            command.args(["--auth-url", &node.auth[0].url]);
            command.args(["--delivery-url", &node.delivery_url]);
            command.arg("--root").arg(&node.auth[0].root_pem);
            command.env("CHANCERY_FAULT", fault);
            run(&mut command).unwrap()
        };
        assert_eq!(enroll(point).code, 86);
        let first = enroll("").ok("enroll").unwrap();
        // And once more: it is the same device.
        assert_eq!(enroll("").ok("enroll").unwrap(), first);
        let mut devices = fixture.programs.command("client-cli");
        devices.arg("--profile").arg(&profile).arg("devices");
        let devices = run(&mut devices).unwrap().ok("devices").unwrap();
        assert_eq!(devices["devices"].as_array().unwrap().len(), 1, "{point}");
    }
}

#[test]
fn two_commands_at_once_wait_for_each_other() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    std::thread::scope(|scope| {
        for n in 0..4 {
            let group = &group;
            scope.spawn(move || {
                for m in 0..5 {
                    let text = format!("{n}.{m}");
                    a.run(&["send", "--group", group, &text]).unwrap();
                }
                a.run(&["group", "update", "--group", group]).unwrap();
            });
        }
    });
    let mut seen = texts(b, &group);
    seen.sort();
    let expected: Vec<String> = (0..4)
        .flat_map(|n| (0..5).map(move |m| format!("{n}.{m}")))
        .collect();
    assert_eq!(seen, expected);
    assert_agree(&[a, b], &group);
    let skipped = read(b, &group)
        .into_iter()
        .filter(|entry| !entry["skipped"].is_null());
    assert_eq!(skipped.count(), 0);
}
