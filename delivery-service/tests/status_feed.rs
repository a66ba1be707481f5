//! The status feed beside an Authentication Service that was restored, fell behind, stands still, or says what this program does not know.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{
    auth::v1::StatusChange, common::v1::Reason, delivery::v1::*, status::Refusal,
};
use delivery_service::upkeep::status_feed::{Kinds, meaning::Meaning};
use support::{
    forge::{Authority, Device},
    scripted_auth::{ScriptedAuth, of_device, of_user},
    *,
};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
/// How long a status may take from the service to here.
const SOON: Duration = Duration::from_secs(1);
/// Heartbeats come every half second: three seconds of difference are forgiven.
const QUICK: &[&str] = &[
    "--feed-heartbeat-seconds",
    "1",
    "--clock-leeway-seconds",
    "1",
];
/// No status at all of a kind that is known.
const LOCKED: i32 = 77;

/// A Delivery Service beside a scripted Authentication Service.
struct Pair {
    auth: ScriptedAuth,
    world: World,
}

impl Pair {
    async fn new() -> Self {
        let authority = Authority::new();
        let auth = ScriptedAuth::start(&authority).await;
        let world = World::beside(&auth.url, authority).await;
        Self { auth, world }
    }

    /// With a node that follows the feed.
    async fn start(options: &[&str]) -> Self {
        let mut pair = Self::new().await;
        pair.start_node(Kinds::ALL, options).await;
        pair
    }

    async fn start_node(&mut self, kinds: Kinds, options: &[&str]) {
        let options = [QUICK, options].concat();
        let node = self.world.node_knowing(kinds, &options).await;
        let ready = until(|| ready(&node)).await;
        assert!(ready < PATIENCE);
        self.world.nodes = vec![node];
    }

    fn device(&self, n: u128) -> Device {
        self.world.device(Uuid::from_u128(n))
    }

    /// Why the device may not call; nothing where it may.
    async fn refused(&self, device: &Device) -> Option<Reason> {
        let request = self.world.by(device, GetKeyPackageStockRequest {});
        let answer = self.world.client().get_key_package_stock(request).await;
        answer.err().map(|status| reason(&status))
    }

    async fn until_refused(&self, device: &Device, why: Reason) -> Duration {
        until(async || self.refused(device).await == Some(why)).await
    }

    async fn until_let_in(&self, device: &Device) -> Duration {
        until(async || self.refused(device).await.is_none()).await
    }

    async fn readyz(&self) -> (bool, String) {
        let (status, text) = get(&self.world.nodes[0].ops_url, "/readyz").await;
        (status.contains("200"), text)
    }
}

async fn ready(node: &Node) -> bool {
    get(&node.ops_url, "/readyz").await.0.contains("200")
}

/// How long it took.
async fn until(holds: impl AsyncFn() -> bool) -> Duration {
    let began = tokio::time::Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "it never held");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    began.elapsed()
}

/// The feed's history changed, as after a restore as it is documented, and nothing of the feed was lost: whatever it held, and whatever was read of it
/// before, what is said from now on is heard.
#[tokio::test]
async fn after_a_restore_a_revocation_is_applied_within_a_second() {
    for (before, read_before, chains) in [
        (0, false, true),
        (0, true, true),
        (2, false, true),
        (2, true, true),
        (2, false, false),
        (2, true, false),
    ] {
        let case = format!("{before} items, read before: {read_before}, chains: {chains}");
        let mut pair = Pair::new().await;
        let devices: Vec<Device> = (0..3).map(|n| pair.device(n)).collect();
        pair.auth.script().chains = chains;
        for device in &devices[..before] {
            pair.auth.script().revoke(device.device);
        }
        if read_before {
            pair.start_node(Kinds::ALL, &[]).await;
            for device in &devices[..before] {
                pair.until_refused(device, Reason::DeviceRevoked).await;
            }
            pair.world.nodes.clear();
        }
        pair.auth.script().history = [2; 16];
        pair.start_node(Kinds::ALL, &[]).await;
        for device in &devices[..before] {
            pair.until_refused(device, Reason::DeviceRevoked).await;
        }
        assert_eq!(pair.refused(&devices[2]).await, None, "{case}");
        pair.auth.script().revoke(devices[2].device);
        let took = pair.until_refused(&devices[2], Reason::DeviceRevoked).await;
        assert!(took < SOON, "{case}: {took:?}");
        let (_, text) = pair.readyz().await;
        assert!(!text.contains("not heard"), "{case}: {text}");
    }
}

