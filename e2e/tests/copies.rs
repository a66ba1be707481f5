//! Profiles that were copied: restored from an old backup, or run twice. No key is used a second time, and whoever runs them is told.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use e2e::device::Device;
use support::{Fixture, assert_agree, copy, read, show, texts};

fn say(device: &Device, group: &str, text: &str) -> serde_json::Value {
    device.run(&["send", "--group", group, text]).unwrap()
}

/// Field lesson: a restored old copy reuses keys and nonces.
#[test]
fn a_restored_old_profile_comes_back_before_it_speaks() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    say(a, &group, "before the backup");
    let profile = fixture.folder.path().join("a");
    let backup = fixture.folder.path().join("backup");
    copy(&profile, &backup);
    let old: Vec<_> = (0..5)
        .map(|n| say(a, &group, &format!("lost {n}")))
        .collect();
    std::fs::remove_dir_all(&profile).unwrap();
    copy(&backup, &profile);
    // The same epoch, and its state would use the keys of "lost 0" again.
    let sent = say(a, &group, "after the restore");
    assert!(
        sent["epoch_seq"].as_u64() > old[4]["seq"].as_u64(),
        "{sent}"
    );
    let state = show(a, &group);
    assert!(state["rejoined_seq"].as_u64() > old[4]["seq"].as_u64());
    assert_eq!(state["copies"], 1);
    let skipped = read(a, &group);
    let told = skipped.iter().filter(|entry| {
        let why = entry["skipped"].as_str().unwrap_or_default();
        why == "another copy of this profile wrote it"
    });
    assert_eq!(told.count(), 1, "it says why");
    let mut expected = vec!["before the backup".to_owned()];
    expected.extend((0..5).map(|n| format!("lost {n}")));
    expected.push("after the restore".into());
    assert_eq!(
        texts(b, &group),
        expected,
        "every message once, and readable"
    );
    assert_agree(&[a, b], &group);
}

#[test]
fn a_restored_profile_with_a_commit_under_way_learns_what_became_of_it() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    a.crash("before-send", &["group", "update", "--group", &group])
        .unwrap();
    let profile = fixture.folder.path().join("a");
    let backup = fixture.folder.path().join("backup");
    copy(&profile, &backup);
    let first = a.run(&["sync"]).unwrap();
    let seq = first["resolved"][0]["seq"].clone();
    say(a, &group, "in the new epoch");
    std::fs::remove_dir_all(&profile).unwrap();
    copy(&backup, &profile);
    let again = a.run(&["sync"]).unwrap();
    assert_eq!(again["resolved"][0]["seq"], seq, "{again}");
    say(a, &group, "and on");
    assert_eq!(texts(b, &group), ["in the new epoch", "and on"]);
    assert_agree(&[a, b], &group);
}

#[test]
fn a_profile_that_runs_twice_is_noticed_by_both_and_does_not_fight_itself() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let twin_folder = fixture.folder.path().join("twin");
    copy(&fixture.folder.path().join("a"), &twin_folder);
    let twin = a.with_profile(&twin_folder);
    say(a, &group, "from the first");
    // The twin sees a message of its own that it did not write: it comes back, and speaks.
    say(&twin, &group, "from the twin");
    // The first one was pushed out by its own key: told, and back once.
    say(a, &group, "from the first again");
    assert_eq!(show(a, &group)["copies"], 1);
    // The second time it is a matter for a person.
    let said = twin.attempt(&["send", "--group", &group, "no"]).unwrap();
    assert_eq!(said.code, 12, "{said:?}");
    let state = show(&twin, &group);
    assert_eq!(
        (&state["copies"], &state["state"]),
        (&2.into(), &"needs_rejoin".into())
    );
    assert!(state["why"].as_str().unwrap().contains("another copy"));
    assert_eq!(
        texts(b, &group),
        ["from the first", "from the twin", "from the first again"]
    );
    assert_agree(&[a, b], &group);
}
