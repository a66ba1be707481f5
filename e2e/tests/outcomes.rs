//! Answers that are lost, histories that change, revocations, poison, devices that cannot be added.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chancery_proto::{
    commit_info::MessageData, delivery::v1::SendMessageRequest, wire::Write as _,
};
use client_cli::core::records::GroupName;
use e2e::programs::said;
use support::{Fixture, assert_agree, head, read, show, texts};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// A way to the server whose first connection swallows every answer until it is cut; later connections work.
struct Tunnel {
    url: String,
    cut: Arc<AtomicBool>,
}

impl Tunnel {
    fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = server.strip_prefix("http://").unwrap().to_owned();
        let cut = Arc::new(AtomicBool::new(false));
        let first = cut.clone();
        std::thread::spawn(move || {
            let mut swallow = Some(first);
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(upstream) = TcpStream::connect(&server) else {
                    return;
                };
                forward(&client, &upstream, None);
                forward(&upstream, &client, swallow.take());
            }
        });
        Self { url, cut }
    }
}

/// Copies one direction; with a flag, swallows instead, and ends both directions when the flag is raised.
fn forward(from: &TcpStream, to: &TcpStream, swallow: Option<Arc<AtomicBool>>) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    from.set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 16_384];
        loop {
            if swallow
                .as_ref()
                .is_some_and(|cut| cut.load(Ordering::SeqCst))
            {
                break;
            }
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) if swallow.is_some() => {}
                Ok(count) => {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => break,
            }
        }
        let _gone = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    });
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
    }
}

/// Field lesson: the first attempt landed and its answer was lost; the repeat must get the first answer, not a conflict.
#[test]
fn an_accepted_request_whose_answer_is_lost_counts_once() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let id = Uuid::new_v4().to_string();
    for words in [
        vec![
            "send",
            "--group",
            &group,
            "--message-id",
            &id,
            "did it land?",
        ],
        vec!["group", "update", "--group", &group],
    ] {
        a.run(&["sync"]).unwrap();
        let before = head(a, &group);
        // Made and kept: the first thing that the next command sends is this, and nothing else.
        a.crash("before-send", &words).unwrap();
        let tunnel = Tunnel::to(&fixture.server.node.delivery_url);
        let mut command = a.command(&words);
        command.env("CHANCERY_DELIVERY_URL", &tunnel.url);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        until("it does not land", || {
            b.run(&["sync"]).unwrap();
            head(b, &group) > before
        });
        tunnel.cut.store(true, Ordering::SeqCst);
        let answer = said(&child.wait_with_output().unwrap())
            .ok("the command")
            .unwrap();
        assert_eq!(answer["seq"], before + 1, "{answer}");
        assert_eq!(answer["replayed"], true, "{answer}");
        assert!(answer["unknown_outcomes"].as_u64() > Some(0), "{answer}");
        assert_agree(&[a, b], &group);
        assert_eq!(head(b, &group), before + 1, "it stands once");
    }
}

#[test]
fn a_message_that_was_answered_is_answered_again_as_a_repeat() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let id = Uuid::new_v4().to_string();
    let words = ["send", "--group", &group, "--message-id", &id, "once"];
    let (first, again) = (a.run(&words).unwrap(), a.run(&words).unwrap());
    assert_eq!(first["replayed"], false, "{first}");
    assert_eq!(again["replayed"], true, "{again}");
    assert_eq!(first["seq"], again["seq"]);
    assert_eq!(texts(b, &group), ["once"]);
}

