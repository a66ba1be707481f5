//! A listener as clients and operators meet it: TLS, request ids, metrics, readiness, the end.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use service_kit::{
    db::{Db, PoolOptions},
    lifecycle::{Shutdown, spawn_short},
    listen::{Bound, TlsFiles, bind},
    ops,
    server::{ServerOptions, Services, serve_grpc},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::{
    Request,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

async fn plain() -> Bound {
    bind(&"127.0.0.1:0".parse().unwrap(), None, false)
        .await
        .unwrap()
}

fn serve(bound: Bound, shutdown: &Shutdown) -> JoinHandle<anyhow::Result<()>> {
    let options = ServerOptions::new("test");
    spawn_short(serve_grpc(
        bound,
        Services::new(),
        options,
        shutdown.clone(),
    ))
}

async fn client(url: String) -> HealthClient<Channel> {
    HealthClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap())
}

async fn get(bound_url: &str, path: &str) -> (String, String) {
    let address = bound_url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test]
async fn a_tls_listener_speaks_tls_and_nothing_else() {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let files = TlsFiles {
        cert: folder.path().join("cert.pem"),
        key: folder.path().join("key.pem"),
    };
    std::fs::write(&files.cert, cert.pem()).unwrap();
    std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let bound = bind(&any, Some(&files), false).await.unwrap();
    let url = bound.url();
    assert!(url.starts_with("https://127.0.0.1:"));
    let shutdown = Shutdown::new();
    let served = serve(bound, &shutdown);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(cert.pem()))
        .domain_name("localhost");
    let channel = Endpoint::from_shared(url.clone())
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap();
    HealthClient::new(channel)
        .check(HealthCheckRequest::default())
        .await
        .unwrap();
    let plaintext = Endpoint::from_shared(url.replace("https", "http")).unwrap();
    let refused = async {
        let channel = plaintext.connect().await.ok()?;
        let mut client = HealthClient::new(channel);
        client.check(HealthCheckRequest::default()).await.ok()
    };
    assert!(refused.await.is_none());
    shutdown.abort();
    served.await.unwrap().unwrap();
}

#[tokio::test]
async fn every_answer_carries_a_request_id_of_bounded_length() {
    let bound = plain().await;
    let mut client_of = {
        let url = bound.url();
        let shutdown = Shutdown::new();
        serve(bound, &shutdown);
        client(url).await
    };
    let mut ask = async |id: Option<&str>| {
        let mut request = Request::new(HealthCheckRequest::default());
        if let Some(id) = id {
            let value = id.parse().unwrap();
            request.metadata_mut().insert("x-request-id", value);
        }
        let answer = client_of.check(request).await.unwrap();
        let id = answer.metadata().get("x-request-id").unwrap();
        id.to_str().unwrap().to_owned()
    };
    assert_eq!(ask(Some("mine-42")).await, "mine-42");
    let made = ask(None).await;
    assert!(!made.is_empty() && made != ask(None).await);
    let long = "x".repeat(65);
    assert_ne!(ask(Some(&long)).await, long);
}

#[tokio::test]
async fn metrics_and_health_say_what_happens() {
    let bound = plain().await;
    let ops_bound = plain().await;
    let (url, ops_url) = (bound.url(), ops_bound.url());
    let shutdown = Shutdown::new();
    let nobody = PoolOptions {
        pool_wait_millis: 200,
        ..PoolOptions::default()
    };
    let db = Db::connect("postgres://x@127.0.0.1:1/x", &nobody).unwrap();
    let readiness = ops::Readiness::default();
    let ops = spawn_short(ops::serve_ops(ops_bound, db, readiness, shutdown.clone()));
    serve(bound, &shutdown);
    let (status, _) = get(&ops_url, "/healthz").await;
    assert!(status.contains("200"), "{status}");
    let (status, body) = get(&ops_url, "/readyz").await;
    assert!(
        status.contains("503") && body.contains("database"),
        "{status} {body}"
    );
    let mut client = client(url).await;
    client.check(HealthCheckRequest::default()).await.unwrap();
    let unknown = HealthCheckRequest {
        service: "nobody".into(),
    };
    client.check(unknown).await.unwrap_err();
    let (_, body) = get(&ops_url, "/metrics").await;
    for wanted in [
        "chancery_test_requests_total",
        "code=\"0\"",
        "code=\"5\"",
        "chancery_test_request_seconds",
    ] {
        assert!(body.contains(wanted), "{wanted} is not in {body}");
    }
    shutdown.begin();
    ops.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_stream_holds_the_drain_and_the_deadline_ends_it() {
    let bound = plain().await;
    let url = bound.url();
    let shutdown = Shutdown::new();
    let served = serve(bound, &shutdown);
    let mut client = client(url).await;
    let mut watching = client
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    watching.message().await.unwrap().unwrap();
    shutdown.begin();
    let mut served = served;
    let early = tokio::time::timeout(Duration::from_millis(200), &mut served).await;
    assert!(early.is_err(), "the stream is still open");
    shutdown.abort();
    served.await.unwrap().unwrap();
}
