//! `listen` beside other commands of the same profile: it prints everything once, in order, whichever process read it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use e2e::device::Device;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{Fixture, head, read};

const PATIENCE: Duration = Duration::from_secs(60);

/// A running `listen`, whose lines go into a file; killed with the value.
struct Listener {
    child: Child,
    file: PathBuf,
}

impl Listener {
    fn start(device: &Device, folder: &Path, name: &str, words: &[&str]) -> Self {
        let file = folder.join(name);
        let mut command = device.command(&["listen"]);
        command
            .args(words)
            .stdout(Stdio::from(File::create(&file).unwrap()))
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let listener = Self { child, file };
        listener.until("caught up", |lines| {
            lines.iter().any(|line| line["event"] == "caught_up")
        });
        listener
    }

    /// Whole lines so far; one that a kill cut off was never said.
    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let lines = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        lines.collect()
    }

    /// The seqs of the entries of a group.
    fn seqs(&self, group: &str) -> Vec<u64> {
        let lines = self.lines();
        let entries = lines
            .iter()
            .filter(|line| line["event"] == "entry" && line["group"] == group);
        entries.map(|line| line["seq"].as_u64().unwrap()).collect()
    }

    fn until(&self, what: &str, holds: impl Fn(&[Value]) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(&self.lines()) {
            assert!(Instant::now() < end, "{what}: {:#?}", self.lines());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn until_seq(&self, group: &str, seq: u64) {
        self.until(&format!("seq {seq}"), |lines| {
            lines
                .iter()
                .any(|line| line["group"] == group && line["seq"] == seq)
        });
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _gone = (self.child.kill(), self.child.wait());
    }
}

fn say(device: &Device, group: &str, text: &str) -> u64 {
    let sent = device.run(&["send", "--group", group, text]).unwrap();
    sent["seq"].as_u64().unwrap()
}

fn dense(from: u64, to: u64) -> Vec<u64> {
    (from..=to).collect()
}

#[test]
fn a_listener_that_was_stopped_prints_what_another_command_read_meanwhile() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let listener = Listener::start(b, fixture.folder.path(), "lines", &[]);
    let before = head(b, &group);
    // Each of them reads what is new before the listener can.
    let beside = tokio::runtime::Runtime::new().unwrap();
    let beside = beside.block_on(fixture.member(b));
    let besides: [&[&str]; 4] = [
        &["sync"],
        &["read", "--group", &group],
        &["send", "--group", &group, "from b"],
        &["group", "update", "--group", &group],
    ];
    for words in besides {
        // In a step of somebody else's: a process that is stopped in a step of its own keeps everybody out.
        let stopped = beside.step(|_, _| {
            listener.signal(Signal::STOP);
            Ok(())
        });
        stopped.unwrap();
        let seq = say(a, &group, "while it was stopped");
        b.run(words).unwrap();
        listener.signal(Signal::CONT);
        listener.until_seq(&group, seq);
    }
    let last = say(a, &group, "the last one");
    listener.until_seq(&group, last);
    assert_eq!(listener.seqs(&group), dense(before + 1, last));
}

#[test]
fn twenty_rounds_beside_sends_and_syncs_leave_nothing_out_and_repeat_nothing() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let listener = Listener::start(b, fixture.folder.path(), "lines", &[]);
    let before = head(b, &group);
    for round in 0..20 {
        let (from_a, from_b) = (format!("a{round}"), format!("b{round}"));
        let mut running: Vec<Child> = [
            a.command(&["send", "--group", &group, &from_a]),
            b.command(&["send", "--group", &group, &from_b]),
            b.command(&["sync"]),
        ]
        .iter_mut()
        .map(|command| {
            command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
        for child in &mut running {
            assert!(child.wait().unwrap().success(), "round {round}");
        }
    }
    let last = say(a, &group, "the last one");
    listener.until_seq(&group, last);
    assert_eq!(listener.seqs(&group), dense(before + 1, last));
}

#[test]
fn a_consumer_that_was_killed_goes_on_where_its_lines_ended() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let folder = fixture.folder.path();
    let words = ["--consumer", "bot"];
    let mut first = Listener::start(b, folder, "first", &words);
    let before = head(b, &group);
    for n in 0..5 {
        first.until_seq(&group, say(a, &group, &format!("heard {n}")));
    }
    say(a, &group, "perhaps heard");
    first.kill();
    let heard = first.seqs(&group);
    assert!(heard.len() >= 5, "{heard:?}");
    // Nobody listens; other commands read, a group comes.
    say(a, &group, "missed");
    b.run(&["sync"]).unwrap();
    let (_, other) = a.create_group([b]).unwrap();
    b.run(&["sync"]).unwrap();
    let in_other = say(a, &other, "in a group that it has not heard of");
    b.run(&["sync"]).unwrap();
    let second = Listener::start(b, folder, "second", &words);
    let last = say(a, &group, "the last one");
    second.until_seq(&group, last);
    second.until_seq(&other, in_other);
    let again = second.seqs(&group);
    // At least once: what was printed and not yet noted comes again, nothing is left out.
    assert!(*again.first().unwrap() <= heard.last().unwrap() + 1);
    let mut all = [heard, again].concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all, dense(before + 1, last));
    // Another name is another consumer.
    let third = Listener::start(b, folder, "third", &["--consumer", "other"]);
    assert_eq!(third.seqs(&group), Vec::<u64>::new());
}

#[test]
fn a_line_that_was_not_written_comes_again() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    let folder = fixture.folder.path();
    Listener::start(b, folder, "begun", &["--consumer", "bot"]).kill();
    let seq = say(a, &group, "onto a full disk");
    let mut command = b.command(&["listen", "--consumer", "bot", "--seconds", "60"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = command.stdout(full).stderr(Stdio::piped());
    let output = output.spawn().unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(13));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("NOT_PRINTED")
    );
    let listener = Listener::start(b, folder, "lines", &["--consumer", "bot"]);
    assert_eq!(listener.seqs(&group), [seq]);
}

#[test]
fn a_listener_begins_where_it_is_told_to() {
    let fixture = Fixture::start();
    let (devices, group) = fixture.group(&["a", "b"]);
    let (a, b) = (&devices[0], &devices[1]);
    for n in 0..3 {
        say(a, &group, &format!("{n}"));
    }
    let journal = read(b, &group);
    let seqs: Vec<u64> = journal.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    let last = *seqs.last().unwrap();
    let after = (last - 1).to_string();
    let table: [(&[&str], &[u64]); 6] = [
        (&[], &[]),
        (&["--from-start"], &seqs),
        (&["--after", &after, "--group", &group], &[last]),
        (&["--consumer", "x", "--from-start"], &seqs),
        // A name that is known goes on where it was, whatever is said.
        (&["--consumer", "x", "--from-start"], &[]),
        (&["--consumer", "y"], &[]),
    ];
    for (index, (words, expected)) in table.iter().enumerate() {
        let name = format!("lines{index}");
        let listener = Listener::start(b, fixture.folder.path(), &name, words);
        assert_eq!(listener.seqs(&group), *expected, "{words:?}");
    }
    for words in [
        &["listen", "--after", "1"][..],
        &["listen", "--after", "1", "--from-start", "--group", &group],
        &["listen", "--consumer", "no spaces"],
    ] {
        assert_eq!(b.attempt(words).unwrap().code, 2, "{words:?}");
    }
}