#[test]
fn after_an_older_database_was_restored_every_client_says_so_and_none_diverges() {
    let mut fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c"]);
    let (a, b, c) = (&devices[0], &devices[1], &devices[2]);
    a.run(&["send", "--group", &group, "before the backup"])
        .unwrap();
    b.run(&["sync"]).unwrap();
    let backup = fixture.back_up();
    a.run(&["send", "--group", &group, "lost with the disk"])
        .unwrap();
    b.run(&["sync"]).unwrap();
    fixture.restore(&backup);
    // Somebody who saw nothing of it writes on: the log now has another seq of the same number.
    c.run(&["send", "--group", &group, "after the restore"])
        .unwrap();
    for device in [a, b] {
        let said = device.attempt(&["sync"]).unwrap();
        assert_eq!(said.code, 8, "{said:?}");
        assert_eq!(said.error["error"]["reason"], "HISTORY_CHANGED");
        assert_eq!(show(device, &group)["state"], "history_changed");
        // And it stays so: nothing is sent to that group.
        let said = device.attempt(&["send", "--group", &group, "no"]).unwrap();
        assert_eq!(said.code, 8, "{said:?}");
    }
    assert_eq!(texts(c, &group), ["before the backup", "after the restore"]);
}

#[test]
fn a_revoked_device_is_refused_by_both_services_and_its_stream_ends() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let mut listening = b.command(&["listen"]);
    let listening = listening
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut revoke = fixture.server.operator(0, &["devices", "revoke", &b.uri]);
    assert!(revoke.stdout(Stdio::null()).status().unwrap().success());
    // The feed is followed: the Delivery Service knows soon, whatever tokens are still good.
    until("the Delivery Service does not hear of it", || {
        let answer = b.run(&["debug", "read-log", "--group", &group]).unwrap();
        answer["reason"] == "DEVICE_REVOKED"
    });
    let ended = said(&listening.wait_with_output().unwrap());
    assert_eq!(ended.code, 6, "{ended:?}");
    assert_eq!(ended.error["error"]["reason"], "DEVICE_REVOKED");
    let said = b.attempt(&["send", "--group", &group, "no"]).unwrap();
    assert_eq!(said.code, 6, "{said:?}");
    assert_eq!(b.attempt(&["devices"]).unwrap().code, 6);
    // Nobody gets a KeyPackage of it any more.
    let created = a.run(&["group", "create", "--device", &b.uri]).unwrap();
    assert_eq!(created["left_out"][0]["why"], "revoked", "{created}");
}

/// Field lesson: roster and tree disagree after a partial failure.
#[test]
fn devices_that_cannot_be_added_are_named_and_the_others_join() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let c = fixture.device("c");
    let nobody = format!("mimi://{}/d/{}", support::DOMAIN, Uuid::new_v4());
    let words = ["group", "add", "--group", &group, "--device", &c.uri];
    let done = a
        .run(&[&words[..], &["--device", &nobody]].concat())
        .unwrap();
    assert_eq!(done["added"], serde_json::json!([c.uri]));
    assert_eq!(done["left_out"][0]["device"], nobody.as_str());
    assert_eq!(done["left_out"][0]["why"], "unknown");
    c.run(&["sync"]).unwrap();
    assert_agree(&[a, b, &c], &group);
    assert_eq!(show(a, &group)["members"].as_array().unwrap().len(), 3);
    // All at once unknown: nothing happens, and it is said why.
    let before = head(a, &group);
    let said = a
        .attempt(&["group", "add", "--group", &group, "--device", &nobody])
        .unwrap();
    assert_eq!(said.code, 5, "{said:?}");
    a.run(&["sync"]).unwrap();
    assert_eq!(head(a, &group), before);
}

