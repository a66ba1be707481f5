//! The tonic trait: decode, know the caller, run the use case, encode. No SQL, no decisions.

mod queries;
mod streams;

use std::{pin::Pin, sync::Arc};

use chancery_proto::delivery::v1::{delivery_service_server::DeliveryService, *};
use futures_util::{Stream, StreamExt as _};
use service_kit::lifecycle::{Shutdown, spawn_short};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use crate::{
    access::caller::Caller,
    commands::{
        create_group, key_packages, leave_group, recovery, send_message, send_messages,
        submit_commit, welcomes,
    },
    error::{Error, status},
    node::Node,
    reading::{log, pending_removals},
    request,
};

pub use streams::WithSubscribe;

/// The service on one node.
#[derive(Debug, Clone)]
pub struct Rpc {
    node: Node,
    shutdown: Shutdown,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Claims in one part of an answer: 64 KeyPackages of the largest size stay below 2 MiB.
const CLAIM_PART: usize = 64;
/// Parts of one claim that are under way at once.
const CLAIM_PARTS: usize = 2;

fn parts<T: Send + 'static>(parts: Vec<T>) -> Answers<T> {
    Box::pin(tokio_stream::iter(parts.into_iter().map(Ok)))
}

impl Rpc {
    /// Serves this node until shutdown.
    pub fn new(node: Node, shutdown: Shutdown) -> Self {
        Self { node, shutdown }
    }

    async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let (gate, db) = (&self.node.gate, &self.node.db);
        let caller = gate.admit(request.metadata(), db).await.map_err(status)?;
        self.node.hub.called(caller.key);
        Ok(caller)
    }

    /// The same for what writes: refused while the status feed of the caller's domain is too old.
    async fn writer<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.caller(request).await?;
        let may = self.node.issuers.may_write(&caller.domain);
        may.map(|()| caller).map_err(status)
    }

    /// By its token only: how the device stands is looked at later, with other things.
    async fn recognised(&self, metadata: &MetadataMap) -> Result<Caller, Status> {
        let (gate, db) = (&self.node.gate, &self.node.db);
        let caller = gate.recognise(metadata, db).await.map_err(status)?;
        self.node.hub.called(caller.key);
        Ok(caller)
    }
}

#[tonic::async_trait]
impl DeliveryService for Rpc {
    async fn get_service_info(
        &self,
        _request: Request<GetServiceInfoRequest>,
    ) -> Result<Response<GetServiceInfoResponse>, Status> {
        self.info().await.map(Response::new).map_err(status)
    }

    async fn publish_key_packages(
        &self,
        request: Request<PublishKeyPackagesRequest>,
    ) -> Result<Response<PublishKeyPackagesResponse>, Status> {
        let caller = self.caller(&request).await?;
        let stock = key_packages::publish(&self.node, &caller, request.get_ref())
            .await
            .map_err(status)?;
        Ok(Response::new(PublishKeyPackagesResponse { stock }))
    }

    async fn delete_key_packages(
        &self,
        request: Request<DeleteKeyPackagesRequest>,
    ) -> Result<Response<DeleteKeyPackagesResponse>, Status> {
        let caller = self.caller(&request).await?;
        let refs = request.into_inner().refs;
        let refs = refs.into_iter().map(|r| r.to_vec()).collect();
        let stock = key_packages::delete(&self.node, &caller, refs)
            .await
            .map_err(status)?;
        Ok(Response::new(DeleteKeyPackagesResponse { stock }))
    }

    async fn get_key_package_stock(
        &self,
        request: Request<GetKeyPackageStockRequest>,
    ) -> Result<Response<GetKeyPackageStockResponse>, Status> {
        let caller = self.caller(&request).await?;
        let stock = key_packages::stock(&self.node, &caller)
            .await
            .map_err(status)?;
        Ok(Response::new(GetKeyPackageStockResponse { stock }))
    }

    type ClaimKeyPackagesStream = Answers<ClaimKeyPackagesResponse>;

