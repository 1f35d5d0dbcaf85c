//! `pg_basebackup` through a tunnel between two gRPC ends.

use std::pin::Pin;

use futures::Stream;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use understudy_proto::v1::wal_server::{Wal, WalServer};
use understudy_proto::v1::{
    FetchTailRequest, Frame, FromSource, SealRequest, SealResponse, ToSource, TunnelChunk,
};
use understudy_shipping::tunnel::{TunnelListener, TunnelTarget, serve_tunnel};

use super::postgres::{PORT, Server, command, directory, owner, run};

struct FarEnd(TunnelTarget);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Wal for FarEnd {
    type StreamStream = Answers<FromSource>;
    type TunnelStream = Answers<TunnelChunk>;
    type FetchTailStream = Answers<Frame>;

    async fn stream(
        &self,
        _request: Request<Streaming<ToSource>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<TunnelChunk>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        Ok(Response::new(Box::pin(serve_tunnel(self.0.clone(), request.into_inner()))))
    }

    async fn seal(&self, _: Request<SealRequest>) -> Result<Response<SealResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn fetch_tail(
        &self,
        _: Request<FetchTailRequest>,
    ) -> Result<Response<Self::FetchTailStream>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pg_basebackup_passes_the_tunnel_and_other_roles_do_not() {
    let dir = directory();
    let server = Server::create(dir.path(), "primary").await;
    server.sql("CREATE ROLE understudy_rewind LOGIN REPLICATION");
    server.sql("CREATE TABLE t AS SELECT md5(g::text) FROM generate_series(1, 50000) g");
    let target = TunnelTarget {
        socket_dir: server.socket_dir.clone(),
        port: PORT,
        users: vec!["understudy_rewind".to_owned()],
    };
    let stop = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let far = tonic::transport::Server::builder()
        .add_service(WalServer::new(FarEnd(target)))
        .serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            stop.clone().cancelled_owned(),
        );
    let far = tokio::spawn(far);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let near_dir = dir.path().join("near");
    std::fs::create_dir(&near_dir).unwrap();
    let uids = vec![owner().0];
    let near = TunnelListener::bind(&near_dir, 6000, uids, 4, endpoint.connect_lazy()).unwrap();
    let near = tokio::spawn(near.run(stop.clone()));

    let copy = dir.path().join("copy");
    let backup = |user: &str| {
        let mut backup = command("pg_basebackup");
        backup.arg("-D").arg(&copy).arg("-h").arg(&near_dir);
        backup.args(["-p", "6000", "-U", user, "-X", "stream", "-c", "fast", "-N"]);
        backup
    };
    let mut refused = backup("postgres");
    let output = tokio::task::spawn_blocking(move || refused.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("role \"postgres\" may not pass the tunnel"), "{said}");
    let mut admitted = backup("understudy_rewind");
    tokio::task::spawn_blocking(move || run(&mut admitted)).await.unwrap();
    run(command("pg_verifybackup").arg(&copy));

    drop(server);
    let mut nobody = backup("understudy_rewind");
    let output = tokio::task::spawn_blocking(move || nobody.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("PostgreSQL at the far end does not answer"), "{said}");
    stop.cancel();
    near.await.unwrap();
    far.await.unwrap().unwrap();
}