#[test]
fn a_member_that_asks_to_leave_is_removed_by_the_next_commit() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b", "c"]);
    let (a, b, c) = (&devices[0], &devices[1], &devices[2]);
    let leave = ["group", "leave", "--group", &group];
    let first = b.run(&leave).unwrap();
    // Asking again changes nothing.
    assert_eq!(b.run(&leave).unwrap()["seq"], first["seq"]);
    a.run(&["sync"]).unwrap();
    assert_eq!(show(a, &group)["leaving"], serde_json::json!([b.uri]));
    // Whoever asked says nothing more, and is removed before anybody else speaks.
    let said = b.run(&["send", "--group", &group, "one last word"]);
    assert!(said.is_err(), "{said:?}");
    assert_eq!(show(b, &group)["state"], "leaving");
    a.run(&["send", "--group", &group, "goodbye"]).unwrap();
    b.run(&["sync"]).unwrap();
    assert_eq!(show(b, &group)["state"], "removed");
    assert_agree(&[a, c], &group);
    assert_eq!(show(c, &group)["leaving"], serde_json::json!([]));
}

/// What the server takes for a message, and nobody can open.
fn poison(group: &GroupName, epoch: u64, epoch_seq: u64) -> SendMessageRequest {
    let id = Uuid::new_v4();
    let data = MessageData {
        message_id: Some(*id.as_bytes()),
        commit_info: None,
    };
    let mut bytes = vec![0, 1, 0, 2];
    bytes.put_vector(&group.id);
    bytes.put(&epoch.to_be_bytes());
    bytes.put(&[1]);
    bytes.put_vector(&data.encode());
    bytes.put_vector(&[7; 28]);
    bytes.put_vector(&[8; 80]);
    SendMessageRequest {
        group: Some(group.to_ref()),
        message_id: id.as_bytes().to_vec().into(),
        message: bytes.into(),
        epoch_seq,
        ..SendMessageRequest::default()
    }
}

/// Field lesson: a poison entry pins the cursor.
#[tokio::test(flavor = "multi_thread")]
async fn entries_that_nobody_can_open_are_passed_over_and_written_down() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let name: GroupName = group.parse().unwrap();
    let sender = fixture.member(a).await;
    let record = sender.record(&name).unwrap();
    for _ in 0..50 {
        let request = poison(&name, record.epoch, record.epoch_seq);
        sender
            .delivery(request, async |mut client, request| {
                client.send_message(request).await
            })
            .await
            .unwrap();
    }
    drop(sender);
    a.run(&["send", "--group", &group, "after the poison"])
        .unwrap();
    let entries = read(b, &group);
    let skipped = entries.iter().filter(|e| e["skipped"].is_string()).count();
    assert_eq!((skipped, entries.len()), (50, 51));
    assert_eq!(texts(b, &group), ["after the poison"]);
    // Started again and again, it fetches nothing twice.
    for _ in 0..3 {
        assert_eq!(b.run(&["sync"]).unwrap()["entries"], 0);
    }
    assert_agree(&[a, b], &group);
}

/// Field lesson: a full subscriber buffer drops silently.
#[test]
fn a_slow_follower_misses_nothing_and_a_send_beside_it_works() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let lines: Vec<String> = (0..300).map(|n| format!("line {n}")).collect();
    let file = fixture.folder.path().join("lines");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let mut listening = b.command(&["listen", "--until-text", "the end"]);
    let mut child = listening.stdout(Stdio::piped()).spawn().unwrap();
    // Its pipe fills up: it stops reading from the server until somebody reads from it.
    let mut send = a.command(&["send", "--group", &group, "--lines"]);
    send.arg(&file);
    assert!(send.stdout(Stdio::null()).status().unwrap().success());
    b.run(&["send", "--group", &group, "beside the listener"])
        .unwrap();
    a.run(&["send", "--group", &group, "the end"]).unwrap();
    let mut output = String::new();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_to_string(&mut output).unwrap();
    assert!(child.wait().unwrap().success());
    // Every entry is told once, by the follower or by the command beside it.
    let mut seen: Vec<u64> = output
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["event"] == "entry")
        .map(|line| line["seq"].as_u64().unwrap())
        .collect();
    let told = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), told, "nothing is told twice");
    assert!(seen.is_sorted());
    let mut expected = lines;
    expected.push("beside the listener".into());
    expected.push("the end".into());
    assert_eq!(texts(b, &group), expected);
}
