//! ts-mls as an engine (`interop/ts/peer.mjs`): somebody else speaks to the services.

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    engine::{Engine, Epoch, Identity, Made, Processed, Secrets},
    node_process::NodeProcess,
};

/// ts-mls for one device.
pub struct TsMls {
    process: NodeProcess,
    grease: bool,
}

fn bytes(value: &Value, field: &str) -> anyhow::Result<Vec<u8>> {
    let text = value[field]
        .as_str()
        .with_context(|| format!("no {field}"))?;
    Ok(hex::decode(text)?)
}

fn epoch(value: &Value) -> anyhow::Result<Epoch> {
    Ok(Epoch {
        group_info: bytes(value, "group_info")?,
        tree: bytes(value, "tree")?,
    })
}

fn made(value: &Value) -> anyhow::Result<Made> {
    Ok(Made {
        commit: bytes(value, "commit")?,
        welcome: match &value["welcome"] {
            Value::Null => None,
            _ => Some(bytes(value, "welcome")?),
        },
        epoch: epoch(value)?,
    })
}

impl TsMls {
    /// Starts a process for one device.
    ///
    /// # Errors
    /// Node does not start.
    pub fn start(suite: u16, identity: &Identity<'_>) -> anyhow::Result<Self> {
        let mut engine = Self {
            process: NodeProcess::start("peer.mjs")?,
            grease: false,
        };
        engine.ask(json!({
            "do": "start",
            "suite": suite,
            "certificate": hex::encode(identity.certificate),
            "secret": hex::encode(identity.secret),
            "public_key": hex::encode(identity.public_key),
        }))?;
        Ok(engine)
    }

    /// The same, its KeyPackages full of GREASE values (RFC 9420 section 13.5).
    #[must_use]
    pub fn with_grease(mut self) -> Self {
        self.grease = true;
        self
    }

    /// Whether ts-mls writes external_pub as RFC 9420 section 12.4.3.2 says. It did not when this was written.
    ///
    /// # Errors
    /// The process ended.
    pub fn external_pub_has_length(&mut self, group: &[u8]) -> anyhow::Result<bool> {
        let group = hex::encode(group);
        let answer = self.ask(json!({ "do": "external_pub_has_length", "group": group }))?;
        Ok(answer["has_length"] == true)
    }

    fn ask(&mut self, request: Value) -> anyhow::Result<Value> {
        self.process.ask(&request)
    }
}

impl Engine for TsMls {
    fn library(&self) -> &'static str {
        "ts-mls"
    }

    fn key_package(&mut self, last_resort: bool) -> anyhow::Result<Vec<u8>> {
        let grease = self.grease;
        let answer = self.ask(json!({
            "do": "key_package",
            "last_resort": last_resort,
            "grease": grease,
        }))?;
        bytes(&answer, "key_package")
    }

    fn create(&mut self, group: &[u8], policy: &[u8]) -> anyhow::Result<Epoch> {
        let (group, policy) = (hex::encode(group), hex::encode(policy));
        epoch(&self.ask(json!({ "do": "create", "group": group, "policy": policy }))?)
    }

    fn join(&mut self, group: &[u8], welcome: &[u8], tree: &[u8]) -> anyhow::Result<()> {
        self.ask(json!({
            "do": "join",
            "group": hex::encode(group),
            "welcome": hex::encode(welcome),
            "tree": hex::encode(tree),
        }))?;
        Ok(())
    }

    fn roster(&mut self, group: &[u8]) -> anyhow::Result<Vec<(u32, Vec<u8>)>> {
        let answer = self.ask(json!({ "do": "roster", "group": hex::encode(group) }))?;
        let members = answer["members"].as_array().context("no members")?;
        members
            .iter()
            .map(|member| {
                let index = member["index"].as_u64().context("no index")?;
                Ok((u32::try_from(index)?, bytes(member, "certificate")?))
            })
            .collect()
    }

    fn commit(
        &mut self,
        group: &[u8],
        add: &[Vec<u8>],
        remove: &[u32],
        aad: &[u8],
    ) -> anyhow::Result<Made> {
        made(&self.ask(json!({
            "do": "commit",
            "group": hex::encode(group),
            "add": add.iter().map(hex::encode).collect::<Vec<_>>(),
            "remove": remove,
            "aad": hex::encode(aad),
        }))?)
    }

    fn apply_pending(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.ask(json!({ "do": "apply_pending", "group": hex::encode(group) }))?;
        Ok(())
    }

    fn clear_pending(&mut self, group: &[u8]) -> anyhow::Result<()> {
        self.ask(json!({ "do": "clear_pending", "group": hex::encode(group) }))?;
        Ok(())
    }

    fn process(&mut self, group: &[u8], message: &[u8]) -> anyhow::Result<Processed> {
        let (group, message) = (hex::encode(group), hex::encode(message));
        let answer = self.ask(json!({ "do": "process", "group": group, "message": message }))?;
        Ok(match answer["kind"].as_str() {
            Some("application") => Processed::Application(bytes(&answer, "text")?),
            Some("proposal") => {
                let removed = answer["removed"].as_u64();
                Processed::Proposal(removed.map(u32::try_from).transpose()?)
            }
            _ => Processed::Commit {
                active: answer["active"] == true,
            },
        })
    }

    fn send(&mut self, group: &[u8], text: &[u8], aad: &[u8]) -> anyhow::Result<Vec<u8>> {
        let answer = self.ask(json!({
            "do": "send",
            "group": hex::encode(group),
            "text": hex::encode(text),
            "aad": hex::encode(aad),
        }))?;
        bytes(&answer, "message")
    }

    fn propose_remove(&mut self, group: &[u8], leaf: u32, aad: &[u8]) -> anyhow::Result<Vec<u8>> {
        let answer = self.ask(json!({
            "do": "propose_remove",
            "group": hex::encode(group),
            "index": leaf,
            "aad": hex::encode(aad),
        }))?;
        bytes(&answer, "message")
    }

    fn external(
        &mut self,
        group: &[u8],
        group_info: &[u8],
        tree: &[u8],
        aad: &[u8],
    ) -> anyhow::Result<Made> {
        made(&self.ask(json!({
            "do": "external",
            "group": hex::encode(group),
            "group_info": hex::encode(group_info),
            "tree": hex::encode(tree),
            "resync": true,
            "aad": hex::encode(aad),
        }))?)
    }

    fn secrets(&mut self, group: &[u8], label: &str) -> anyhow::Result<Secrets> {
        let group = hex::encode(group);
        let answer = self.ask(json!({ "do": "secrets", "group": group, "label": label }))?;
        Ok(Secrets {
            epoch: answer["epoch"].as_u64().context("no epoch")?,
            authenticator: bytes(&answer, "authenticator")?,
            exporter: bytes(&answer, "exporter")?,
        })
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        self.ask(json!({ "do": "restart" }))?;
        Ok(())
    }
}
