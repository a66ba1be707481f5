//! What is looked at in every message: mls-rs reads it, whoever made it.

use mls_rs::{MlsMessage, WireFormat, group::ExportedTree};

use crate::mls_client::identities;

/// What a proposal does, as far as the script says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// An actor comes in.
    Add(String),
    /// An actor goes.
    Remove(String),
    /// A member renews its leaf.
    Update,
    /// A secret from outside the key schedule.
    Psk,
    /// Other GroupContext extensions.
    Context,
    /// The group ends.
    ReInit,
}

impl Effect {
    /// RFC 9420 section 17.4.
    fn code(&self) -> u16 {
        match self {
            Self::Add(_) => 1,
            Self::Update => 2,
            Self::Remove(_) => 3,
            Self::Psk => 4,
            Self::ReInit => 5,
            Self::Context => 7,
        }
    }

    /// RFC 9420 section 12.4: these may come without a path.
    fn pathless(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Psk | Self::ReInit)
    }
}

/// Why a message is not what it has to be.
pub type Fault = String;

/// The message, if it has this wire format.
///
/// # Errors
/// It does not parse, or has another.
pub fn wire(what: &str, bytes: &[u8], expected: WireFormat) -> Result<MlsMessage, Fault> {
    let message = MlsMessage::from_bytes(bytes)
        .map_err(|error| format!("{what} does not parse: {error:?}"))?;
    if message.wire_format() == expected {
        return Ok(message);
    }
    Err(format!(
        "{what} is a {:?}, not a {expected:?}",
        message.wire_format()
    ))
}

/// What members frame handshake messages in.
pub fn handshake(encrypt: bool) -> WireFormat {
    if encrypt {
        WireFormat::PrivateMessage
    } else {
        WireFormat::PublicMessage
    }
}

/// What a Commit has to hold.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Proposals in it.
    pub by_value: &'a [Effect],
    /// Proposals that it refers to.
    pub by_reference: &'a [Effect],
    /// A path even where none is needed.
    pub force_path: bool,
}

/// A Commit of a member: its framing; and in a PublicMessage its proposals, one by one, and its path.
///
/// # Errors
/// It is not what was asked for.
pub fn commit(bytes: &[u8], encrypt: bool, expected: Expected<'_>) -> Result<(), Fault> {
    let message = wire("the Commit", bytes, handshake(encrypt))?;
    if encrypt {
        return Ok(());
    }
    let mut codes: Vec<u16> = expected.by_value.iter().map(Effect::code).collect();
    let found = message.proposals_by_value();
    let mut found: Vec<u16> = found.iter().map(|p| p.proposal_type().into()).collect();
    codes.sort_unstable();
    found.sort_unstable();
    if codes != found {
        return Err(format!(
            "the Commit holds proposals of types {found:?}, not {codes:?}"
        ));
    }
    let references = message.proposals_by_reference().len();
    if references != expected.by_reference.len() {
        return Err(format!(
            "the Commit refers to {references} proposals, not {}",
            expected.by_reference.len()
        ));
    }
    let mut all = expected.by_value.iter().chain(expected.by_reference);
    let empty = codes.is_empty() && references == 0;
    let needed = expected.force_path || empty || !all.all(Effect::pathless);
    if needed && message.commit_path_leaf_node().is_none() {
        return Err("the Commit has no path".into());
    }
    Ok(())
}

/// A Welcome for so many joiners, or none at all.
///
/// # Errors
/// It is not for so many.
pub fn welcome(bytes: &[u8], joiners: usize) -> Result<(), Fault> {
    if joiners == 0 {
        return if bytes.is_empty() {
            Ok(())
        } else {
            Err("a Welcome for nobody".into())
        };
    }
    let message = wire("the Welcome", bytes, WireFormat::Welcome)?;
    let found = message.welcome_key_package_references().len();
    if found == joiners {
        return Ok(());
    }
    Err(format!("the Welcome is for {found}, not {joiners}"))
}

/// An external Commit: a PublicMessage with a path, so many PSKs, and a Remove exactly when asked for.
///
/// # Errors
/// It is not.
pub fn external_commit(bytes: &[u8], psks: usize, remove_prior: bool) -> Result<(), Fault> {
    let message = wire("the external Commit", bytes, WireFormat::PublicMessage)?;
    if message.commit_path_leaf_node().is_none() {
        return Err("the external Commit has no path".into());
    }
    let count = |code: u16| {
        let proposals = message.proposals_by_value();
        let of = |p: &&&mls_rs::group::proposal::Proposal| u16::from(p.proposal_type()) == code;
        proposals.iter().filter(of).count()
    };
    for (what, code, expected) in [
        ("ExternalInit", 6, 1),
        ("PreSharedKey", 4, psks),
        ("Remove", 3, usize::from(remove_prior)),
    ] {
        let found = count(code);
        if found != expected {
            return Err(format!(
                "the external Commit holds {found} {what} proposals, not {expected}"
            ));
        }
    }
    Ok(())
}

/// Who is in a tree, sorted.
///
/// # Errors
/// It does not parse.
pub fn members(tree: &[u8]) -> Result<Vec<String>, Fault> {
    let tree = ExportedTree::from_bytes(tree)
        .map_err(|error| format!("the ratchet tree does not parse: {error:?}"))?;
    let mut names: Vec<String> = identities(&tree)
        .into_iter()
        .map(|(_, name)| String::from_utf8_lossy(&name).into_owned())
        .collect();
    names.sort();
    Ok(names)
}
