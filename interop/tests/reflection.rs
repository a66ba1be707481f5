//! The calls in `docs/protocol.md`, as grpcurl makes them: by reflection alone, on the services here.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;

use base64::Engine as _;
use interop::{contract_member::ContractMember, mls_rs_engine, stack::Stack as _, world::World};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, ReflectMessage as _};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

const DOCS: &str = include_str!("../../docs/protocol.md");

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

/// Words of a shell line; quotes of both kinds hold words together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), close) if open == close => quote = None,
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calls_of_the_documentation_work_by_reflection_alone() {
    let world = World::start().await.unwrap();
    let place = world.place();
    let mut member = ContractMember::enroll(&world, "member", 1, mls_rs_engine::start)
        .await
        .unwrap();
    let group = member.create().await.unwrap();
    let authorization = member.authorization().unwrap();
    let channels = [
        ("$DS", channel(&place.delivery_url).await),
        ("$AS", channel(&place.auth_url).await),
    ];
    let mut calls = 0;
    for line in DOCS.lines().filter(|line| line.starts_with("grpcurl ")) {
        let group_id = base64::engine::general_purpose::STANDARD.encode(&group);
        let words: Vec<String> = words(line)
            .into_iter()
            .map(|word| word.replace("$GROUP_ID", &group_id))
            .map(|word| word.replace("Bearer $TOKEN", &authorization))
            .collect();
        let after = |flag: &str| {
            let place = words.iter().position(|word| word == flag)?;
            words.get(place + 1).map(String::as_str)
        };
        let at = words.iter().position(|word| word.starts_with('$')).unwrap();
        let (_, channel) = channels
            .iter()
            .find(|(name, _)| *name == words[at])
            .unwrap();
        match words[at + 1].as_str() {
            "list" => {
                let request = MessageRequest::ListServices(String::new());
                let MessageResponse::ListServicesResponse(list) = ask(channel, request).await
                else {
                    panic!("no list");
                };
                let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
                assert!(
                    names.contains(&"chancery.delivery.v1.DeliveryService"),
                    "{names:?}"
                );
            }
            "describe" => {
                let (service, method) = words[at + 2].rsplit_once('.').unwrap();
                let pool = pool(channel, service).await;
                let service = pool.get_service_by_name(service).unwrap();
                assert!(service.methods().any(|m| m.name() == method), "{line}");
            }
            method => {
                let answer = call(channel, method, after("-d").unwrap(), after("-H")).await;
                assert!(answer.is_object(), "{line}");
                if method.ends_with("GetGroupInfo") {
                    assert!(answer["groupInfo"].is_string(), "{answer}");
                }
            }
        }
        calls += 1;
    }
    assert_eq!(calls, 7, "calls in docs/protocol.md");
    world.stop().await.unwrap();
}