/// The database of the Authentication Service lost the end of its feed, and nobody said so: numbers are given again, to others.
#[tokio::test]
async fn another_past_is_an_alarm_and_what_either_says_is_applied() {
    // How many of three items are left, how many came since, and whether this node was up meanwhile.
    for (left, since, up) in [
        (2, 1, false),
        (2, 1, true),
        (2, 3, false),
        (2, 3, true),
        (0, 1, false),
        (0, 3, true),
        (3, 1, true),
    ] {
        let case = format!("{left} left, {since} since, up: {up}");
        let mut pair = Pair::start(&[]).await;
        let devices: Vec<Device> = (0..6).map(|n| pair.device(n)).collect();
        for device in &devices[..3] {
            pair.auth.script().revoke(device.device);
        }
        pair.until_refused(&devices[2], Reason::DeviceRevoked).await;
        if !up {
            pair.world.nodes.clear();
        }
        {
            let mut script = pair.auth.script();
            script.items.truncate(left);
            for device in &devices[3..3 + since] {
                script.revoke(device.device);
            }
        }
        if !up {
            pair.start_node(Kinds::ALL, &[]).await;
        }
        for device in &devices[3..3 + since] {
            pair.until_refused(device, Reason::DeviceRevoked).await;
        }
        for device in &devices[..3] {
            let refused = pair.refused(device).await;
            assert_eq!(refused, Some(Reason::DeviceRevoked), "{case}");
        }
        let (ready, text) = pair.readyz().await;
        let alarm = text.contains("past of the status feed of interior.example: ");
        assert_eq!((ready, alarm), (true, left < 3), "{case}: {text}");
        // And it goes on from there.
        let last = pair.device(9);
        pair.auth.script().revoke(last.device);
        let took = pair.until_refused(&last, Reason::DeviceRevoked).await;
        assert!(took < SOON, "{case}: {took:?}");
    }
}

/// A suspension whose end was read before it, in the feed of another past, stays; and one that ended stays ended.
#[tokio::test]
async fn a_feed_that_is_read_again_lifts_nothing_that_came_later() {
    let pair = Pair::start(&[]).await;
    let [suspended, reinstated] = [1, 2].map(|n| pair.device(n));
    let say = |change: StatusChange, device: &Device| {
        let subject = Some(of_user(device.user));
        pair.auth.script().say(change.into(), subject);
    };
    say(StatusChange::Suspended, &suspended);
    say(StatusChange::Reinstated, &suspended);
    say(StatusChange::Suspended, &reinstated);
    say(StatusChange::Reinstated, &reinstated);
    // Lost with the end of the feed.
    say(StatusChange::Suspended, &suspended);
    pair.until_refused(&suspended, Reason::UserSuspended).await;
    pair.auth.script().items.pop();
    let other = pair.device(3);
    pair.auth.script().revoke(other.device);
    pair.until_refused(&other, Reason::DeviceRevoked).await;
    assert_eq!(pair.refused(&suspended).await, Some(Reason::UserSuspended));
    assert_eq!(pair.refused(&reinstated).await, None);
    say(StatusChange::Reinstated, &suspended);
    pair.until_let_in(&suspended).await;
}

