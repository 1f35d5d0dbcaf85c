//! The admin service with what stock gRPC tools expect beside it: reflection and health.

use std::sync::Arc;

use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::{Builder, Error};
use understudy_proto::v1::admin_server::AdminServer;

use super::AdminService;
use crate::status::{ClusterStatus, WritabilityFn, readiness};

/// Admin, reflection (v1 and v1alpha) and health, to which further services can be added. Health
/// speaks for the node once [`report_health`] runs.
///
/// # Errors
/// When the descriptors that were compiled in cannot be read.
pub fn admin_routes(service: AdminService) -> Result<(Routes, HealthReporter), Error> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(understudy_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let routes = Routes::new(AdminServer::new(service))
        .add_service(builder().build_v1()?)
        .add_service(builder().build_v1alpha()?)
        .add_service(health);
    Ok((routes, reporter))
}

/// Keeps the health service at the node's readiness, until the snapshots end.
pub async fn report_health(
    reporter: HealthReporter,
    mut status: watch::Receiver<Arc<ClusterStatus>>,
    writability: WritabilityFn,
) {
    loop {
        let ready = readiness(&status.borrow_and_update(), writability().writable).ready;
        let serving = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        // The empty name stands for the server as a whole; Admin answers whenever the process does.
        reporter.set_service_status("", serving).await;
        reporter.set_serving::<AdminServer<AdminService>>().await;
        if status.changed().await.is_err() {
            return reporter.set_service_status("", ServingStatus::NotServing).await;
        }
    }
}
