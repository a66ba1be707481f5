//! What a script relies on when something is wrong: inputs that are no texts, answers that cannot be printed, outcomes
//! that are unknown, wrong usage.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    fs::File,
    io::Write as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use client_cli::core::{
    outbox::{self, Outgoing},
    records::GroupName,
};
use e2e::{
    device::Device,
    programs::{Said, run, said},
};
use serde_json::{Value, json};
use support::{Fixture, head, read, texts};
use uuid::Uuid;

fn fed(command: &mut Command, input: &[u8]) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses early does not read to the end.
    let _closed = child.stdin.take().unwrap().write_all(input);
    said(&child.wait_with_output().unwrap())
}

fn into_full(device: &Device, words: &[&str]) -> Output {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command = device.command(words);
    let child = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap()
}

fn into_closed_pipe(device: &Device, words: &[&str]) -> Output {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = device.command(words);
    let child = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn an_answer_that_cannot_be_printed_is_said_with_what_was_done() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c"]);
    let (a, b, c) = (&devices[0], &devices[1], &devices[2]);
    let d = fixture.device("d");
    let claim = Uuid::new_v4().to_string();
    let g = group.as_str();
    let file = fixture.folder.path().join("lines");
    std::fs::write(&file, "one\ntwo\n").unwrap();
    let lines = file.to_str().unwrap();
    let waiting = Uuid::new_v4();
    keep(&fixture, a, g, waiting, b"unsent");
    let waiting = waiting.to_string();
    // Who, what, and the fields that a script needs of it; none where nothing changes.
    let table: &[(&Device, &[&str], &[&str])] = &[
        (a, &["outbox", "drop", &waiting], &[]),
        (
            a,
            &["send", "--group", g, "x"],
            &["message_id", "seq", "group"],
        ),
        (a, &["send", "--group", g, "--lines", lines], &[]),
        (a, &["keys", "publish", "--count", "1"], &[]),
        (a, &["group", "create"], &["message_id", "seq", "group"]),
        (
            a,
            &["group", "add", "--group", g, "--device", &d.uri],
            &["message_id", "seq"],
        ),
        (
            a,
            &["group", "update", "--group", g],
            &["message_id", "seq"],
        ),
        (
            a,
            &["group", "remove", "--group", g, "--device", &d.uri],
            &["message_id", "seq"],
        ),
        (c, &["group", "leave", "--group", g], &["seq", "group"]),
        (a, &["sync"], &[]),
        (a, &["debug", "claim", &b.uri, "--claim-id", &claim], &[]),
        (b, &["debug", "forget", "--group", g], &[]),
        (
            b,
            &["group", "rejoin", "--group", g],
            &["message_id", "seq"],
        ),
        (
            a,
            &["group", "replace", "--group", g],
            &["message_id", "seq"],
        ),
        (&d, &["revoke", &d.uri], &["seq"]),
    ];
    for (index, (device, words, fields)) in table.iter().enumerate() {
        let output = if index % 2 == 0 {
            into_full(device, words)
        } else {
            into_closed_pipe(device, words)
        };
        let said = said(&output);
        assert_eq!(said.code, 13, "{words:?}: {said:?}");
        let error = &said.error["error"];
        assert_eq!(error["reason"], "NOT_PRINTED", "{words:?}: {error}");
        assert_eq!(error["changed"], true, "{words:?}: {error}");
        assert!(error["answer"].is_object(), "{words:?}: {error}");
        for field in *fields {
            assert_eq!(error[field], error["answer"][field], "{words:?}: {error}");
            assert!(!error[field].is_null(), "{words:?}: no {field} in {error}");
        }
    }
    let silent: &[&[&str]] = &[
        &["whoami"],
        &["devices"],
        &["users", "search", "nobody"],
        &["keys", "stock"],
        &["group", "list"],
        &["group", "show", "--group", g],
        &["read", "--group", g],
        &["outbox", "list"],
        &["debug", "token"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ];
    for words in silent {
        let said = said(&into_full(a, words));
        assert_eq!(said.code, 13, "{words:?}: {said:?}");
        assert_eq!(said.error["error"]["changed"], false, "{words:?}");
    }
}

/// Keeps a message in a profile's outbox as if its command had ended before it was sent.
fn keep(fixture: &Fixture, device: &Device, group: &str, id: Uuid, text: &[u8]) {
    let name: GroupName = group.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let member = runtime.block_on(fixture.member(device));
    let kept = Outgoing::unframed(text);
    member
        .step(|step, _| Ok(outbox::put(step, &name, id.as_bytes(), &kept)?))
        .unwrap();
}

#[test]
fn what_is_no_text_is_refused_and_a_text_is_sent_as_it_is() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let a = &devices[0];
    let send = ["send", "--group", &group];
    let with = |more: &[&str]| a.command(&[&send[..], more].concat());
    let before = head(a, &group);
    let large = vec![b'x'; (1 << 20) + 1];
    let refused: &[(&[&str], &[u8], i32, &str)] = &[
        (&[], b"", 2, "EMPTY"),
        (&[], b"\xef\xbb\xbf", 2, "EMPTY"),
        (&[""], b"", 2, "EMPTY"),
        (&["--lines", "-"], b"\n \r\n\n", 2, "EMPTY"),
        (&[], b"caf\xe9 \xff\x00 end", 2, "NOT_UTF8"),
        (&[], b"\xff\xfeh\x00i\x00", 2, "NOT_UTF8"),
        (&["--lines", "-"], b"one\ncaf\xe9\n", 2, "NOT_UTF8"),
        (&["--lines", "/nowhere/at/all"], b"", 2, "INPUT_UNREADABLE"),
        (&[], &large, 11, "LIMIT_EXCEEDED"),
        (&["--lines", "-"], &large, 11, "LIMIT_EXCEEDED"),
        (
            &["--lines", "-", "--max-input-bytes", "3"],
            b"four",
            11,
            "LIMIT_EXCEEDED",
        ),
        (&["--max-input-bytes", "3"], b"four", 11, "LIMIT_EXCEEDED"),
    ];
    for (words, input, code, reason) in refused {
        let said = fed(&mut with(words), input);
        let what = format!("{words:?} {:?}: {said:?}", &input[..input.len().min(20)]);
        assert_eq!(said.code, *code, "{what}");
        assert_eq!(said.error["error"]["reason"], *reason, "{what}");
    }
    assert_eq!(a.run(&["outbox", "list"]).unwrap()["waiting"], json!([]));
    a.run(&["sync"]).unwrap();
    assert_eq!(head(a, &group), before, "nothing was said");
    let file = fixture.folder.path().join("from");
    std::fs::write(&file, format!("\u{feff}{}\r\n\r\n", devices[1].uri)).unwrap();
    let created = a.run(&["group", "create", "--from", file.to_str().unwrap()]);
    assert_eq!(created.unwrap()["added"], json!([devices[1].uri]));
    let taken: &[(&[&str], &[u8], &[&str])] = &[
        (&[], b"hi\n", &["hi\n"]),
        (&[], b"\xef\xbb\xbfhello", &["hello"]),
        (&["--allow-empty"], b"", &[""]),
        (
            &["--lines", "-"],
            b"\xef\xbb\xbfone\r\n\r\ntwo",
            &["one", "two"],
        ),
        (
            &["--lines", "-", "--allow-empty"],
            b"x\n\ny\n",
            &["x", "", "y"],
        ),
        (&["\u{202e}\u{9b}2J"], b"", &["\u{202e}\u{9b}2J"]),
    ];
    let mut expected: Vec<&str> = Vec::new();
    for (words, input, said) in taken {
        fed(&mut with(words), input).ok("send").unwrap();
        expected.extend(*said);
    }
    assert_eq!(texts(&devices[1], &group), expected);
    // The same text, and nothing that a terminal obeys.
    let output = a.command(&["read", "--group", &group]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("\\u202e\\u009b2J"));
    assert!(!printed.contains(['\u{202e}', '\u{9b}']));
}

