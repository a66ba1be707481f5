//! A script: steps that name actors and refer to earlier steps by index. Keys are read without regard to case and underscores, so that `force_path`,
//! `forcePath` and `changeCiphersuite` mean what they seem to.

use std::collections::BTreeMap;

use anyhow::Context as _;
use base64::Engine as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An extension of a GroupContext.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Extension {
    /// RFC 9420 section 17.3.
    #[serde(rename = "extensiontype")]
    pub kind: u16,
    /// Base64 in the JSON.
    #[serde(rename = "extensiondata", default, deserialize_with = "base64")]
    pub data: Vec<u8>,
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(serde::de::Error::custom)
}

/// A proposal by value, or one of an external signer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Description {
    /// `add`, `remove`, `externalPSK`, `resumptionPSK`, `groupContextExtensions`, `reinit`.
    #[serde(rename = "proposaltype")]
    pub kind: String,
    /// Step that made the KeyPackage.
    #[serde(rename = "keypackage")]
    pub key_package: usize,
    /// Actor.
    pub removed: String,
    /// Step that installed the PSK.
    #[serde(rename = "pskid")]
    pub psk: usize,
    /// Past epoch.
    #[serde(rename = "epochid")]
    pub epoch: u64,
    /// The GroupContext's, or the new group's.
    pub extensions: Vec<Extension>,
    /// The new group gets another id.
    #[serde(rename = "changegroupid")]
    pub change_group_id: bool,
    /// The new group gets another suite.
    #[serde(rename = "changeciphersuite")]
    pub change_suite: bool,
}

/// What a Commit holds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Commit {
    /// Steps that made proposals.
    #[serde(rename = "byreference")]
    pub by_reference: Vec<usize>,
    /// Proposals in the Commit itself.
    #[serde(rename = "byvalue")]
    pub by_value: Vec<Description>,
    /// A path even where none is needed.
    #[serde(rename = "forcepath")]
    pub force_path: bool,
    /// The tree travels beside the Welcome.
    #[serde(rename = "externaltree")]
    pub external_tree: bool,
}

/// A new group in place of an old one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct ReInit {
    /// Who proposes; nobody: an external signer did, at `externalreinitproposal`.
    pub proposer: String,
    /// Who commits.
    pub committer: String,
    /// Who makes the new group.
    pub welcomer: String,
    /// The others.
    pub members: Vec<String>,
    /// The new group gets another suite.
    #[serde(rename = "changeciphersuite")]
    pub change_suite: bool,
    /// The new group gets another id.
    #[serde(rename = "changegroupid")]
    pub change_group_id: bool,
    /// The new group's.
    pub extensions: Vec<Extension>,
    /// A path in the new group's Commit.
    #[serde(rename = "forcepath")]
    pub force_path: bool,
    /// The tree travels beside the Welcome.
    #[serde(rename = "externaltree")]
    pub external_tree: bool,
    /// Step of the external signer's proposal.
    #[serde(rename = "externalreinitproposal")]
    pub proposal: usize,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
#[expect(missing_docs, reason = "the protocol's own words")]
pub enum Action {
    CreateGroup {
        #[serde(default)]
        members: Vec<String>,
    },
    CreateKeyPackage,
    JoinGroup {
        welcome: usize,
    },
    ExternalJoin {
        joiner: String,
        #[serde(default)]
        members: Vec<String>,
        #[serde(rename = "externaltree", default)]
        external_tree: bool,
        #[serde(rename = "removeprior", default)]
        remove_prior: bool,
        #[serde(default)]
        psks: Vec<usize>,
    },
    #[serde(rename = "installExternalPSK")]
    InstallExternalPsk {
        clients: Vec<String>,
    },
    GroupInfo {
        #[serde(rename = "externaltree", default)]
        external_tree: bool,
    },
    AddProposal {
        #[serde(rename = "keypackage")]
        key_package: usize,
    },
    UpdateProposal,
    RemoveProposal {
        removed: String,
    },
    #[serde(rename = "externalPSKProposal")]
    ExternalPskProposal {
        #[serde(rename = "pskid")]
        psk: usize,
    },
    #[serde(rename = "resumptionPSKProposal")]
    ResumptionPskProposal {
        #[serde(rename = "epochid")]
        epoch: u64,
    },
    GroupContextExtensionsProposal {
        #[serde(default)]
        extensions: Vec<Extension>,
    },
    FullCommit {
        #[serde(flatten)]
        commit: Commit,
        #[serde(default)]
        members: Vec<String>,
        #[serde(default)]
        joiners: Vec<String>,
    },
    Commit {
        #[serde(flatten)]
        commit: Commit,
    },
    HandleCommit {
        commit: usize,
        #[serde(rename = "byreference", default)]
        by_reference: Vec<usize>,
    },
    HandlePendingCommit,
    Protect {
        #[serde(rename = "authenticateddata", default)]
        authenticated_data: String,
        #[serde(default)]
        plaintext: String,
    },
    Unprotect {
        ciphertext: usize,
    },
    #[serde(rename = "reinit")]
    ReInit(ReInit),
    Branch {
        members: Vec<String>,
        #[serde(default)]
        extensions: Vec<Extension>,
        #[serde(rename = "forcepath", default)]
        force_path: bool,
        #[serde(rename = "externaltree", default)]
        external_tree: bool,
    },
    NewMemberAddProposal {
        joiner: String,
    },
    AddExternalSigner {
        signer: String,
    },
    ExternalSignerProposal {
        member: String,
        description: Description,
    },
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Step {
    /// Who acts; some steps name their actors otherwise.
    #[serde(default)]
    pub actor: String,
    /// What it does.
    #[serde(flatten)]
    pub action: Action,
}

/// A named list of steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its file and its name there.
    pub name: String,
    /// In order; others refer to them by index, from 0.
    pub steps: Vec<Step>,
}

