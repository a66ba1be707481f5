//! Our own services keep every rule; and the program says so of a server at an address.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use interop::{
    conformance::{self, DEVICES, Verdict},
    world::World,
};

async fn invitations(world: &World, prefix: &str) -> Vec<String> {
    let mut codes = Vec::new();
    for device in 0..DEVICES {
        codes.push(world.invite(&format!("{prefix}-{device}")).await.unwrap());
    }
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn our_services_keep_every_rule() {
    let world = World::start().await.unwrap();
    let codes = invitations(&world, "in-process").await;
    let verdicts = conformance::run(&world.place(), codes, "", |_| {})
        .await
        .unwrap();
    let broken: Vec<&Verdict> = verdicts.iter().filter(|v| v.broken.is_some()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(verdicts.len(), conformance::checks().count());
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_checks_a_server_at_an_address() {
    let world = World::start().await.unwrap();
    let place = world.place();
    let bare = |url: &str| url.trim_start_matches("http://").to_owned();
    let mut arguments = vec![
        "--json".to_owned(),
        format!("--target={}", bare(&place.delivery_url)),
        format!("--auth={}", bare(&place.auth_url)),
        "--only=the first wins".to_owned(),
    ];
    for code in invitations(&world, "at-an-address").await {
        arguments.push(format!("--invitation={code}"));
    }
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_conformance"))
        .args(arguments)
        .output()
        .await
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    let summary: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    assert_eq!(
        summary,
        serde_json::json!({ "checks": 1, "kept": 1, "broken": [] })
    );
    world.stop().await.unwrap();
}