#[test]
fn bytes_of_another_client_that_are_no_text_are_shown_unchanged() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let name: GroupName = group.parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let member = fixture.member(a).await;
        let bytes = b"caf\xe9 end".to_vec();
        member
            .send(&name, &[(member.new_id(), bytes)])
            .await
            .unwrap();
    });
    let entry = read(b, &group).pop().unwrap();
    assert_eq!(entry["text"], Value::Null);
    assert_eq!(entry["text_base64"], "Y2Fm6SBlbmQ=");
    let words = ["listen", "--from-start", "--until-text", "end"];
    let heard = b.run(&words).unwrap();
    assert_eq!(heard["text_base64"], "Y2Fm6SBlbmQ=");
    a.run(&["send", "--group", &group, "café"]).unwrap();
    let entry = read(b, &group).pop().unwrap();
    assert_eq!(
        (&entry["text"], &entry["text_base64"]),
        (&json!("café"), &Value::Null)
    );
}

#[test]
fn a_message_that_is_too_large_is_refused_at_once_and_an_old_one_is_taken_out() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let a = &devices[0];
    let begun = Instant::now();
    let endless = a
        .command(&["send", "--group", &group])
        .stdin(File::open("/dev/zero").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let said = said(&endless.wait_with_output().unwrap());
    assert_eq!(
        (said.code, &said.error["error"]["reason"]),
        (11, &json!("LIMIT_EXCEEDED")),
        "{said:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(30));
    // Up to the limit with its frame: the frame decides, and no key is used for it.
    let most = vec![b'x'; 1 << 20];
    let said = fed(&mut a.command(&["send", "--group", &group]), &most);
    assert_eq!(
        (said.code, &said.error["error"]["metadata"]["limit"]),
        (11, &json!("message_bytes")),
        "{said:?}"
    );
    assert_eq!(a.run(&["outbox", "list"]).unwrap()["waiting"], json!([]));
    // An item that an older program kept.
    let (id, small) = (Uuid::new_v4(), Uuid::new_v4());
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    })
    .take(12 << 20)
    .collect();
    keep(&fixture, a, &group, id, &noise);
    keep(&fixture, a, &group, small, b"after it");
    let listed = a.run(&["outbox", "list"]).unwrap();
    let stages: Vec<_> = listed["waiting"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| &w["stage"])
        .collect();
    assert!(
        stages.contains(&&json!("too_large")) && stages.contains(&&json!("unsent")),
        "{listed}"
    );
    let synced = a.run(&["sync"]).unwrap();
    let resolved = synced["resolved"].as_array().unwrap();
    let of = |id: Uuid| {
        resolved
            .iter()
            .find(|r| r["message_id"] == id.to_string())
            .unwrap()
    };
    assert_eq!(of(id)["refused"], "LIMIT_EXCEEDED", "{synced}");
    assert!(of(small)["seq"].is_number(), "{synced}");
    assert_eq!(texts(&devices[1], &group), ["after it"]);
    let store = fixture.folder.path().join("a").join("store.sqlite");
    let bytes = std::fs::metadata(store).unwrap().len();
    assert!(bytes < 8 << 20, "the store has {bytes} bytes");
}

