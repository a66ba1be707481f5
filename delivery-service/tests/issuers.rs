//! Who speaks in an Authentication Service's name: the one that was accepted first, or one that the operator has declared.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::time::Duration;

use chancery_proto::{common::v1::Reason, token};
use sha2::{Digest as _, Sha256};
use support::{
    forge::{Authority, Device},
    scripted_auth::ScriptedAuth,
    *,
};
use tokio::time::Instant;
use uuid::Uuid;

const QUICK: &[&str] = &["--auth-refresh-seconds", "1"];

async fn readyz(node: &Node) -> (bool, String) {
    let (status, text) = get(&node.ops_url, "/readyz").await;
    (status.contains("200"), text)
}

async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Creates a group as a device, with a token of this authority.
async fn creates(node: &Node, token: &Authority, device: &Device) -> Option<Reason> {
    let token = token.token(device, "ds:interior.example", 300);
    let request = with_token(Group::blank(device).create_request(), &token);
    let answer = node.client.clone().create_group(request).await;
    answer.err().map(|status| reason(&status))
}

fn fingerprint(authority: &Authority) -> String {
    let digest = Sha256::digest(&authority.root_der);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_node_that_knows_no_authentication_service_is_not_ready_and_says_so() {
    let authority = Authority::new();
    // An address at which nobody listens.
    let world = World::beside("http://127.0.0.1:9", authority).await;
    let node = world.node(QUICK).await;
    let unready = async || {
        let (ready, text) = readyz(&node).await;
        !ready && text.contains("authentication services: none was ever heard")
    };
    until("ready, or without a reason", unready).await;
    let device = world.device(Uuid::from_u128(1));
    let refused = creates(&node, &world.authority, &device).await;
    assert_eq!(refused, Some(Reason::TokenInvalid));
}

#[tokio::test]
async fn a_node_that_knew_its_authentication_service_is_ready_without_it() {
    let authority = Authority::new();
    let auth = ScriptedAuth::start(&authority).await;
    let world = World::beside(&auth.url, authority).await;
    let node = world.node(QUICK).await;
    until("not ready", async || readyz(&node).await.0).await;
    drop(auth);
    drop(node);
    let node = world.node(QUICK).await;
    until("not ready", async || readyz(&node).await.0).await;
    let device = world.device(Uuid::from_u128(1));
    assert_eq!(creates(&node, &world.authority, &device).await, None);
}

/// The keys behind an address change, or the file that pins the root, or both; while the node runs, or while it is stopped.
#[tokio::test]
async fn another_issuer_in_the_same_name_is_refused_by_name_and_the_old_one_stays() {
    for (served, pinned, restart) in [
        (true, false, false),
        (true, false, true),
        (false, true, true),
        (true, true, true),
    ] {
        let case = format!("served: {served}, pinned: {pinned}, restart: {restart}");
        let old = Authority::new();
        let auth = ScriptedAuth::start(&old).await;
        let world = World::beside(&auth.url, old).await;
        let mut node = world.node(QUICK).await;
        until("not ready", async || readyz(&node).await.0).await;
        let other = Authority::new();
        if served {
            auth.becomes(&other);
        }
        if pinned {
            std::fs::write(world.root.path(), pem(&other.root_der)).unwrap();
        }
        if restart {
            drop(node);
            node = world.node(QUICK).await;
        }
        let named = async || {
            let (ready, text) = readyz(&node).await;
            let wanted = format!("--accept-root {}", fingerprint(&other));
            ready && text.contains("identity of interior.example: ") && text.contains(&wanted)
        };
        until(&case, named).await;
        let (ours, theirs) = (
            world.device(Uuid::from_u128(1)),
            other.device(Uuid::from_u128(2), 30),
        );
        assert_eq!(
            creates(&node, &world.authority, &ours).await,
            None,
            "{case}"
        );
        let refused = creates(&node, &other, &theirs).await;
        assert_eq!(refused, Some(Reason::TokenInvalid), "{case}");
        let refused = creates(&node, &world.authority, &theirs).await;
        assert_eq!(refused, Some(Reason::CredentialInvalid), "{case}");
    }
}

#[tokio::test]
async fn a_new_token_key_alone_is_refused_by_name() {
    let authority = Authority::new();
    let auth = ScriptedAuth::start(&authority).await;
    let world = World::beside(&auth.url, authority).await;
    let node = world.node(QUICK).await;
    until("not ready", async || readyz(&node).await.0).await;
    let other = Authority::new();
    let thief = scripted_auth::service_info(&other).token_keys_jwks;
    auth.script().info.token_keys_jwks = thief;
    let wanted = format!("--accept-token-key {}", token::thumbprint(&other.token_key));
    until("not named", async || {
        readyz(&node).await.1.contains(&wanted)
    })
    .await;
    let ours = world.device(Uuid::from_u128(1));
    assert_eq!(creates(&node, &world.authority, &ours).await, None);
    assert_eq!(
        creates(&node, &other, &ours).await,
        Some(Reason::TokenInvalid)
    );
    // Declared.
    drop(node);
    let thumbprint = token::thumbprint(&other.token_key);
    let options = [QUICK, &["--accept-token-key", &thumbprint]].concat();
    let node = world.node(&options).await;
    until("not taken", async || {
        creates(&node, &other, &ours).await.is_none()
    })
    .await;
    assert_eq!(readyz(&node).await, (true, "ready".into()));
}

/// What was issued under the earlier root goes on, unless it is distrusted.
#[tokio::test]
async fn a_declared_root_takes_the_place_of_the_earlier_one() {
    let old = Authority::new();
    let auth = ScriptedAuth::start(&old).await;
    let world = World::beside(&auth.url, old).await;
    let node = world.node(QUICK).await;
    until("not ready", async || readyz(&node).await.0).await;
    until("not heard", async || {
        creates(&node, &world.authority, &world.device(Uuid::from_u128(1)))
            .await
            .is_none()
    })
    .await;
    let new = Authority::new();
    auth.becomes(&new);
    std::fs::write(world.root.path(), pem(&new.root_der)).unwrap();
    drop(node);
    let (root, key) = (fingerprint(&new), token::thumbprint(&new.token_key));
    let declared = ["--accept-root", &root, "--accept-token-key", &key];
    let node = world.node(&[QUICK, &declared].concat()).await;
    let (before, after) = (
        world.device(Uuid::from_u128(1)),
        new.device(Uuid::from_u128(2), 30),
    );
    until("not taken", async || {
        creates(&node, &new, &after).await.is_none()
    })
    .await;
    assert_eq!(creates(&node, &new, &before).await, None);
    assert_eq!(readyz(&node).await, (true, "ready".into()));
    // The declaration is remembered.
    drop(node);
    let node = world.node(QUICK).await;
    until("forgotten", async || {
        creates(&node, &new, &after).await.is_none()
    })
    .await;
    assert_eq!(creates(&node, &new, &before).await, None);
    drop(node);
    let distrusted = fingerprint(&world.authority);
    let node = world
        .node(&[QUICK, &["--distrust-root", &distrusted]].concat())
        .await;
    until("forgotten", async || {
        creates(&node, &new, &after).await.is_none()
    })
    .await;
    let refused = creates(&node, &new, &before).await;
    assert_eq!(refused, Some(Reason::CredentialInvalid));
}
