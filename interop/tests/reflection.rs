//! What a gRPC tool finds by reflection alone, in both versions, on every listener: exactly what is served there, and enough to call it.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use base64::Engine as _;
use interop::{
    contract_member::ContractMember,
    mls_rs_engine,
    stack::Stack as _,
    world::{DOMAIN, World},
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::{
    v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

/// Services that every listener has besides its own.
const EVERYWHERE: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Messages that are known only by their descriptor.
#[derive(Clone)]
struct Dynamic(MessageDescriptor);

impl Codec for Dynamic {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Encoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Dynamic {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.clone(), buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

async fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned())
        .unwrap()
        .connect()
        .await
        .unwrap()
}

async fn ask(channel: &Channel, request: MessageRequest) -> MessageResponse {
    let mut client = ServerReflectionClient::new(channel.clone());
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

/// The file of a symbol and everything that it imports.
async fn pool(channel: &Channel, symbol: &str) -> DescriptorPool {
    let mut wanted = vec![MessageRequest::FileContainingSymbol(symbol.to_owned())];
    let mut files: BTreeMap<String, prost_types::FileDescriptorProto> = BTreeMap::new();
    while let Some(request) = wanted.pop() {
        let MessageResponse::FileDescriptorResponse(found) = ask(channel, request).await else {
            panic!("no descriptor of {symbol}");
        };
        for bytes in found.file_descriptor_proto {
            let file = prost_types::FileDescriptorProto::decode(&bytes[..]).unwrap();
            for import in &file.dependency {
                if !files.contains_key(import) {
                    wanted.push(MessageRequest::FileByFilename(import.clone()));
                }
            }
            files.insert(file.name().to_owned(), file);
        }
    }
    let set = prost_types::FileDescriptorSet {
        file: files.into_values().collect(),
    };
    DescriptorPool::from_file_descriptor_set(set).unwrap()
}

/// Calls a method with a JSON body; the first answer as JSON.
async fn call(
    channel: &Channel,
    method: &str,
    body: &str,
    header: Option<&str>,
) -> serde_json::Value {
    let (service, name) = method.split_once('/').unwrap();
    let pool = pool(channel, service).await;
    let service = pool.get_service_by_name(service).unwrap();
    let described = service.methods().find(|m| m.name() == name).unwrap();
    let mut json = serde_json::Deserializer::from_str(body);
    let message = DynamicMessage::deserialize(described.input(), &mut json).unwrap();
    assert_eq!(message.descriptor(), described.input());
    let mut request = Request::new(message);
    if let Some(header) = header {
        let (key, value) = header.split_once(": ").unwrap();
        assert_eq!(key, "authorization");
        request
            .metadata_mut()
            .insert("authorization", value.parse().unwrap());
    }
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/{method}").parse().unwrap();
    let codec = Dynamic(described.output());
    let mut answers = grpc
        .server_streaming(request, path, codec)
        .await
        .unwrap_or_else(|status| panic!("{method}: {status}"))
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    serde_json::to_value(&answer).unwrap()
}

/// The listed services, by v1.
async fn list(channel: &Channel) -> Vec<String> {
    let request = MessageRequest::ListServices(String::new());
    let MessageResponse::ListServicesResponse(list) = ask(channel, request).await else {
        panic!("no list");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    names.sort();
    names
}

/// The listed services, by v1alpha, and whether it describes each.
async fn list_v1alpha(channel: &Channel) -> Vec<String> {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let mut client = ServerReflectionClient::new(channel.clone());
    let mut ask = async |request| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(request),
        };
        let answers = client.server_reflection_info(tokio_stream::iter([request]));
        let answer = answers.await.unwrap().into_inner().message().await.unwrap();
        answer.unwrap().message_response.unwrap()
    };
    let request = MessageRequest::ListServices(String::new());
    let MessageResponse::ListServicesResponse(list) = ask(request).await else {
        panic!("no list");
    };
    let mut names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    names.sort();
    for name in &names {
        let answer = ask(MessageRequest::FileContainingSymbol(name.clone())).await;
        assert!(
            matches!(answer, MessageResponse::FileDescriptorResponse(_)),
            "{name}: {answer:?}"
        );
    }
    names
}

/// A listed service answers: a method that it does not know is refused by the service, one of a service that is not there by the listener; both say
/// UNIMPLEMENTED, so that a known method is asked, with an empty body.
async fn is_served(channel: &Channel, service: &str) -> bool {
    let pool = pool(channel, service).await;
    let described = pool.get_service_by_name(service).unwrap();
    let method = described.methods().next().unwrap();
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = format!("/{service}/{}", method.name()).parse().unwrap();
    let request = Request::new(DynamicMessage::new(method.input()));
    let codec = Dynamic(method.output());
    let answered = match grpc.server_streaming(request, path, codec).await {
        Ok(answer) => answer.into_inner().message().await.map(|_| ()),
        Err(status) => Err(status),
    };
    answered.map_or_else(|status| status.code() != Code::Unimplemented, |()| true)
}

async fn admin_channel(socket: std::path::PathBuf) -> Channel {
    Endpoint::from_static("http://admin")
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_lists_exactly_what_it_serves() {
    let world = World::start().await.unwrap();
    let place = world.place();
    let listeners = [
        (
            "chancery.delivery.v1.DeliveryService",
            channel(&place.delivery_url).await,
        ),
        (
            "chancery.auth.v1.AuthService",
            channel(&place.auth_url).await,
        ),
        (
            "chancery.auth.v1.AdminService",
            admin_channel(world.node.auth[0].admin_socket.clone()).await,
        ),
    ];
    for (own, channel) in &listeners {
        let mut expected: Vec<&str> = EVERYWHERE.into_iter().chain([*own]).collect();
        expected.sort_unstable();
        assert_eq!(list(channel).await, expected);
        assert_eq!(list_v1alpha(channel).await, expected);
        for service in expected {
            assert!(
                is_served(channel, service).await,
                "{service} is listed and not served"
            );
        }
        for (other, _) in listeners.iter().filter(|(other, _)| other != own) {
            assert!(
                !is_served(channel, other).await,
                "{other} is served and not listed"
            );
        }
    }
    world.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_work_by_reflection_alone() {
    let world = World::start().await.unwrap();
    let place = world.place();
    let mut member = ContractMember::enroll(&world, "member", 1, mls_rs_engine::start)
        .await
        .unwrap();
    let group = member.create().await.unwrap();
    let authorization = format!("authorization: {}", member.authorization().unwrap());
    let id = base64::engine::general_purpose::STANDARD.encode(&group);
    let body = format!(r#"{{"group": {{"domain": "{}", "id": "{id}"}}}}"#, DOMAIN);
    let auth = channel(&place.auth_url).await;
    let delivery = channel(&place.delivery_url).await;
    let service = |name: &str| format!("chancery.delivery.v1.DeliveryService/{name}");
    let info = call(
        &auth,
        "chancery.auth.v1.AuthService/GetServiceInfo",
        "{}",
        None,
    )
    .await;
    assert_eq!(info["domain"], DOMAIN);
    let stock = call(
        &delivery,
        &service("GetKeyPackageStock"),
        "{}",
        Some(&authorization),
    )
    .await;
    assert!(stock.is_object(), "{stock}");
    let info = call(
        &delivery,
        &service("GetGroupInfo"),
        &body,
        Some(&authorization),
    )
    .await;
    assert!(info["groupInfo"].is_string(), "{info}");
    let log = call(&delivery, &service("ReadLog"), &body, Some(&authorization)).await;
    assert!(log.is_object(), "{log}");
    world.stop().await.unwrap();
}
