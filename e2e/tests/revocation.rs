//! Revoked with real processes: what a revoked device can still read, and how long it takes until it is out of every group.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use e2e::{device::Device, programs::run};
use support::{Fixture, assert_agree, show, texts};

const PATIENCE: Duration = Duration::from_secs(60);

fn listen(device: &Device) -> Child {
    let mut command = device.command(&["listen"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
    }
    started.elapsed()
}

fn operator(fixture: &Fixture, words: &[&str]) {
    run(&mut fixture.server.operator(0, words))
        .unwrap()
        .ok("the operator's command")
        .unwrap();
}

fn members(device: &Device, group: &str) -> usize {
    show(device, group)["members"].as_array().unwrap().len()
}

/// Every path that ends access for ever ends in the same state: removed, by whoever is there, unasked.
#[test]
fn whoever_is_online_removes_a_device_whichever_way_it_went() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c", "d", "e"]);
    let [a, b, c, d, e] = &devices[..] else {
        panic!()
    };
    let mut online = listen(a);
    // By its own user.
    b.run(&["revoke", &b.uri]).unwrap();
    until("not removed: its user", || {
        e.run(&["sync"]).unwrap();
        members(e, &group) == 4
    });
    // By the operator.
    operator(&fixture, &["devices", "revoke", &c.uri]);
    until("not removed: the operator", || {
        e.run(&["sync"]).unwrap();
        members(e, &group) == 3
    });
    // With its person.
    let users = d.run(&["whoami"]).unwrap();
    operator(
        &fixture,
        &["users", "delete", users["user"].as_str().unwrap()],
    );
    until("not removed: deleted", || {
        e.run(&["sync"]).unwrap();
        members(e, &group) == 2
    });
    online.kill().unwrap();
    online.wait().unwrap();
    assert_agree(&[a, e], &group);
    for gone in [b, c, d] {
        let said = gone.attempt(&["sync"]).unwrap();
        assert_eq!(said.code, 6, "{said:?}");
        assert_eq!(members(gone, &group), 5, "it learned nothing");
    }
}

/// With nobody online: the first one to speak removes it first, and a restart of everything in between changes nothing.
#[test]
fn the_first_one_to_speak_removes_it_first() {
    let mut fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c"]);
    let (a, b, c) = (&devices[0], &devices[1], &devices[2]);
    operator(&fixture, &["devices", "revoke", &c.uri]);
    fixture.server.kill().unwrap();
    fixture.server.start_again().unwrap();
    until("the Delivery Service does not hear of it", || {
        let answer = c.run(&["debug", "read-log", "--group", &group]).unwrap();
        answer["reason"] == "DEVICE_REVOKED"
    });
    let sent = b.run(&["send", "--group", &group, "secret"]).unwrap();
    assert_eq!(members(b, &group), 2);
    assert!(sent["epoch_seq"].as_u64() > Some(1), "{sent}");
    // Who has a Commit in hand that leaves it in builds it again.
    assert_agree(&[a, b], &group);
    assert_eq!(texts(a, &group), ["secret"]);
    assert!(texts_offline(c, &group).is_empty());
}

fn texts_offline(device: &Device, group: &str) -> Vec<String> {
    let read = device
        .run(&["read", "--group", group, "--no-sync"])
        .unwrap();
    let entries = read["entries"].as_array().unwrap().clone();
    entries
        .iter()
        .filter_map(|entry| entry["text"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn a_suspended_user_is_locked_out_and_comes_back_to_the_same_group() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let user = b.run(&["whoami"]).unwrap()["user"].clone();
    let user = user.as_str().unwrap();
    operator(&fixture, &["users", "suspend", user]);
    until("the Delivery Service does not hear of it", || {
        let answer = b.run(&["debug", "read-log", "--group", &group]).unwrap();
        answer["reason"] == "USER_SUSPENDED"
    });
    a.run(&["send", "--group", &group, "while you were away"])
        .unwrap();
    assert_eq!(b.attempt(&["sync"]).unwrap().code, 6);
    operator(&fixture, &["users", "reinstate", user]);
    until("not let in again", || {
        b.attempt(&["sync"]).unwrap().code == 0
    });
    assert_eq!(texts(b, &group), ["while you were away"]);
    assert_agree(&[a, b], &group);
}