#[test]
fn an_unknown_outcome_names_what_is_kept_and_is_not_said_twice() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let nowhere = |words: &[&str]| {
        let mut command = a.command(words);
        command.env("CHANCERY_DELIVERY_URL", "http://127.0.0.1:1");
        run(command.args(["--timeout-seconds", "1"])).unwrap()
    };
    let words = ["send", "--group", &group, "twice?"];
    let (first, second) = (nowhere(&words), nowhere(&words));
    for said in [&first, &second] {
        let error = &said.error["error"];
        assert_eq!((said.code, &error["kept"]), (4, &json!(true)), "{said:?}");
        assert!(error["hint"].as_str().unwrap().contains("sync"), "{error}");
        assert_eq!(error["message_id"], first.error["error"]["message_id"]);
    }
    let id = first.error["error"]["message_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let listed = a.run(&["outbox", "list"]).unwrap();
    assert_eq!(listed["waiting"][0]["message_id"], id.as_str());
    assert_eq!(listed["waiting"][0]["text"], "twice?");
    // All three documented ways, one after the other.
    let sent = a.run(&words).unwrap();
    assert_eq!(sent["message_id"], id.as_str());
    let again = a
        .run(&["send", "--group", &group, "--message-id", &id, "twice?"])
        .unwrap();
    assert_eq!(
        (&again["seq"], &again["replayed"]),
        (&sent["seq"], &json!(true))
    );
    a.run(&["sync"]).unwrap();
    assert_eq!(texts(b, &group), ["twice?"]);
    // What was answered may be said again.
    a.run(&words).unwrap();
    assert_eq!(texts(b, &group), ["twice?", "twice?"]);
    let other = a
        .attempt(&["send", "--group", &group, "--message-id", &id, "other"])
        .unwrap();
    assert_eq!(
        (other.code, &other.error["error"]["reason"]),
        (5, &json!("MESSAGE_ID_REUSED"))
    );
}

