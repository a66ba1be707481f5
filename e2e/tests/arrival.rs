//! What arrives in another order than one would wish, or too late.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use client_cli::{core::records::GroupName, member::welcomes::Entered};
use e2e::programs::text;
use serde_json::Value;
use support::{Fixture, assert_agree, read, show, texts};

/// Two processes of one profile, a `listen` and a `sync` say, got the same Welcome; one was faster.
#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_that_another_process_has_used_meanwhile_takes_nothing_away() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let (_, group) = a.create_group([&b]).unwrap();
    let name: GroupName = group.parse().unwrap();
    let slow = fixture.member(&b).await;
    let welcome = slow.welcomes().await.unwrap().remove(0);
    let tree = slow.tree(&name, welcome.epoch_seq).await.unwrap();
    b.run(&["sync"]).unwrap();
    assert_eq!(slow.enter(&welcome, &name, tree).unwrap(), Entered::Known);
    drop(slow);
    a.run(&["send", "--group", &group, "still there?"]).unwrap();
    assert_eq!(texts(&b, &group), ["still there?"]);
    assert_eq!(show(&b, &group)["rejoined_seq"], 0);
    assert_agree(&[&a, &b], &group);
}

/// Field lesson: a rejoin is fired in the middle of catching up.
#[test]
fn whoever_was_away_for_thirty_epochs_catches_up_and_does_not_come_back_from_outside() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c"]);
    let mut said = Vec::new();
    let mut talk = |n: usize| {
        let speaker = &devices[n % 2];
        said.push(format!("after {n} epochs"));
        speaker
            .run(&["group", "update", "--group", &group])
            .unwrap();
        speaker
            .run(&["send", "--group", &group, &said[said.len() - 1]])
            .unwrap();
    };
    (0..30).for_each(&mut talk);
    let away = &devices[2];
    let mut listening = away.command(&["listen", "--until-text", "after 35 epochs"]);
    let listening = listening.stdout(Stdio::null()).spawn().unwrap();
    // It goes on while the one who was away reads.
    (30..36).for_each(&mut talk);
    assert!(listening.wait_with_output().unwrap().status.success());
    assert_eq!(texts(away, &group), said);
    assert_eq!(show(away, &group)["rejoined_seq"], 0);
    let everybody: Vec<_> = devices.iter().collect();
    assert_agree(&everybody, &group);
}

/// Field lesson: the notice that a group was replaced and the Welcome into the new one come in either order.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_group_and_its_successor_are_learned_of_in_either_order() {
    let fixture = Fixture::start();
    let (devices, old) = fixture.group(&["a", "b", "c", "d"]);
    let [a, b, c, d] = &devices[..] else { panic!() };
    a.run(&["send", "--group", &old, "in the old one"]).unwrap();
    let replaced = a.run(&["group", "replace", "--group", &old]).unwrap();
    let new = text(&replaced, "group").unwrap().to_owned();
    // The Welcome first.
    b.run(&["sync"]).unwrap();
    // The notice first.
    let name: GroupName = old.parse().unwrap();
    let reader = fixture.member(c).await;
    reader.read_up(&name).await.unwrap();
    drop(reader);
    assert_eq!(show(c, &old)["state"], "replaced");
    c.run(&["sync"]).unwrap();
    // Neither: it still believes in the old group. It is told, once, and nothing is sent.
    let refused = d.attempt(&["send", "--group", &old, "too late"]).unwrap();
    assert_eq!(refused.code, 5, "{}", refused.error);
    let again = b.attempt(&["group", "replace", "--group", &old]).unwrap();
    assert_eq!(again.code, 5, "one successor: {}", again.error);
    for device in &devices {
        device.run(&["sync"]).unwrap();
        let state = show(device, &old);
        assert_eq!(
            (&state["state"], &state["successor"]),
            (&"replaced".into(), &Value::from(new.as_str()))
        );
        // What was said in it stays readable.
        let journal = device.run(&["read", "--no-sync", "--group", &old]).unwrap();
        assert!(journal.to_string().contains("in the old one"));
    }
    d.run(&["send", "--group", &new, "in the new one"]).unwrap();
    for device in &devices {
        assert_eq!(texts(device, &new), ["in the new one"]);
    }
    assert_agree(&[a, b, c, d], &new);
}

#[test]
fn whoever_never_read_its_welcome_comes_in_from_outside() {
    let fixture = Fixture::start_with(&[("CHANCERY_DS_WELCOME_LIFETIME_SECONDS", "1")]);
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let (_, group) = a.create_group([&b]).unwrap();
    a.run(&["send", "--group", &group, "nobody there yet"])
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while b.run(&["debug", "welcomes"]).unwrap()["welcomes"] != Value::from(Vec::<Value>::new()) {
        assert!(Instant::now() < until, "a Welcome does not end");
    }
    b.run(&["sync"]).unwrap();
    a.run(&["send", "--group", &group, "now"]).unwrap();
    assert_eq!(texts(&b, &group), ["now"]);
    assert!(read(&b, &group).len() > 1, "what came before is listed");
    assert_agree(&[&a, &b], &group);
}
