//! An MLS library behind the protocol, and the gRPC service on top of it.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use tonic::{Request, Response, Status};

use super::proto::{mls_client_server::MlsClient, *};

/// Why a step was not done.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The library has no such thing.
    #[error("{0}")]
    Unsupported(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The library says no.
    #[error("{0}")]
    Failed(String),
}

/// A step's outcome.
pub type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// The library says no, with its own words.
    pub fn failed(error: impl std::fmt::Debug) -> Self {
        Self::Failed(format!("{error:?}"))
    }

    /// The request makes no sense.
    pub fn invalid(error: impl std::fmt::Display) -> Self {
        Self::Invalid(error.to_string())
    }

    /// The library has no such thing.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported(what.into())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unsupported(why) => Self::unimplemented(why),
            Refusal::Invalid(why) => Self::invalid_argument(why),
            Refusal::Failed(why) => Self::aborted(why),
        }
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    Status::internal(format!(
        "the library panicked: {}",
        text.unwrap_or("without a text")
    ))
}

/// The service of a peer. A call runs on a thread of its own, and a panic in it is that call's answer.
pub struct Service<P>(Arc<P>);

impl<P: Peer> Service<P> {
    /// Over a peer.
    pub fn new(peer: P) -> Self {
        Self(Arc::new(peer))
    }

    async fn call<Q: Send + 'static, R: Send + 'static>(
        &self,
        request: Request<Q>,
        step: impl FnOnce(&P, Q) -> Answer<R> + Send + 'static,
    ) -> Result<Response<R>, Status> {
        let peer = self.0.clone();
        let request = request.into_inner();
        let work = move || catch_unwind(AssertUnwindSafe(|| step(&peer, request)));
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(answer)) => Ok(Response::new(answer?)),
            Ok(Err(panic)) => Err(panicked(panic.as_ref())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

/// The protocol's methods, once as a trait without gRPC and once as the service that calls it.
macro_rules! methods {
    ($($(#[$doc:meta])* $method:ident($request:ident) -> $response:ident;)*) => {
        /// An MLS library behind the protocol, step by step. Every step may fail as [`Refusal`] says.
        pub trait Peer: Send + Sync + 'static {
            $($(#[$doc])* #[expect(clippy::missing_errors_doc, reason = "see Refusal")] fn $method(&self, request: $request) -> Answer<$response>;)*
        }

        #[tonic::async_trait]
        impl<P: Peer> MlsClient for Service<P> {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                self.call(request, P::$method).await
            })*
        }
    };
}

methods! {
    /// Which library.
    name(NameRequest) -> NameResponse;
    /// RFC 9420 section 17.1.
    supported_ciphersuites(SupportedCiphersuitesRequest) -> SupportedCiphersuitesResponse;
    /// A group of one.
    create_group(CreateGroupRequest) -> CreateGroupResponse;
    /// A KeyPackage, kept until its Welcome.
    create_key_package(CreateKeyPackageRequest) -> CreateKeyPackageResponse;
    /// Joins by Welcome.
    join_group(JoinGroupRequest) -> JoinGroupResponse;
    /// Joins by external Commit.
    external_join(ExternalJoinRequest) -> ExternalJoinResponse;
    /// What an external Commit needs.
    group_info(GroupInfoRequest) -> GroupInfoResponse;
    /// The epoch authenticator.
    state_auth(StateAuthRequest) -> StateAuthResponse;
    /// The exporter.
    export(ExportRequest) -> ExportResponse;
    /// Frames an application message.
    protect(ProtectRequest) -> ProtectResponse;
    /// Opens one.
    unprotect(UnprotectRequest) -> UnprotectResponse;
    /// Keeps an external PSK for a state or a pending join.
    store_psk(StorePskRequest) -> StorePskResponse;
    /// Proposes an Add.
    add_proposal(AddProposalRequest) -> ProposalResponse;
    /// Proposes an Update of itself.
    update_proposal(UpdateProposalRequest) -> ProposalResponse;
    /// Proposes a Remove.
    remove_proposal(RemoveProposalRequest) -> ProposalResponse;
    /// Proposes an external PSK.
    external_psk_proposal(ExternalPskProposalRequest) -> ProposalResponse;
    /// Proposes a past epoch's resumption PSK.
    resumption_psk_proposal(ResumptionPskProposalRequest) -> ProposalResponse;
    /// Proposes other GroupContext extensions.
    group_context_extensions_proposal(GroupContextExtensionsProposalRequest) -> ProposalResponse;
    /// Makes a Commit, and keeps it pending.
    commit(CommitRequest) -> CommitResponse;
    /// Applies another's Commit.
    handle_commit(HandleCommitRequest) -> HandleCommitResponse;
    /// Applies the own pending one.
    handle_pending_commit(HandlePendingCommitRequest) -> HandleCommitResponse;
    /// Proposes a ReInit.
    re_init_proposal(ReInitProposalRequest) -> ProposalResponse;
    /// Commits to a ReInit.
    re_init_commit(CommitRequest) -> CommitResponse;
    /// Applies the own Commit to a ReInit.
    handle_pending_re_init_commit(HandlePendingCommitRequest) -> HandleReInitCommitResponse;
    /// Applies another's Commit to a ReInit.
    handle_re_init_commit(HandleCommitRequest) -> HandleReInitCommitResponse;
    /// Makes the new group.
    re_init_welcome(ReInitWelcomeRequest) -> CreateSubgroupResponse;
    /// Joins the new group.
    handle_re_init_welcome(HandleReInitWelcomeRequest) -> JoinGroupResponse;
    /// Makes a branch.
    create_branch(CreateBranchRequest) -> CreateSubgroupResponse;
    /// Joins a branch.
    handle_branch(HandleBranchRequest) -> HandleBranchResponse;
    /// Asks for itself to be added.
    new_member_add_proposal(NewMemberAddProposalRequest) -> NewMemberAddProposalResponse;
    /// A signer outside the group.
    create_external_signer(CreateExternalSignerRequest) -> CreateExternalSignerResponse;
    /// Proposes extensions that let an external signer in.
    add_external_signer(AddExternalSignerRequest) -> ProposalResponse;
    /// A proposal from an external signer.
    external_signer_proposal(ExternalSignerProposalRequest) -> ProposalResponse;
    /// Forgets a handle.
    free(FreeRequest) -> FreeResponse;
}

/// A number that stands for a suite.
///
/// # Errors
/// Larger than any.
pub fn suite_of(number: u32) -> Answer<u16> {
    number
        .try_into()
        .map_err(|_| Refusal::Invalid(format!("{number} is no cipher suite")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mls_client::openmls_peer::OpenMlsPeer;

    #[tokio::test]
    async fn a_panic_is_the_answer_of_its_own_call_only() {
        let service = Service::new(OpenMlsPeer::default());
        let panics = |_: &OpenMlsPeer, (): ()| -> Answer<()> { panic!("on purpose") };
        let status = service.call(Request::new(()), panics).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().contains("on purpose"), "{status}");
        let named = service.name(Request::new(NameRequest {})).await.unwrap();
        assert!(named.into_inner().name.contains("openmls"));
    }

    #[test]
    fn refusals_have_codes_of_their_own() {
        for (refusal, code) in [
            (Refusal::unsupported("x"), tonic::Code::Unimplemented),
            (Refusal::invalid("x"), tonic::Code::InvalidArgument),
            (Refusal::failed("x"), tonic::Code::Aborted),
        ] {
            assert_eq!(Status::from(refusal).code(), code);
        }
    }
}