#[test]
fn a_message_is_taken_out_of_the_outbox_unless_it_may_have_been_accepted() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let (unsent, framed) = (Uuid::new_v4(), Uuid::new_v4().to_string());
    keep(&fixture, a, &group, unsent, b"never sent");
    let dropped = a.run(&["outbox", "drop", &unsent.to_string()]).unwrap();
    assert_eq!(dropped["dropped"]["stage"], "unsent");
    let send = [
        "send",
        "--group",
        &group,
        "--message-id",
        &framed,
        "it landed",
    ];
    // It is accepted, and the command ends before it knows.
    a.crash("after-send", &send).unwrap();
    let said = a.attempt(&["outbox", "drop", &framed]).unwrap();
    assert_eq!(
        (said.code, &said.error["error"]["reason"]),
        (5, &json!("MAY_BE_ACCEPTED"))
    );
    a.run(&["outbox", "drop", "--force", &framed]).unwrap();
    assert_eq!(a.run(&["outbox", "list"]).unwrap()["waiting"], json!([]));
    let none = a.attempt(&["outbox", "drop", &framed]).unwrap();
    assert_eq!(
        (none.code, &none.error["error"]["reason"]),
        (5, &json!("NOT_IN_OUTBOX"))
    );
    // It stands as this device's own, and the profile is not taken for a copy.
    let entry = read(a, &group).pop().unwrap();
    assert_eq!(
        (&entry["text"], &entry["own"]),
        (&json!("it landed"), &json!(true))
    );
    a.run(&["send", "--group", &group, "and it goes on"])
        .unwrap();
    assert_eq!(texts(b, &group), ["it landed", "and it goes on"]);
}

#[test]
fn every_failure_has_the_same_fields_bad_usage_too() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let a = &devices[0];
    let unknown = format!("{}/{}", support::DOMAIN, "00".repeat(32));
    let table: &[(&[&str], i32, &str)] = &[
        (&["nonsense"], 2, "USAGE"),
        (&[], 2, "USAGE"),
        (&["group"], 2, "USAGE"),
        (&["send", "--nonsense"], 2, "USAGE"),
        (&["send", "x"], 2, "USAGE"),
        (&["send", "--group", "not-a-group", "x"], 2, "USAGE"),
        (&["read", "--group", &group, "--after", "x"], 2, "USAGE"),
        (&["group", "add", "--group", &group], 2, "USAGE"),
        (
            &["group", "add", "--group", &group, "--device", "bob"],
            2,
            "USAGE",
        ),
        (&["group", "show", "--group", &unknown], 7, "GROUP"),
        (
            &[
                "group",
                "remove",
                "--group",
                &group,
                "--device",
                &devices[1].uri.replace(|c: char| c.is_ascii_digit(), "0"),
            ],
            5,
            "NOTHING_TO_DO",
        ),
        (&["users", "search", "x"], 10, "MALFORMED"),
    ];
    for (words, code, reason) in table {
        let said = a.attempt(words).unwrap();
        assert_eq!(said.code, *code, "{words:?}: {said:?}");
        let error = &said.error["error"];
        assert_eq!(error["reason"], *reason, "{words:?}: {error}");
        for field in [
            "exit",
            "code",
            "reason",
            "message",
            "metadata",
            "request_id",
        ] {
            assert!(
                error.get(field).is_some(),
                "{words:?}: no {field} in {error}"
            );
        }
    }
    // What the environment gives is not named as needed.
    let mut command = fixture.programs.command("client-cli");
    command.args(["send", "x"]);
    for name in ["AUTH_URL", "DELIVERY_URL", "TLS_CA", "PROFILE"] {
        command.env(format!("CHANCERY_{name}"), "http://x");
    }
    let said = run(&mut command).unwrap();
    assert_eq!(
        said.error["error"]["metadata"]["usage"],
        "client-cli send [OPTIONS] --group <GROUP> [TEXT]"
    );
    assert!(
        !said.error.to_string().contains("auth-url"),
        "{}",
        said.error
    );
}