/// A recorded heartbeat, sent again and again, proves nothing: the feed grows old, which is said, and at last nobody of its domain writes. Reading and
/// readiness stay; when the feed is heard again, all is as before.
#[tokio::test]
async fn a_feed_that_stands_still_grows_old_and_then_nobody_writes() {
    let pair = Pair::start(&["--feed-max-age-seconds", "4"]).await;
    let (alice, gone) = (pair.device(1), pair.device(2));
    let group = Group::create(&pair.world, &alice).await;
    let recorded = pair.auth.script().heartbeat();
    pair.auth.script().replayed = Some(recorded);
    pair.auth.script().revoke(gone.device);
    let writes = async || {
        let sent = send(&pair.world, &alice, group.message(Uuid::new_v4(), 1)).await;
        sent.map_err(|status| Refusal::from_status(&status))
    };
    let sent = writes().await.unwrap();
    until(async || {
        let (ready, text) = pair.readyz().await;
        assert!(ready, "{text}");
        text.contains("status feed of interior.example: not heard for")
    })
    .await;
    until(async || writes().await.is_err()).await;
    let refusal = writes().await.unwrap_err();
    assert_eq!(refusal.reason, Some(Reason::StatusFeedStale));
    assert!(refusal.outcome_unknown() && refusal.retry_after.is_some());
    assert!(refusal.metadata["age_seconds"].parse::<u64>().unwrap() >= 4);
    for refused in every_write(&pair, &alice, &group).await {
        assert_eq!(refused, Some(Reason::StatusFeedStale));
    }
    // Reading goes on.
    let seen = log(&pair.world, &alice, &group).await.unwrap();
    assert!(seen.len() as u64 >= sent.seq);
    let welcomes = pair.world.by(&alice, ListWelcomesRequest::default());
    pair.world.client().list_welcomes(welcomes).await.unwrap();
    pair.world.publish(&alice).await;
    assert_eq!(pair.refused(&gone).await, None, "nobody could know");
    until(async || {
        let (ready, text) = pair.readyz().await;
        ready && text.contains("is refused")
    })
    .await;
    // Heard again.
    pair.auth.script().replayed = None;
    pair.until_refused(&gone, Reason::DeviceRevoked).await;
    until(async || writes().await.is_ok()).await;
    until(async || pair.readyz().await.1 == "ready").await;
}

/// What each method that writes for others says to a request.
async fn every_write(pair: &Pair, by: &Device, group: &Group) -> Vec<Option<Reason>> {
    let world = &pair.world;
    let mut answers = Vec::new();
    let mut note = |failed: Option<tonic::Status>| {
        answers.push(failed.map(|status| reason(&status)));
    };
    let create = world.by(by, group.create_request());
    note(world.client().create_group(create).await.err());
    let commit = group.commit(group.info(&[], &[]), &[], &group.tree);
    note(submit(world, by, commit).await.err());
    let claim = world.by(by, ClaimKeyPackagesRequest::default());
    note(world.client().claim_key_packages(claim).await.err());
    let put = world.by(by, PutGroupInfoRequest::default());
    note(world.client().put_group_info(put).await.err());
    let leave = world.by(by, LeaveGroupRequest::default());
    note(world.client().leave_group(leave).await.err());
    let message = group.message(Uuid::new_v4(), 1);
    let messages = world.by(by, tokio_stream::iter([message]));
    let mut stream = world
        .client()
        .send_messages(messages)
        .await
        .unwrap()
        .into_inner();
    let answer = stream.message().await.unwrap().unwrap().answer.unwrap();
    let refused = match answer {
        send_messages_response::Answer::Refused(refusal) => Some(refusal.reason()),
        send_messages_response::Answer::Accepted(_) => None,
    };
    answers.push(refused);
    answers
}

/// A node that was stopped meanwhile does not begin with a fresh feed.
#[tokio::test]
async fn the_age_of_a_feed_outlives_the_node() {
    let mut pair = Pair::start(&[]).await;
    let alice = pair.device(1);
    let database = owner(&pair.world).await;
    let changed = async |sql: &str| database.execute(sql, &[]).await.unwrap() == 1;
    until(async || {
        changed("UPDATE auth_services SET domain_id = domain_id WHERE heard_micros IS NOT NULL")
            .await
    })
    .await;
    // Nothing of the present comes any more, and what was heard was heard a while ago.
    let old = pair.auth.script().heartbeat_at(-100);
    pair.auth.script().replayed = Some(old);
    pair.world.nodes.clear();
    assert!(changed("UPDATE auth_services SET heard_micros = heard_micros - 100000000").await);
    pair.start_node(Kinds::ALL, &["--feed-max-age-seconds", "90"])
        .await;
    let group = Group::blank(&alice);
    until(async || {
        let create = pair.world.by(&alice, group.create_request());
        let refused = pair.world.client().create_group(create).await.err();
        refused.is_some_and(|status| reason(&status) == Reason::StatusFeedStale)
    })
    .await;
}