    async fn claim_key_packages(
        &self,
        request: Request<ClaimKeyPackagesRequest>,
    ) -> Result<Response<Self::ClaimKeyPackagesStream>, Status> {
        let caller = self.writer(&request).await?;
        let claim =
            key_packages::prepare_claim(&self.node, &caller, request.get_ref()).map_err(status)?;
        let (claim, node) = (Arc::new(claim), self.node.clone());
        let (sink, answers) = mpsc::channel(1);
        spawn_short(async move {
            let parts: Vec<Vec<_>> = claim.devices.chunks(CLAIM_PART).map(Vec::from).collect();
            // Each is a task: a reader that takes its time must not keep a transaction open with KeyPackages locked.
            let parts = futures_util::stream::iter(parts).map(|part| {
                let (node, claim) = (node.clone(), claim.clone());
                spawn_short(async move { key_packages::claim(&node, &claim, &part).await })
            });
            let mut parts = parts.buffered(CLAIM_PARTS);
            // What was claimed before an error, or before the caller went away, is not lost: a repeat of the claim_id gets it again.
            while let Some(part) = parts.next().await {
                let part = part.unwrap_or(Err(Error::Corrupt("a claim panicked")));
                let answer = part.map(|claims| ClaimKeyPackagesResponse { claims });
                let failed = answer.is_err();
                if sink.send(answer.map_err(status)).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn create_group(
        &self,
        request: Request<CreateGroupRequest>,
    ) -> Result<Response<CreateGroupResponse>, Status> {
        let caller = self.writer(&request).await?;
        let group = request::group(&self.node, &caller, request.get_ref())
            .await
            .map_err(status)?;
        create_group::create_group(&self.node, &caller, group)
            .await
            .map(Response::new)
            .map_err(status)
    }

    async fn submit_commit(
        &self,
        request: Request<SubmitCommitRequest>,
    ) -> Result<Response<SubmitCommitResponse>, Status> {
        let caller = self.writer(&request).await?;
        let commit = request::commit(&self.node, &caller, request.get_ref())
            .await
            .map_err(status)?;
        submit_commit::submit_commit(&self.node, &caller, commit)
            .await
            .map(Response::new)
            .map_err(status)
    }

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        // How the device stands is read under the group's lock, with all else.
        let caller = self.recognised(request.metadata()).await?;
        let may = self.node.issuers.may_write(&caller.domain);
        may.map_err(status)?;
        let send = request::send(&self.node, request.get_ref()).map_err(status)?;
        send_message::send_message(&self.node, &caller, send)
            .await
            .map(Response::new)
            .map_err(status)
    }

    type SendMessagesStream = Answers<SendMessagesResponse>;

    async fn send_messages(
        &self,
        request: Request<Streaming<SendMessageRequest>>,
    ) -> Result<Response<Self::SendMessagesStream>, Status> {
        let caller = self.caller(&request).await?;
        let answers = send_messages::send_messages(
            self.node.clone(),
            caller,
            request.into_inner(),
            self.shutdown.clone(),
        );
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type SubscribeStream = Answers<Frame>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        // Its frames are encoded before they get here: `WithSubscribe` answers instead.
        drop(request);
        Err(Status::unimplemented("served elsewhere"))
    }

    type ReadLogStream = Answers<ReadLogResponse>;

    async fn read_log(
        &self,
        request: Request<ReadLogRequest>,
    ) -> Result<Response<Self::ReadLogStream>, Status> {
        let caller = self.caller(&request).await?;
        let frames = log::read_log(&self.node, &caller, request.get_ref())
            .await
            .map_err(status)?;
        Ok(Response::new(parts(frames)))
    }

    type FetchPayloadStream = Answers<FetchPayloadResponse>;

    async fn fetch_payload(
        &self,
        request: Request<FetchPayloadRequest>,
    ) -> Result<Response<Self::FetchPayloadStream>, Status> {
        let caller = self.caller(&request).await?;
        let request = request.into_inner();
        let payload = log::payload(&self.node, &caller, request.group.as_ref(), request.seq)
            .await
            .map_err(status)?;
        let chunks = payload
            .chunks(log::CHUNK_BYTES)
            .map(|chunk| FetchPayloadResponse {
                chunk: chunk.to_vec().into(),
            })
            .collect();
        Ok(Response::new(parts(chunks)))
    }

    async fn get_group_info(
        &self,
        request: Request<GetGroupInfoRequest>,
    ) -> Result<Response<GetGroupInfoResponse>, Status> {
        let caller = self.caller(&request).await?;
        self.group_info(&caller, request.get_ref())
            .await
            .map(Response::new)
            .map_err(status)
    }

    type FetchTreeStream = Answers<FetchTreeResponse>;

    async fn fetch_tree(
        &self,
        request: Request<FetchTreeRequest>,
    ) -> Result<Response<Self::FetchTreeStream>, Status> {
        let caller = self.caller(&request).await?;
        let pages = self
            .tree(&caller, request.get_ref())
            .await
            .map_err(status)?;
        let parts = futures_util::stream::try_unfold(pages, queries::TreePages::next);
        Ok(Response::new(Box::pin(parts)))
    }

    async fn put_group_info(
        &self,
        request: Request<PutGroupInfoRequest>,
    ) -> Result<Response<PutGroupInfoResponse>, Status> {
        let caller = self.writer(&request).await?;
        let answer = recovery::put_group_info(&self.node, &caller, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    type ListWelcomesStream = Answers<ListWelcomesResponse>;

    async fn list_welcomes(
        &self,
        request: Request<ListWelcomesRequest>,
    ) -> Result<Response<Self::ListWelcomesStream>, Status> {
        let caller = self.caller(&request).await?;
        let welcomes = crate::reading::welcomes::unread(&self.node, &caller)
            .await
            .map_err(status)?;
        let answers = welcomes
            .into_iter()
            .map(|welcome| ListWelcomesResponse {
                welcomes: vec![welcome],
            })
            .collect();
        Ok(Response::new(parts(answers)))
    }

    async fn ack_welcomes(
        &self,
        request: Request<AckWelcomesRequest>,
    ) -> Result<Response<AckWelcomesResponse>, Status> {
        let caller = self.caller(&request).await?;
        welcomes::acknowledge(&self.node, &caller, &request.get_ref().welcomes)
            .await
            .map_err(status)?;
        Ok(Response::new(AckWelcomesResponse {}))
    }

    type ListGroupsStream = Answers<ListGroupsResponse>;

    async fn list_groups(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<Self::ListGroupsStream>, Status> {
        let caller = self.caller(&request).await?;
        let answers = self.groups(&caller).await.map_err(status)?;
        Ok(Response::new(parts(answers)))
    }

    type GetGroupStream = Answers<GetGroupResponse>;

    async fn get_group(
        &self,
        request: Request<GetGroupRequest>,
    ) -> Result<Response<Self::GetGroupStream>, Status> {
        let caller = self.caller(&request).await?;
        let answers = self
            .roster(&caller, request.get_ref())
            .await
            .map_err(status)?;
        Ok(Response::new(parts(answers)))
    }

    async fn report_epoch(
        &self,
        request: Request<ReportEpochRequest>,
    ) -> Result<Response<ReportEpochResponse>, Status> {
        let caller = self.caller(&request).await?;
        let answer = recovery::report(&self.node, &caller, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn leave_group(
        &self,
        request: Request<LeaveGroupRequest>,
    ) -> Result<Response<LeaveGroupResponse>, Status> {
        let caller = self.writer(&request).await?;
        let answer = leave_group::leave(&self.node, &caller, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }

    async fn list_pending_removals(
        &self,
        request: Request<ListPendingRemovalsRequest>,
    ) -> Result<Response<ListPendingRemovalsResponse>, Status> {
        let caller = self.caller(&request).await?;
        let answer = pending_removals::list(&self.node, &caller, request.get_ref()).await;
        answer.map(Response::new).map_err(status)
    }
}