#[test]
fn a_profile_is_one_device_for_ever() {
    let fixture = Fixture::start();
    let node = &fixture.server.node;
    let invite = |handle: &str| fixture.server.invite(0, handle, handle).unwrap();
    let enroll = |profile: &str, code: &str, more: &[&str]| {
        let mut command = fixture.programs.command("client-cli");
        command
            .arg("--profile")
            .arg(fixture.folder.path().join(profile));
        command
            .args(["enroll", "--invitation", code, "--root"])
            .arg(&node.auth[0].root_pem);
        command.args([
            "--auth-url",
            &node.auth[0].url,
            "--delivery-url",
            &node.delivery_url,
        ]);
        run(command.args(more)).unwrap()
    };
    let (alice, dave) = (invite("alice"), invite("dave"));
    let own = enroll("alice", &alice, &[]).ok("enroll").unwrap();
    let other_root = fixture.folder.path().join("other.pem");
    let made = rcgen::generate_simple_self_signed(vec!["other.example".into()]).unwrap();
    std::fs::write(&other_root, made.cert.pem()).unwrap();
    let refused: &[(&str, &[&str])] = &[
        (&dave, &[]),
        ("abc", &[]),
        (&alice, &["--domain", "other.example"]),
        (&alice, &["--delivery-domain", "other.example"]),
    ];
    for (code, more) in refused {
        let said = enroll("alice", code, more);
        let error = &said.error["error"];
        assert_eq!(
            (said.code, &error["reason"]),
            (5, &json!("ALREADY_ENROLLED")),
            "{more:?}: {said:?}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(own["device"].as_str().unwrap()),
            "{message}"
        );
    }
    let mut command = fixture.programs.command("client-cli");
    command
        .arg("--profile")
        .arg(fixture.folder.path().join("alice"));
    command
        .args(["enroll", "--invitation", &alice, "--root"])
        .arg(&other_root);
    command.args([
        "--auth-url",
        &node.auth[0].url,
        "--delivery-url",
        &node.delivery_url,
    ]);
    assert_eq!(run(&mut command).unwrap().code, 5);
    // Nothing was lost: the profile is who it was, the same enrolment may be repeated, the other invitation is unused.
    assert_eq!(enroll("alice", &alice, &[]).ok("again").unwrap(), own);
    assert_eq!(enroll("dave", &dave, &[]).code, 0);
    // A wrong code leaves nothing behind that stands in the way of the right one.
    assert_eq!(enroll("eve", "abc", &[]).code, 6);
    assert_eq!(enroll("eve", &invite("eve"), &[]).code, 0);
    // One whose answer was lost does.
    let frank = invite("frank");
    let mut command = fixture.programs.command("client-cli");
    command
        .arg("--profile")
        .arg(fixture.folder.path().join("frank"));
    command
        .args(["enroll", "--invitation", &frank, "--root"])
        .arg(&node.auth[0].root_pem);
    command.args([
        "--auth-url",
        &node.auth[0].url,
        "--delivery-url",
        &node.delivery_url,
    ]);
    assert_eq!(
        run(command.env("CHANCERY_FAULT", "enroll-after-key"))
            .unwrap()
            .code,
        86
    );
    assert_eq!(enroll("frank", &invite("gina"), &[]).code, 5);
    assert_eq!(enroll("frank", &frank, &[]).code, 0);
}