/// A heartbeat from the future would be fresh for a long time.
#[tokio::test]
async fn a_heartbeat_ahead_of_the_clock_is_not_of_the_present() {
    let pair = Pair::start(&["--feed-max-age-seconds", "4"]).await;
    let alice = pair.device(1);
    let group = Group::create(&pair.world, &alice).await;
    let ahead = pair.auth.script().heartbeat_at(3_600);
    pair.auth.script().replayed = Some(ahead);
    until(async || {
        let sent = send(&pair.world, &alice, group.message(Uuid::new_v4(), 1)).await;
        sent.is_err_and(|status| reason(&status) == Reason::StatusFeedStale)
    })
    .await;
}

/// An older program meets kinds of status that it does not know: their subjects are cut off, others go on, and nothing known lifts it. The newer program
/// applies them all, in the order of the feed.
#[tokio::test]
async fn a_status_of_an_unknown_kind_is_kept_and_applied_after_the_upgrade() {
    const OLDER: Kinds = Kinds(&[
        (StatusChange::Revoked, Meaning::Gone),
        (StatusChange::Reinstated, Meaning::Back),
    ]);
    let mut pair = Pair::new().await;
    pair.start_node(OLDER, &[]).await;
    let [deleted, suspended, back, revoked, locked, expired] =
        [1, 2, 3, 4, 5, 6].map(|n| pair.device(n));
    let say = |pair: &Pair, change: i32, subject| pair.auth.script().say(change, Some(subject));
    say(&pair, StatusChange::Deleted.into(), of_user(deleted.user));
    say(
        &pair,
        StatusChange::Suspended.into(),
        of_user(suspended.user),
    );
    say(&pair, StatusChange::Suspended.into(), of_user(back.user));
    say(&pair, StatusChange::Reinstated.into(), of_user(back.user));
    say(
        &pair,
        StatusChange::Expired.into(),
        of_device(expired.device),
    );
    say(
        &pair,
        StatusChange::Renewed.into(),
        of_device(expired.device),
    );
    say(&pair, LOCKED, of_device(locked.device));
    say(
        &pair,
        StatusChange::Revoked.into(),
        of_device(revoked.device),
    );
    pair.until_refused(&revoked, Reason::DeviceRevoked).await;
    for device in [&deleted, &suspended, &back, &expired, &locked] {
        assert_eq!(pair.refused(device).await, Some(Reason::UserSuspended));
    }
    let kept = async || {
        let (_, text) = pair.readyz().await;
        let line = text.lines().find_map(|line| {
            let rest = line.strip_prefix("unknown statuses of interior.example: ")?;
            rest.split(' ').next()?.parse::<u32>().ok()
        });
        line.unwrap_or(0)
    };
    assert_eq!(kept().await, 6);
    // The same program again: nothing changes.
    pair.start_node(OLDER, &[]).await;
    assert_eq!(pair.refused(&back).await, Some(Reason::UserSuspended));
    // The newer one.
    pair.start_node(Kinds::ALL, &[]).await;
    pair.until_let_in(&back).await;
    pair.until_let_in(&expired).await;
    until(async || {
        pair.readyz()
            .await
            .1
            .contains("unknown statuses of interior.example: 1 ")
    })
    .await;
    assert_eq!(pair.refused(&deleted).await, Some(Reason::UserSuspended));
    assert_eq!(pair.refused(&suspended).await, Some(Reason::UserSuspended));
    assert_eq!(pair.refused(&locked).await, Some(Reason::UserSuspended));
    assert_eq!(pair.refused(&revoked).await, Some(Reason::DeviceRevoked));
    say(
        &pair,
        StatusChange::Reinstated.into(),
        of_user(suspended.user),
    );
    pair.until_let_in(&suspended).await;
}

/// What is about something unreadable can neither be applied nor be kept out of harm's way: the feed stops there and grows old, by name.
#[tokio::test]
async fn a_status_about_something_unreadable_stops_the_feed() {
    let pair = Pair::start(&["--feed-max-age-seconds", "4"]).await;
    let (alice, revoked) = (pair.device(1), pair.device(2));
    let group = Group::create(&pair.world, &alice).await;
    pair.auth.script().say(StatusChange::Revoked.into(), None);
    pair.auth.script().revoke(revoked.device);
    until(async || {
        let sent = send(&pair.world, &alice, group.message(Uuid::new_v4(), 1)).await;
        sent.is_err_and(|status| reason(&status) == Reason::StatusFeedStale)
    })
    .await;
    assert_eq!(pair.refused(&revoked).await, None, "it was passed over");
    assert!(pair.readyz().await.1.contains("status feed of"));
}