#[derive(Deserialize)]
struct File {
    scripts: BTreeMap<String, Vec<Step>>,
}

/// Keys in lower case and without underscores.
fn normal(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let key = |key: String| key.replace('_', "").to_lowercase();
            map.into_iter()
                .map(|(k, v)| (key(k), normal(v)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        }
        Value::Array(values) => values.into_iter().map(normal).collect(),
        other => other,
    }
}

/// Reads a file of scripts.
///
/// # Errors
/// Not JSON, or a step that is none.
pub fn read(file: &str, json: &str) -> anyhow::Result<Vec<Script>> {
    let mut value: Value = serde_json::from_str(json).with_context(|| format!("{file}: JSON"))?;
    // The names of scripts stay as they are.
    if let Some(scripts) = value.get_mut("scripts").and_then(Value::as_object_mut) {
        for steps in scripts.values_mut() {
            *steps = normal(steps.take());
        }
    }
    let read: File = serde_json::from_value(value).with_context(|| format!("{file}: a script"))?;
    let scripts = read.scripts.into_iter();
    Ok(scripts
        .map(|(name, steps)| Script {
            name: format!("{file}/{name}"),
            steps,
        })
        .collect())
}

impl Step {
    fn actors(&self) -> Vec<&str> {
        let mut actors = vec![self.actor.as_str()];
        match &self.action {
            Action::CreateGroup { members } | Action::Branch { members, .. } => {
                actors.extend(members.iter().map(String::as_str));
            }
            Action::ExternalJoin {
                joiner, members, ..
            } => {
                actors.push(joiner);
                actors.extend(members.iter().map(String::as_str));
            }
            Action::InstallExternalPsk { clients } => {
                actors.extend(clients.iter().map(String::as_str));
            }
            Action::FullCommit {
                members, joiners, ..
            } => actors.extend(members.iter().chain(joiners).map(String::as_str)),
            Action::ReInit(reinit) => {
                let named = [&reinit.proposer, &reinit.committer, &reinit.welcomer];
                let named = named.into_iter().chain(&reinit.members);
                actors.extend(named.map(String::as_str));
            }
            Action::NewMemberAddProposal { joiner } => actors.push(joiner),
            Action::AddExternalSigner { signer } => actors.push(signer),
            Action::ExternalSignerProposal { member, .. } => actors.push(member),
            _ => {}
        }
        actors
    }
}

impl Script {
    /// Everybody who acts, in the order of their first step.
    pub fn actors(&self) -> Vec<String> {
        let mut actors: Vec<String> = Vec::new();
        for actor in self.steps.iter().flat_map(Step::actors) {
            if !actor.is_empty() && !actors.iter().any(|known| known == actor) {
                actors.push(actor.to_owned());
            }
        }
        actors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_mean_the_same() {
        let snake = r#"{"scripts": {"a_b": [{"action": "fullCommit", "actor": "x", "force_path": true, "external_tree": true, "by_reference": [1]}]}}"#;
        let camel = r#"{"scripts": {"a_b": [{"action": "fullCommit", "actor": "x", "forcePath": true, "externalTree": true, "byReference": [1]}]}}"#;
        let snake = read("f", snake).unwrap();
        assert_eq!(snake, read("f", camel).unwrap());
        assert_eq!(snake[0].name, "f/a_b");
        let Action::FullCommit { commit, .. } = &snake[0].steps[0].action else {
            panic!("another action");
        };
        assert!(commit.force_path && commit.external_tree);
    }

    #[test]
    fn an_unknown_action_is_an_error() {
        let unknown = r#"{"scripts": {"s": [{"action": "fly", "actor": "x"}]}}"#;
        let error = format!("{:#}", read("f", unknown).unwrap_err());
        assert!(error.contains("fly"), "{error}");
    }

    #[test]
    fn actors_come_in_their_order() {
        let script = r#"{"scripts": {"s": [
            {"action": "createGroup", "actor": "b", "members": ["a"]},
            {"action": "installExternalPSK", "clients": ["a", "c"]},
            {"action": "externalJoin", "actor": "a", "joiner": "d"}]}}"#;
        let script = &read("f", script).unwrap()[0];
        assert_eq!(script.actors(), ["b", "a", "c", "d"]);
    }
}
