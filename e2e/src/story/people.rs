//! Enrolment, the group, a first round of messages.

use std::collections::BTreeSet;

use crate::{
    device::Device,
    programs::{number, text},
    story::world::{DOMAINS, World, each},
};

/// Who takes part: ministry, person, devices.
const PEOPLE: [(usize, &str, &[&str]); 12] = [
    (0, "Anna", &["anna-desk", "anna-phone"]),
    (0, "Bruno", &["bruno-desk", "bruno-phone"]),
    (0, "Clara", &["clara-desk", "clara-phone"]),
    (0, "David", &["david-desk", "david-phone"]),
    (0, "Elena", &["elena-desk"]),
    (0, "Felix", &["felix-desk"]),
    (0, "Greta", &["greta-desk"]),
    (1, "Hugo", &["hugo-desk", "hugo-phone"]),
    (1, "Irene", &["irene-desk", "irene-phone"]),
    (1, "Jonas", &["jonas-desk", "jonas-phone"]),
    (1, "Katja", &["katja-desk", "katja-phone"]),
    (1, "Lucas", &["lucas-desk"]),
];

/// Everybody is invited and enrols.
///
/// # Errors
/// A command fails.
pub fn enroll(world: &mut World) -> anyhow::Result<()> {
    world.act("Officials enrol their devices with invitation codes");
    // The search at the end must be able to find something: a name in the directory.
    let control = world.control.clone();
    world.server.invite(0, "control", &control)?;
    let wanted: Vec<(usize, &str, &str)> = PEOPLE
        .iter()
        .flat_map(|(place, person, names)| names.iter().map(|name| (*place, *person, *name)))
        .collect();
    world.devices = each(&wanted, |(place, person, name)| {
        Device::enroll(
            &world.programs,
            &world.server.node,
            &world.profiles,
            *place,
            person,
            name,
        )
    })?;
    let mut users = BTreeSet::new();
    for device in &world.devices {
        users.insert(text(&device.run(&["whoami"])?, "user")?.to_owned());
    }
    world.summary.devices = world.devices.len() as u64;
    world.summary.users = users.len() as u64;
    world.say(&format!(
        "{} devices of {} people of {} and {}; each made its own key, got a certificate and published KeyPackages",
        world.devices.len(),
        users.len(),
        DOMAINS[0],
        DOMAINS[1]
    ));
    Ok(())
}

/// One creates a group and adds the rest in one Commit.
///
/// # Errors
/// A command fails.
pub fn create_group(world: &mut World) -> anyhow::Result<()> {
    world.act("Anna creates a group and adds everybody in one Commit");
    let creator = world.device("anna-desk")?;
    let others = world.devices.iter().filter(|d| d.name != creator.name);
    let (created, group) = creator.create_group(others.clone())?;
    let (added, wanted) = (
        created["added"].as_array().map_or(0, Vec::len),
        others.count(),
    );
    anyhow::ensure!(added == wanted, "only {added} were added: {created}");
    world.group = group;
    world.say(&format!(
        "seq {}, epoch {}: {added} devices added. The server saw opaque ids, a public tree and {added} sealed Welcomes, and cut the Welcome for each of them",
        number(&created, "seq")?,
        number(&created, "epoch")?,
    ));
    let group = world.group.clone();
    each(&world.members(), |device| {
        device.run(&["sync", "--group", &group])
    })?;
    world.say("everybody joined by its own Welcome");
    Ok(())
}

/// Everybody sends a message and reads the others'.
///
/// # Errors
/// A command fails.
pub fn everybody_speaks(world: &mut World) -> anyhow::Result<()> {
    world.act("Everybody sends and reads");
    let group = world.group.clone();
    let members = world.members();
    let texts: Vec<(Device, String)> = members
        .into_iter()
        .map(|device| {
            let text = world.text(&format!("Greetings from {}", device.name));
            (device, text)
        })
        .collect();
    let sent = each(&texts, |(device, text)| {
        device.run(&["send", "--group", &group, text])
    })?;
    let mut seqs = Vec::new();
    for (answer, (_, text)) in sent.iter().zip(&texts) {
        seqs.push(world.acknowledge(answer, text)?);
    }
    let (first, last) = (seqs.iter().min(), seqs.iter().max());
    each(&world.members(), |device| {
        device.run(&["sync", "--group", &group])
    })?;
    world.say(&format!(
        "{} messages stand at seq {} to {}, in one order for all. The server saw for each: an epoch, a length, a time, and not whose it is",
        seqs.len(),
        first.copied().unwrap_or_default(),
        last.copied().unwrap_or_default(),
    ));
    Ok(())
}
