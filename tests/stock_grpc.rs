//! A gRPC client that knows nothing of us: it verifies the server by its host name, as stock tools do,
//! learns services and messages from reflection, and calls every method by what it has learnt.

// Helpers of tests are no tests to clippy's `allow-unwrap-in-tests`.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use support::lab::{DATA, GRPC_PORT, Lab, ZERO};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_stream::StreamExt as _;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// Ordinary TLS: the cluster's authority is trusted, and the certificate must be of `host`.
async fn channel(lab: &Lab, role: &str, host: String) -> Channel {
    let own = lab.cluster_dir().join("contexts").join(role);
    channel_with(lab, &own, host).await
}

/// The same with the certificate and key of this path, but for the ending.
async fn channel_with(lab: &Lab, own: &Path, host: String) -> Channel {
    let read = |file: &Path| CertificateDer::from_pem_file(file).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(read(&lab.cluster_dir().join("contexts/ca.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(own.with_extension("key")).unwrap();
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![read(&own.with_extension("pem"))], key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = TlsConnector::from(Arc::new(config));
    let address = format!("{}:{GRPC_PORT}", lab.address(DATA[0]));
    let endpoint = Endpoint::from_shared(format!("http://{host}:{GRPC_PORT}")).unwrap();
    let connect = tower::service_fn(move |_: Uri| {
        let (tls, address, host) = (tls.clone(), address.clone(), host.clone());
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from(host).unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    endpoint.connect_with_connector(connect).await.unwrap()
}

/// Messages of a type that is known only at run time.
#[derive(Clone)]
struct Learnt(MessageDescriptor);

impl Codec for Learnt {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = Learnt;
    type Decoder = Learnt;

    fn encoder(&mut self) -> Learnt {
        self.clone()
    }

    fn decoder(&mut self) -> Learnt {
        self.clone()
    }
}

impl Encoder for Learnt {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Learnt {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        let message = DynamicMessage::decode(self.0.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

async fn ask(channel: &Channel, request: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let answer: ServerReflectionResponse = answers.into_inner().next().await.unwrap().unwrap();
    answer.message_response.unwrap()
}

/// Every service by name, and the messages that it speaks in.
async fn learn(channel: &Channel) -> (Vec<String>, DescriptorPool) {
    let MessageResponse::ListServicesResponse(list) =
        ask(channel, MessageRequest::ListServices(String::new())).await
    else {
        panic!("reflection does not list services");
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    let mut pool = DescriptorPool::new();
    for name in &names {
        let MessageResponse::FileDescriptorResponse(files) =
            ask(channel, MessageRequest::FileContainingSymbol(name.clone())).await
        else {
            panic!("reflection does not describe {name}");
        };
        let files = files.file_descriptor_proto.iter();
        let files = files.map(|file| prost_types::FileDescriptorProto::decode(file.as_slice()));
        pool.add_file_descriptor_protos(files.map(Result::unwrap)).unwrap();
    }
    (names, pool)
}

/// Calls it with an empty request; the first answer.
async fn call(channel: &Channel, method: &MethodDescriptor) -> Result<DynamicMessage, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse().unwrap();
    let request = Request::new(DynamicMessage::new(method.input()));
    let codec = Learnt(method.output());
    if method.is_client_streaming() {
        let message = Request::new(tokio_stream::once(request.into_inner()));
        let mut answers = client.streaming(message, path, codec).await?.into_inner();
        let none = || Err(Status::ok("no answer"));
        answers.next().await.unwrap_or_else(none)
    } else if method.is_server_streaming() {
        let mut answers = client.server_streaming(request, path, codec).await?.into_inner();
        answers.next().await.unwrap()
    } else {
        Ok(client.unary(request, path, codec).await?.into_inner())
    }
}

#[test]
fn a_client_that_knows_nothing_of_us_lists_and_calls_every_method_through_reflection() {
    let lab = Lab::founded(ZERO);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // By the node's name, and by the host of its address.
        for host in [DATA[0].to_owned(), lab.address(DATA[0]).to_owned()] {
            channel(&lab, "viewer", host).await;
        }
        let viewer = channel(&lab, "viewer", DATA[0].to_owned()).await;
        let (names, pool) = learn(&viewer).await;
        let mut called = Vec::new();
        for name in &names {
            for method in pool.get_service_by_name(name).unwrap().methods() {
                if method.is_client_streaming() {
                    continue; // reflection itself, which has just been called
                }
                let answer = call(&viewer, &method).await;
                let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
                assert!(code != Code::Unimplemented, "{method:?}: {answer:?}");
                called.push((method.full_name().to_owned(), code, answer.ok()));
            }
        }
        let of = |name: &str| called.iter().find(|(called, _, _)| called == name).unwrap();
        let (_, code, status) = of("understudy.v1.Admin.GetStatus");
        assert_eq!(*code, Code::Ok);
        let status = status.as_ref().unwrap().get_field_by_name("status").unwrap().into_owned();
        let active = status.as_message().unwrap().get_field_by_name("active").unwrap();
        assert_eq!(active.as_str(), Some(DATA[0]));
        assert_eq!(of("understudy.v1.Admin.WatchStatus").1, Code::Ok);
        assert_eq!(of("understudy.v1.Admin.Failover").1, Code::PermissionDenied);
        assert_eq!(of("grpc.health.v1.Health.Check").1, Code::Ok);
    });
}

/// The cells of docs/access.md: method, and for each caller whether they may.
fn matrix() -> Vec<(String, Vec<bool>)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/access.md");
    let text = std::fs::read_to_string(path).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| ") && line.contains('/'));
    let row = |line: &str| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let service = if cells[0].starts_with("grpc.") { "" } else { "understudy.v1." };
        let method = format!("{service}{}", cells[0].replace('/', "."));
        (method, cells[1..].iter().map(|cell| *cell == "yes").collect())
    };
    rows.map(row).collect()
}

#[test]
fn every_caller_may_call_what_the_documented_table_says_and_nothing_else() {
    let lab = Lab::founded(ZERO);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let matrix = matrix();
    let refused = runtime.block_on(async {
        let viewer = channel(&lab, "viewer", DATA[0].to_owned()).await;
        let (_, pool) = learn(&viewer).await;
        let node = lab.node_dir(DATA[1]).join("tls/node");
        let mut refused = 0;
        let callers = ["node", "viewer", "operator", "administrator", "break-glass"];
        for (place, caller) in callers.into_iter().enumerate() {
            let channel = match caller {
                "node" => channel_with(&lab, &node, DATA[0].to_owned()).await,
                role => channel(&lab, role, DATA[0].to_owned()).await,
            };
            for (name, cells) in &matrix {
                let (service, method) = name.rsplit_once('.').unwrap();
                let Some(service) = pool.get_service_by_name(service) else {
                    // Of the two versions of reflection the older one is not listed.
                    assert!(service.contains("v1alpha"), "{service} is not listed");
                    continue;
                };
                let method = service.methods().find(|found| found.name() == method).unwrap();
                // Some wait for more before they answer: then they have let the caller in.
                let patience = Duration::from_secs(3);
                let answer = tokio::time::timeout(patience, call(&channel, &method)).await;
                let denied =
                    matches!(&answer, Ok(Err(status)) if status.code() == Code::PermissionDenied);
                assert_eq!(!denied, cells[place], "{caller} calls {name}: {answer:?}");
                refused += usize::from(denied);
            }
        }
        refused
    });
    assert!(matrix.len() > 30 && refused > 50, "{} rows, {refused} refusals", matrix.len());
    assert!(lab.status().unwrap()["operations"].as_array().unwrap().is_empty());
}
