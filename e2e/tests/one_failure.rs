//! One group's, one Welcome's, one message's failure ends nothing else.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use chancery_proto::policy::ExternalJoin;
use client_cli::{core::group::Founding, outcomes::Loop};
use e2e::{
    device::Device,
    programs::{Said, run},
};
use serde_json::Value;
use support::{Fixture, assert_agree, copy, read, show, texts};

fn say(device: &Device, group: &str, text: &str) {
    device.run(&["send", "--group", group, text]).unwrap();
}

fn state(device: &Device, group: &str) -> String {
    show(device, group)["state"].as_str().unwrap().to_owned()
}

fn id_of(group: &str) -> &str {
    group.split_once('/').unwrap().1
}

/// The lines that `listen` writes within a second.
fn listened(device: &Device) -> Vec<Value> {
    let mut command = device.command(&["listen", "--seconds", "2"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn a_welcome_that_can_never_be_used_is_put_aside_and_everything_else_arrives() {
    let fixture = Fixture::start();
    let (devices, old) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let stranger = fixture.device("stranger");
    let (_, bad) = stranger.create_group([b]).unwrap();
    let (_, good) = a.create_group([b]).unwrap();
    say(a, &old, "in the old group");
    say(a, &good, "in the good group");
    // A node that is no MLS node, of the kind that its first octets promise.
    let spoil = format!(
        "UPDATE tree_nodes SET node = '\\x0101ffffff' WHERE group_id = '\\x{}' AND node IS NOT NULL",
        id_of(&bad)
    );
    assert!(fixture.delivery_sql(&spoil) > 0);
    let synced = b.run(&["sync"]).unwrap();
    assert_eq!(synced["put_aside"][0]["group"], bad.as_str(), "{synced}");
    assert!(synced["put_aside"][0]["why"].is_string());
    assert_eq!(synced["joined"], serde_json::json!([good]));
    assert_eq!(texts(b, &old), ["in the old group"]);
    assert_eq!(texts(b, &good), ["in the good group"]);
    // It is acknowledged: nothing is tried again by it, and both the group and its journal say why.
    let waiting = b.run(&["debug", "welcomes"]).unwrap();
    assert_eq!(waiting["welcomes"], serde_json::json!([]), "{waiting}");
    assert_eq!(state(b, &bad), "needs_rejoin");
    let why = show(b, &bad)["why"].clone();
    assert!(why.as_str().unwrap().contains("its Welcome"), "{why}");
    let journal = b.run(&["read", "--no-sync", "--group", &bad]).unwrap();
    assert_eq!(journal["entries"][0]["skipped"], why);
    // And it stays so, without an end of anything.
    say(a, &good, "and on");
    let again = b.run(&["sync"]).unwrap();
    assert_eq!(again["put_aside"], serde_json::json!([]));
    let seen = listened(b);
    assert!(seen.iter().any(|line| line["event"] == "caught_up"));
}

/// Removes a device and adds it again, as a person does who wants to help it; what was said after that.
fn add_again(helper: &Device, device: &Device, group: &str) {
    for what in ["remove", "add"] {
        let words = ["group", what, "--group", group, "--device", &device.uri];
        helper.run(&words).unwrap();
    }
    for text in ["one", "two", "three"] {
        say(helper, group, text);
    }
}

/// The device is in by its Welcome, has read everything since, and cost nobody an epoch.
fn assert_in_by_welcome(device: &Device, helper: &Device, group: &str, synced: &Value) {
    assert_eq!(synced["joined"], serde_json::json!([group]), "{synced}");
    assert_eq!(show(device, group)["rejoined_seq"], 0);
    let heard = texts(device, group);
    assert!(
        heard.ends_with(&["one".into(), "two".into(), "three".into()]),
        "{heard:?}"
    );
    assert_agree(&[device, helper], group);
}

#[test]
fn a_device_with_a_return_under_way_uses_the_welcome_of_a_later_membership() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    b.crash("before-send", &["group", "rejoin", "--group", &group])
        .unwrap();
    add_again(a, b, &group);
    let synced = b.run(&["sync"]).unwrap();
    assert_in_by_welcome(b, a, &group, &synced);
    // Once more, with a `sync` in between that found the removal: the group is named once.
    for what in ["remove", "add", "remove", "add"] {
        let words = ["group", what, "--group", &group, "--device", &b.uri];
        a.run(&words).unwrap();
    }
    let synced = b.run(&["sync"]).unwrap();
    assert_eq!(synced["joined"], serde_json::json!([group]), "{synced}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_profile_is_helped_by_its_welcome_whatever_the_policy_allows() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    for external_join in [ExternalJoin::Resync, ExternalJoin::None] {
        let member = fixture.member(&a).await;
        let founding = Founding {
            external_join,
            ..Founding::default()
        };
        let created = member.create_group(founding, None).await.unwrap();
        drop(member);
        let group = created.group.to_string();
        a.run(&["group", "add", "--group", &group, "--device", &b.uri])
            .unwrap();
        b.run(&["sync"]).unwrap();
        let profile = fixture.folder.path().join("b");
        let backup = fixture.folder.path().join("backup of b");
        copy(&profile, &backup);
        say(&b, &group, "lost with the disk");
        std::fs::remove_dir_all(&profile).unwrap();
        std::fs::rename(&backup, &profile).unwrap();
        // It reads that it has a copy, and ends before it comes back.
        b.crash("after-merge", &["sync"]).unwrap();
        assert_eq!(state(&b, &group), "needs_rejoin");
        add_again(&a, &b, &group);
        let synced = b.run(&["sync"]).unwrap();
        assert_in_by_welcome(&b, &a, &group, &synced);
    }
}

#[test]
fn a_kept_commit_that_is_refused_settles_its_group_and_the_others_go_on() {
    let fixture = Fixture::start();
    let (devices, first) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let groups: Vec<String> = (0..4).map(|_| a.create_group([b]).unwrap().1).collect();
    b.run(&["sync"]).unwrap();
    let groups: Vec<&String> = std::iter::once(&first).chain(&groups).collect();
    for (place, group) in groups.iter().enumerate() {
        if place % 2 == 0 {
            b.crash("before-send", &["group", "update", "--group", group])
                .unwrap();
            let words = ["group", "remove", "--group", group, "--device", &b.uri];
            a.run(&words).unwrap();
        } else {
            say(a, group, "you are still here");
        }
    }
    let (_, new) = a.create_group([b]).unwrap();
    let synced = b.run(&["sync"]).unwrap();
    assert_eq!(synced["joined"], serde_json::json!([new]));
    assert_eq!(synced["resolved"].as_array().unwrap().len(), 3, "{synced}");
    for resolved in synced["resolved"].as_array().unwrap() {
        assert_eq!(resolved["seq"], Value::Null, "refused");
    }
    for (place, group) in groups.iter().enumerate() {
        let lives = place % 2 == 1;
        assert_eq!(state(b, group), if lives { "active" } else { "removed" });
        if lives {
            let journal = b.run(&["read", "--no-sync", "--group", group]).unwrap();
            assert!(journal.to_string().contains("you are still here"));
        }
    }
}

#[test]
fn a_group_that_a_restored_server_does_not_know_is_stopped_alone() {
    let mut fixture = Fixture::start();
    let (devices, old) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    for device in [a, b] {
        device.run(&["sync"]).unwrap();
    }
    let backup = fixture.back_up();
    let (_, lost) = a.create_group([b]).unwrap();
    say(a, &lost, "acknowledged");
    b.run(&["sync"]).unwrap();
    let before = fixture.key_packages(b);
    fixture.restore(&backup);
    fixture.delivery_sql("UPDATE service_state SET incarnation = gen_random_uuid()");
    say(a, &old, "after the restore");
    // By `listen` here, by `sync` there.
    let seen = listened(a);
    let told = |event: &str| seen.iter().any(|line| line["event"] == event);
    assert!(told("history_changed") && told("server_restored") && told("caught_up"));
    assert_eq!(
        (state(a, &lost), state(a, &old)),
        ("history_changed".into(), "active".into())
    );
    let said = b.attempt(&["sync"]).unwrap();
    assert_eq!(said.code, 8, "{said:?}");
    assert_eq!(said.error["error"]["reason"], "HISTORY_CHANGED");
    assert_eq!(said.answer["failed"][0]["item"], lost.as_str(), "{said:?}");
    assert_eq!(said.answer["server_restored"], true);
    assert_eq!(state(b, &lost), "history_changed");
    // The other group was read in the same run, and the next one has nothing to complain of.
    let journal = b.run(&["read", "--no-sync", "--group", &old]).unwrap();
    assert!(journal.to_string().contains("after the restore"));
    let again = b.run(&["sync"]).unwrap();
    assert_eq!(
        (&again["server_restored"], &again["failed"]),
        (&false.into(), &Value::from(Vec::<Value>::new()))
    );
    // No KeyPackage that was there before is given away any more.
    let after = fixture.key_packages(b);
    assert!(after.iter().all(|reference| !before.contains(reference)));
    assert!(after.len() > 20, "{}", after.len());
    let (_, new) = a.create_group([b]).unwrap();
    b.run(&["sync"]).unwrap();
    assert_agree(&[a, b], &new);
}

/// Breaks the first item of one loop of a command.
fn broken(device: &Device, walk: Loop, words: &[&str]) -> Said {
    let mut command = device.command(words);
    run(command.env("CHANCERY_FAULT_ITEM", walk.name())).unwrap()
}

/// What there is to do for each loop, with more than one item; and the command that walks it.
#[test]
fn whichever_item_fails_the_others_are_done() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.device("a"), fixture.device("b"));
    let group = || a.create_group([&b]).unwrap().1;
    for walk in Loop::ALL {
        let (first, second) = (group(), group());
        if walk != Loop::Welcomes {
            b.run(&["sync"]).unwrap();
        }
        let mut words = vec!["sync"];
        match walk {
            Loop::Groups | Loop::Welcomes => {}
            Loop::LostGroups => {
                for group in [&first, &second] {
                    b.run(&["debug", "forget", "--group", group]).unwrap();
                }
            }
            Loop::Unsent => {
                for text in ["one", "two"] {
                    b.crash("before-send", &["send", "--group", &first, text])
                        .unwrap();
                }
            }
            Loop::Replacements => {
                for group in [&first, &second] {
                    let words = ["group", "replace", "--group", group];
                    b.crash("between-create-and-add", &words).unwrap();
                }
            }
            Loop::LeftOut => {
                let c = fixture.device(&format!("c{}", uuid::Uuid::new_v4()));
                fixture.drop_key_packages(&c);
                for group in [&first, &second] {
                    b.attempt(&["group", "add", "--group", group, "--device", &c.uri])
                        .unwrap();
                }
                c.run(&["sync"]).unwrap();
            }
            Loop::Frames => words = vec!["listen", "--seconds", "2"],
            Loop::Mending => {
                let profile = fixture.folder.path().join("b");
                let backup = fixture.folder.path().join("backup of b");
                copy(&profile, &backup);
                for group in [&first, &second] {
                    say(&b, group, "lost with the disk");
                }
                std::fs::remove_dir_all(&profile).unwrap();
                std::fs::rename(&backup, &profile).unwrap();
                words = vec!["listen", "--seconds", "6"];
            }
            // They take hundreds of devices, or a Commit that is taken back; the helper that they share with the others has tests of its own.
            // `roots.rs` has the roots.
            Loop::SaidAgain | Loop::Added | Loop::Roots => continue,
        }
        for group in [&first, &second] {
            if walk != Loop::Replacements {
                say(&a, group, "heard");
            }
        }
        let said = broken(&b, walk, &words);
        assert!([0, 10].contains(&said.code), "{walk:?}: {said:?}");
        if !matches!(walk, Loop::Frames | Loop::Mending) {
            let failed = said.answer["failed"].as_array().unwrap();
            assert_eq!(failed.len(), 1, "{walk:?}: {said:?}");
            assert_eq!(failed[0]["of"], walk.name(), "{walk:?}");
        }
        // The others were done in the same run, and the broken one is done in the next.
        let done = |what: &str| match walk {
            Loop::Unsent => texts_of(&a, &first),
            Loop::Replacements => [&first, &second]
                .iter()
                .filter(|group| show(&a, group)["state"] == "replaced")
                .count(),
            Loop::Mending => [&first, &second]
                .iter()
                .filter(|group| {
                    let shown = show(&b, group);
                    shown["state"] == "active" && shown["rejoined_seq"] != 0
                })
                .count(),
            Loop::LeftOut => [&first, &second]
                .iter()
                .filter(|group| show(&b, group)["left_out"] == serde_json::json!([]))
                .count(),
            _ => [&first, &second]
                .iter()
                .filter(|group| {
                    let words = ["read", "--no-sync", "--group", group];
                    let journal = b.attempt(&words).unwrap().answer.to_string();
                    journal.contains(what)
                        || (walk == Loop::LostGroups && journal.contains("external_commit"))
                })
                .count(),
        };
        a.run(&["sync"]).unwrap();
        assert!(done("heard") >= 1, "{walk:?}: the others");
        b.run(&["sync"]).unwrap();
        a.run(&["sync"]).unwrap();
        assert_eq!(done("heard"), 2, "{walk:?}: all");
    }
}

/// How many of the two texts arrived.
fn texts_of(reader: &Device, group: &str) -> usize {
    let entries = read(reader, group);
    let mine = |text: &Value| text == "one" || text == "two";
    entries.iter().filter(|entry| mine(&entry["text"])).count()
}
