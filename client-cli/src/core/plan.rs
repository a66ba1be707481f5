//! What a Commit will do, and which KeyPackages it may add.

use chancery_proto::{
    key_package,
    mutants::{self, Mutant},
};
use openmls::prelude::{tls_codec::Deserialize as _, *};

use super::{Context, identity::person_of, leaves, records::Person};
use crate::store::Step;

/// What a Commit will really do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Devices that get a leaf.
    pub added: Vec<Person>,
    /// Devices that lose theirs.
    pub removed: Vec<Person>,
    /// Devices whose KeyPackage cannot be used, with the reason.
    pub unusable: Vec<(Option<Person>, String)>,
    /// Devices that lose their leaf because nobody can encrypt to it, with the reason; they are among `removed` too.
    pub unreachable: Vec<(Person, String)>,
}

/// A KeyPackage that this device is willing to add: it keeps the rules, validates, says who it is, and its certificate
/// is trusted. What is not usable is named as far as it can be read.
///
/// # Errors
/// Whose it is, as far as that is known, and why it cannot be used.
pub(super) fn usable(
    step: &Step<'_>,
    context: Context<'_>,
    suite: Ciphersuite,
    bytes: &[u8],
) -> Result<(Person, KeyPackage), (Option<Person>, String)> {
    let named = key_package::KeyPackage::parse(bytes, bytes.len())
        .ok()
        .and_then(|package| leaves::claims_to_be(&package.leaf));
    let unusable = |why: String| (named.clone(), why);
    if !mutants::is_on(Mutant::ClaimedKeyPackagesUnchecked) {
        leaves::check_key_package(bytes).map_err(unusable)?;
    }
    let body = MlsMessageIn::tls_deserialize_exact(bytes)
        .map_err(|error| unusable(error.to_string()))?
        .extract();
    let MlsMessageBodyIn::KeyPackage(package) = body else {
        return Err(unusable("not a KeyPackage".into()));
    };
    let package = package
        .validate(step.provider().crypto(), ProtocolVersion::Mls10)
        .map_err(|error| unusable(error.to_string()))?;
    let leaf = package.leaf_node();
    let person = person_of(leaf.credential(), leaf.signature_key().as_slice())
        .map_err(|error| unusable(error.to_string()))?;
    context
        .trust
        .verify(leaf.credential(), context.now)
        .map_err(|error| unusable(error.to_string()))?;
    if package.ciphersuite() != suite {
        return Err(unusable("its KeyPackage is of another suite".into()));
    }
    Ok((person, package))
}
