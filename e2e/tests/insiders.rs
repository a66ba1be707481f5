//! Members that lie: in each case the honest ones talk again without an operator, whoever lied is named, and nobody who was right is rolled back.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "support/insider.rs"]
mod insider;
mod support;

use std::time::{Duration, Instant};

use chancery_proto::delivery::v1::{ClaimKeyPackagesRequest, EntryKind, GetGroupInfoRequest};
use client_cli::{
    core::{
        group,
        records::{self, GroupName, GroupState, JournalEntry, Person},
    },
    member::Member,
};
use insider::{Insider, Plan, new_id, spoil_welcome};
use support::Fixture;

/// A void comes after this many seconds of nothing but failures.
const OPTIONS: &[(&str, &str)] = &[("CHANCERY_DS_VOID_AFTER_SECONDS", "2")];

struct Story {
    fixture: Fixture,
    name: GroupName,
    insider: Insider,
    honest: Vec<Member>,
}

impl Story {
    /// A settled group of the insider and so many honest members, each of another user.
    async fn new(honest: usize) -> Self {
        let fixture = Fixture::start_with(OPTIONS);
        let names: Vec<String> = (0..=honest).map(|n| format!("d{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (devices, group) = fixture.group(&names);
        let name: GroupName = group.parse().unwrap();
        let mut members = Vec::new();
        for device in &devices {
            members.push(fixture.member(device).await);
        }
        let insider = Insider {
            member: members.remove(0),
            name: name.clone(),
        };
        let story = Self {
            fixture,
            name,
            insider,
            honest: members,
        };
        story.say(0, "settled").await;
        story.insider.member.sync(None).await.unwrap();
        for member in &story.honest {
            member.sync(None).await.unwrap();
        }
        story
    }

    async fn say(&self, who: usize, text: &str) {
        let message = (new_id(), text.as_bytes().to_vec());
        self.honest[who].send(&self.name, &[message]).await.unwrap();
    }

    /// All that are online at once.
    async fn all_sync(&self) {
        let syncs: Vec<_> = self.honest.iter().map(|m| m.sync(None)).collect();
        for sync in join_all(syncs).await {
            sync.unwrap();
        }
    }

    /// Everybody is in one epoch, and everybody reads what each one says.
    async fn talk(&self) {
        let round = hex::encode(new_id());
        for n in 0..self.honest.len() {
            self.honest[n].sync(None).await.unwrap();
            self.say(n, &format!("{round} from {n}")).await;
        }
        let mut authenticators = Vec::new();
        for member in &self.honest {
            member.sync(None).await.unwrap();
            let texts = texts(member, &self.name);
            for n in 0..self.honest.len() {
                let text = format!("{round} from {n}");
                assert!(texts.contains(&text), "{n} is not heard");
            }
            assert_eq!(state(member, &self.name), GroupState::Active);
            authenticators.push(authenticator(member, &self.name));
        }
        authenticators.dedup();
        assert_eq!(authenticators.len(), 1, "more than one epoch");
    }

    /// The VOID entry, as this member wrote it down.
    fn void(&self, who: usize) -> Option<JournalEntry> {
        let entries = journal(&self.honest[who], &self.name);
        let kind = EntryKind::Void as u32;
        entries.into_iter().rev().find(|entry| entry.kind == kind)
    }
}

/// Futures of one task, together.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, output) in &mut futures {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    futures
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}

fn journal(member: &Member, name: &GroupName) -> Vec<JournalEntry> {
    member
        .step(|step, _| Ok(records::entries(step, name, 0, 10_000)?))
        .unwrap()
}

fn texts(member: &Member, name: &GroupName) -> Vec<String> {
    let entries = journal(member, name).into_iter();
    entries
        .filter_map(|entry| String::from_utf8(entry.text?).ok())
        .collect()
}

fn state(member: &Member, name: &GroupName) -> GroupState {
    member.record(name).unwrap().state
}

fn authenticator(member: &Member, name: &GroupName) -> Vec<u8> {
    member
        .step(|step, _| {
            let mls_group = group::load(step, name)?;
            Ok(mls_group.epoch_authenticator().as_slice().to_vec())
        })
        .unwrap()
}

fn roster(member: &Member, name: &GroupName) -> Vec<Person> {
    let roster = member.step(|step, _| group::roster(&group::load(step, name)?));
    roster.unwrap().into_iter().map(|(_, p)| p).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_commit_is_taken_back_while_others_are_online() {
    let story = Story::new(2).await;
    let before = story.honest[0].record(&story.name).unwrap();
    let result = story.insider.submit(story.insider.garbage()).await;
    let started = Instant::now();
    story.all_sync().await;
    assert!(started.elapsed() < Duration::from_secs(10));
    let void = story.void(0).expect("a VOID entry");
    let note = void.note.as_ref().unwrap();
    let offender = story.insider.member.identity().person.device_uri();
    assert!(note.contains(&offender), "{note}");
    let after = story.honest[0].record(&story.name).unwrap();
    // The epoch before, or the one that whoever reported first has begun since; in either case with the state that it had.
    assert!(after.epoch_seq == before.epoch_seq || after.epoch_seq > void.seq);
    assert_eq!(after.state, GroupState::Active);
    assert_eq!(
        (after.joined_seq, after.rejoined_seq),
        (before.joined_seq, before.rejoined_seq),
        "nobody lost a state"
    );
    let bad = journal(&story.honest[0], &story.name);
    let bad = bad.iter().find(|entry| entry.seq == result.seq).unwrap();
    assert!(bad.skipped.is_some());
    story.talk().await;
    // The offender is barred, and removed by whoever wants to.
    let person = &story.insider.member.identity().person;
    let device = (person.domain.clone(), person.device);
    story.honest[1]
        .remove(&story.name, &[device])
        .await
        .unwrap();
    story.talk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_commit_at_night_is_taken_back_when_the_second_one_wakes() {
    let story = Story::new(2).await;
    story.insider.submit(story.insider.garbage()).await;
    // The first one reports, and waits; nobody else is there, so it comes back on top of what it cannot read, for now.
    story.honest[0].sync(None).await.unwrap();
    assert!(story.void(0).is_none(), "one voice is not enough");
    story.all_sync().await;
    story.all_sync().await;
    assert!(story.void(1).is_some());
    story.talk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_group_of_two_the_other_one_is_enough() {
    let story = Story::new(1).await;
    story.insider.submit(story.insider.garbage()).await;
    story.all_sync().await;
    assert!(story.void(0).is_some());
    story.talk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_that_half_the_group_cannot_open() {
    let story = Story::new(4).await;
    let plan = Plan {
        half_the_path: true,
        ..Plan::default()
    };
    let request = story.insider.commit(&plan, |_| {});
    let result = story.insider.submit(request).await;
    let mut can = Vec::new();
    for (n, member) in story.honest.iter().enumerate() {
        member.read_up(&story.name).await.unwrap();
        if state(member, &story.name) == GroupState::Active {
            can.push(n);
        }
    }
    assert!((1..4).contains(&can.len()), "{can:?} can open it");
    // Who can, speaks: the Commit stands. The others come back from outside, at once.
    story.say(can[0], "it works for me").await;
    let started = Instant::now();
    story.all_sync().await;
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(story.void(can[0]).is_none());
    let stands = journal(&story.honest[can[0]], &story.name);
    let entry = stands.iter().find(|entry| entry.seq == result.seq).unwrap();
    let offender = story.insider.member.identity().person.clone();
    assert_eq!(entry.sender, Some(offender), "its maker signed for it");
    story.talk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_info_that_lies_is_refused_by_everybody_and_taken_back() {
    let story = Story::new(3).await;
    let person = |n: usize| story.honest[n].identity().person.clone();
    let plan = Plan {
        remove: vec![person(2)],
        ..Plan::default()
    };
    // MLS removes the third, the server is told that it is the second.
    let lie = person(1);
    let request = story.insider.commit(&plan, |info| {
        info.removed = client_cli::core::identity::members(vec![lie]);
    });
    story.insider.submit(request).await;
    story.all_sync().await;
    story.all_sync().await;
    assert!(story.void(0).is_some());
    assert_eq!(roster(&story.honest[0], &story.name).len(), 4);
    story.talk().await;
}

/// KeyPackages of devices that are in no group yet, as anybody gets them.
async fn key_packages(by: &Member, of: &[&Member]) -> Vec<Vec<u8>> {
    let request = ClaimKeyPackagesRequest {
        claim_id: new_id().to_vec().into(),
        devices: of
            .iter()
            .map(|member| {
                let person = &member.identity().person;
                chancery_proto::common::v1::DeviceRef {
                    domain: person.domain.clone(),
                    id: person.device.to_vec().into(),
                }
            })
            .collect(),
        suites: vec![1],
        ..ClaimKeyPackagesRequest::default()
    };
    let claims = by.ask_for_key_packages(request).await.unwrap();
    claims.iter().map(|c| c.key_package.to_vec()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_welcome_that_is_garbage_for_one_joiner() {
    let mut story = Story::new(1).await;
    let mut joiners = Vec::new();
    for name in ["e", "f"] {
        let device = story.fixture.device(name);
        joiners.push(story.fixture.member(&device).await);
    }
    let add = key_packages(&story.insider.member, &[&joiners[0], &joiners[1]]).await;
    let plan = Plan {
        add,
        ..Plan::default()
    };
    let mut request = story.insider.commit(&plan, |_| {});
    spoil_welcome(&mut request, 0);
    story.insider.submit(request).await;
    story.honest[0].sync(None).await.unwrap();
    story.say(0, "welcome").await;
    story.honest.append(&mut joiners);
    story.all_sync().await;
    let rejoined = story
        .honest
        .iter()
        .filter(|m| m.record(&story.name).unwrap().rejoined_seq > 0);
    assert_eq!(rejoined.count(), 1, "one came in by the other door");
    story.talk().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_group_info_is_repaired_and_its_signer_named() {
    let story = Story::new(3).await;
    let mut request = story.insider.commit(&Plan::default(), |_| {});
    story.insider.false_group_info(&mut request);
    let result = story.insider.submit(request).await;
    story.honest[0].sync(None).await.unwrap();
    let entries = journal(&story.honest[0], &story.name);
    let entry = entries.iter().find(|e| e.seq == result.seq).unwrap();
    let offender = story.insider.member.identity().person.device_uri();
    let note = entry.note.clone().unwrap();
    assert!(note.contains(&offender), "{note}");
    // Repaired by whoever saw it first: what a joiner gets now is this epoch's.
    let request = GetGroupInfoRequest {
        group: Some(story.name.to_ref()),
    };
    let stored = story.honest[0]
        .delivery(request, async |mut client, request| {
            Ok(client.get_group_info(request).await?.into_inner())
        })
        .await
        .unwrap()
        .value;
    let own = story.honest[0]
        .step(|step, context| {
            let mls_group = group::load(step, &story.name)?;
            group::state_hash(step, context, &mls_group)
        })
        .unwrap();
    assert_eq!(stored.group_state_hash.as_ref(), own);
    assert_eq!(stored.epoch_seq, result.seq);
    story.honest[2].rejoin(&story.name).await.unwrap();
    story.talk().await;
}

/// A good Commit of the first honest member, and two liars among the others who call it bad.
struct Slander {
    story: Story,
    liars: [Insider; 2],
    seq: u64,
    sha256: [u8; 32],
}

impl Slander {
    /// Besides the author and the liars there are so many honest members.
    async fn new(others: usize) -> Self {
        use sha2::{Digest as _, Sha256};
        let mut story = Story::new(others + 2).await;
        let author = story.insider.member.identity().person.clone();
        let name = story.name.clone();
        let liar = |member| Insider {
            member,
            name: name.clone(),
        };
        let liars = [story.honest.remove(0), story.honest.remove(0)].map(liar);
        // The author is honest here.
        let done = story.insider.member.update(&name).await.unwrap();
        assert_eq!(story.insider.member.identity().person, author);
        let seq = done.accepted.seq;
        let payload = story.insider.member.payload(&name, seq).await.unwrap();
        Self {
            story,
            liars,
            seq,
            sha256: Sha256::digest(payload).into(),
        }
    }

    async fn slander(&self) {
        for liar in &self.liars {
            liar.slander(self.seq, self.sha256).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_cannot_take_back_what_an_honest_member_confirms_in_time() {
    let slander = Slander::new(1).await;
    slander.slander().await;
    // One honest member is there in time: it has merged the Commit, and speaks.
    slander.story.honest[0].sync(None).await.unwrap();
    slander.story.say(0, "it is good").await;
    slander.slander().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    slander.story.all_sync().await;
    assert!(slander.story.void(0).is_none());
    let author = &slander.story.insider.member;
    author.sync(None).await.unwrap();
    assert_eq!(state(author, &slander.story.name), GroupState::Active);
    slander.story.talk().await;
}

/// Not prevented: two users who lie while nobody else is there. It costs their victims a return from outside, and the reports are signed.
#[tokio::test(flavor = "multi_thread")]
async fn liars_alone_at_night_cost_a_return_and_are_named() {
    let slander = Slander::new(2).await;
    slander.slander().await;
    let author = &slander.story.insider.member;
    let deadline = Instant::now() + Duration::from_secs(20);
    while author.record(&slander.story.name).unwrap().state == GroupState::Active {
        assert!(Instant::now() < deadline, "no VOID entry");
        author.read_up(&slander.story.name).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(matches!(
        state(author, &slander.story.name),
        GroupState::NeedsRejoin(_)
    ));
    // The others wake up: they merged it and come back, and with what they say the author is let in again.
    // Two who come back at once take an epoch from each other; after three rounds each has confirmed the other's.
    for _ in 0..3 {
        slander.story.all_sync().await;
        slander.story.say(0, "good morning").await;
        slander.story.all_sync().await;
        slander.story.say(1, "good morning").await;
    }
    author.sync(None).await.unwrap();
    assert_eq!(state(author, &slander.story.name), GroupState::Active);
    let message = (new_id(), b"I am back".to_vec());
    author.send(&slander.story.name, &[message]).await.unwrap();
    slander.story.talk().await;
    let heard = texts(&slander.story.honest[0], &slander.story.name);
    assert!(heard.contains(&"I am back".to_owned()));
    let note = slander.story.void(0).unwrap().note.unwrap();
    for liar in &slander.liars {
        let liar = liar.member.identity().person.device_uri();
        assert!(note.contains(&liar), "{note}");
    }
}
