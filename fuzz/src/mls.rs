//! What a member does with openmls to bytes of others before it knows whose they are. The client guards it (`client_cli::core::guarded`); here nothing does.

use openmls::prelude::{tls_codec::Deserialize as _, *};
use openmls_rust_crypto::RustCrypto;

/// Any MLSMessage, and the checks that need no group.
pub fn message(data: &[u8]) {
    let Ok(message) = MlsMessageIn::tls_deserialize_exact(data) else {
        return;
    };
    let is_protocol = message.clone().try_into_protocol_message();
    if let Ok(protocol) = is_protocol {
        let _looked_at = (protocol.epoch(), protocol.content_type());
    }
    if let MlsMessageBodyIn::KeyPackage(package) = message.extract() {
        // Accepted or refused, but it comes back.
        let _judged = package.validate(&RustCrypto::default(), ProtocolVersion::Mls10);
    }
}

/// A ratchet tree.
pub fn tree(data: &[u8]) {
    let _read = RatchetTreeIn::tls_deserialize_exact(data);
}
