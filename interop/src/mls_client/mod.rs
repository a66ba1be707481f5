//! The working group's own test protocol, `mls_client.MLSClient`: servers over openmls (on our client's store) and over mls-rs.
//!
//! | module | what |
//! |---|---|
//! | [`proto`] | messages, client and server, generated from `proto/mls_client.proto` |
//! | [`peer`] | an MLS library behind the protocol, and the service on top of it |
//! | [`handles`] | what the numbers of the protocol stand for |
//! | [`openmls_peer`], [`mls_rs_peer`] | the two libraries; what their handles hold is in `openmls_state` and `mls_rs_state` |

/// Messages, client and server of the protocol.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    unreachable_pub,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("mls_client");
}

pub mod handles;
pub mod mls_rs_peer;
mod mls_rs_state;
pub mod openmls_peer;
mod openmls_state;
pub mod peer;

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use peer::{Peer, Service};
use proto::mls_client_server::MlsClientServer;

/// Largest request and answer, bytes: trees of large groups travel whole in this protocol.
pub const MAX_BYTES: usize = 64 << 20;

/// Serves a peer; `bound` hears of the address before the first request.
///
/// # Errors
/// The address cannot be bound, or serving fails.
pub async fn serve(
    peer: impl Peer,
    address: SocketAddr,
    bound: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await?;
    bound(listener.local_addr()?);
    let service = MlsClientServer::new(Service::new(peer))
        .max_decoding_message_size(MAX_BYTES)
        .max_encoding_message_size(MAX_BYTES);
    tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

/// Leaves and the basic identities in them.
pub fn identities(tree: &mls_rs::group::ExportedTree<'_>) -> Vec<(u32, Vec<u8>)> {
    let members = tree.roster().members();
    let basic = |member: &mls_rs::group::Member| match &member.signing_identity.credential {
        mls_rs::identity::Credential::Basic(basic) => {
            Some((member.index, basic.identifier().to_vec()))
        }
        _ => None,
    };
    members.iter().filter_map(basic).collect()
}
