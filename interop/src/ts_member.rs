//! ts-mls as a member that is a program of its own (`interop/ts/member.mjs`): gRPC, the log, CommitInfo and MLS are all done in Node.

use anyhow::Context as _;
use serde_json::{Value, json};
use tonic::async_trait;

use crate::{
    node_process::NodeProcess,
    stack::{Change, EXPORTER_LABEL, Race, Stack, State},
    wire::Person,
    world::World,
};

/// A member in a Node process.
pub struct TsMember {
    process: NodeProcess,
    person: Person,
}

fn person(value: &Value) -> anyhow::Result<Person> {
    let id = |field: &str| -> anyhow::Result<uuid::Uuid> {
        Ok(value[field].as_str().context("no id")?.parse()?)
    };
    Ok(Person {
        user: id("user")?,
        device: id("device")?,
    })
}

/// As the program writes them: hex without dashes.
fn people(people: &[Person]) -> Vec<Value> {
    let hex = |id: uuid::Uuid| id.simple().to_string();
    people
        .iter()
        .map(|person| json!({ "user": hex(person.user), "device": hex(person.device) }))
        .collect()
}

fn number(value: &Value) -> anyhow::Result<u64> {
    value.as_u64().context("no number")
}

fn hex_field(value: &Value, field: &str) -> anyhow::Result<Vec<u8>> {
    Ok(hex::decode(value[field].as_str().context("no bytes")?)?)
}

impl TsMember {
    /// Enrolls a device and publishes KeyPackages of the suite.
    ///
    /// # Errors
    /// A service refuses, or Node does not start.
    pub async fn enroll(world: &World, handle: &str, suite: u16) -> anyhow::Result<Self> {
        let place = world.place();
        let mut process = NodeProcess::start("member.mjs")?;
        let enrolled = process.ask(&json!({
            "do": "enroll",
            "suite": suite,
            "auth_url": place.auth_url,
            "delivery_url": place.delivery_url,
            "code": world.invite(handle).await?,
            "handle": handle,
        }))?;
        Ok(Self {
            person: person(&enrolled)?,
            process,
        })
    }

    fn ask(&mut self, what: &str, group: &[u8], mut more: Value) -> anyhow::Result<Value> {
        more["do"] = what.into();
        more["group"] = hex::encode(group).into();
        self.process.ask(&more)
    }
}

#[async_trait(?Send)]
impl Stack for TsMember {
    fn library(&self) -> &'static str {
        "ts-mls"
    }

    fn person(&self) -> Person {
        self.person
    }

    async fn create(&mut self) -> anyhow::Result<Vec<u8>> {
        hex_field(&self.ask("create", &[], json!({}))?, "group")
    }

    async fn sync(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.ask("sync", group, json!({}))?;
        Ok(())
    }

    async fn commit(&mut self, group: &[u8], change: &Change) -> anyhow::Result<u64> {
        let (add, remove) = (people(&change.add), people(&change.remove));
        let done = self.ask("commit", group, json!({ "add": add, "remove": remove }))?;
        number(&done["seq"])
    }

    async fn prepare(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.ask("prepare", group, json!({}))?;
        Ok(())
    }

    async fn submit_prepared(&mut self, group: &[u8]) -> anyhow::Result<Race> {
        let outcome = self.ask("submit_prepared", group, json!({}))?;
        Ok(match outcome["won"].as_u64() {
            Some(seq) => Race::Won { seq },
            None => Race::Lost {
                winner_seq: number(&outcome["winner"])?,
            },
        })
    }

    async fn send(&mut self, group: &[u8], text: &str) -> anyhow::Result<u64> {
        number(&self.ask("send", group, json!({ "text": text }))?["seq"])
    }

    async fn send_twice(&mut self, group: &[u8], text: &str) -> anyhow::Result<[u64; 2]> {
        let seqs = self.ask("send_twice", group, json!({ "text": text }))?;
        Ok([number(&seqs["seqs"][0])?, number(&seqs["seqs"][1])?])
    }

    async fn send_backwards(
        &mut self,
        group: &[u8],
        texts: &[String],
    ) -> anyhow::Result<Option<Vec<u64>>> {
        let sent = self.ask("send_backwards", group, json!({ "texts": texts }))?;
        let seqs = sent["seqs"].as_array().context("no seqs")?;
        seqs.iter()
            .map(number)
            .collect::<anyhow::Result<_>>()
            .map(Some)
    }

    async fn leave(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        number(&self.ask("leave", group, json!({}))?["seq"])
    }

    async fn propose_remove(&mut self, group: &[u8], whom: Person) -> anyhow::Result<Option<u64>> {
        let whom = people(&[whom]).remove(0);
        let done = self.ask("propose_remove", group, json!({ "whom": whom }))?;
        number(&done["seq"]).map(Some)
    }

    async fn resync(&mut self, group: &[u8]) -> anyhow::Result<u64> {
        number(&self.ask("resync", group, json!({}))?["seq"])
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        self.ask("restart", &[], json!({}))?;
        Ok(())
    }

    fn state(&mut self, group: &[u8]) -> anyhow::Result<State> {
        let state = self.ask("state", group, json!({ "label": EXPORTER_LABEL }))?;
        let members = state["members"].as_array().context("no members")?;
        let mut members: Vec<Person> = members.iter().map(person).collect::<anyhow::Result<_>>()?;
        members.sort();
        Ok(State {
            epoch: number(&state["epoch"])?,
            epoch_authenticator: hex_field(&state, "authenticator")?,
            exporter: hex_field(&state, "exporter")?,
            members,
        })
    }

    fn texts(&mut self, group: &[u8]) -> anyhow::Result<Vec<String>> {
        let read = self.ask("texts", group, json!({}))?;
        Ok(serde_json::from_value(read["texts"].clone())?)
    }
}
