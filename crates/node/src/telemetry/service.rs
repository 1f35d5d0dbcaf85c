//! The service: viewers see what is logged, administrators change it.

use std::time::Duration;

use tonic::{Request, Response, Status};
use understudy_proto::v1;
use understudy_proto::v1::log_server::Log;
use understudy_transport::peer;
use understudy_types::NodeName;

use super::LogControl;
use super::control::Level;

/// A change cannot have a later end: a week.
const LASTING_MAX: Duration = Duration::from_secs(604_800);

/// The service.
#[derive(Clone, Debug)]
pub(crate) struct LogService {
    node: NodeName,
    control: LogControl,
}

impl LogService {
    /// A service over this daemon's log.
    pub(crate) fn new(node: NodeName, control: LogControl) -> LogService {
        LogService { node, control }
    }

    fn told(&self, level: Level) -> Response<v1::LogLevelResponse> {
        Response::new(v1::LogLevelResponse {
            node: self.node.to_string(),
            filter: level.filter,
            configured: level.configured,
            until_unix_us: level.until_unix_us,
        })
    }
}

#[tonic::async_trait]
impl Log for LogService {
    async fn get_level(
        &self,
        _: Request<v1::GetLogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        Ok(self.told(self.control.level()))
    }

    async fn set_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Result<Response<v1::LogLevelResponse>, Status> {
        let caller = peer(&request)?.identity.to_string();
        let v1::SetLogLevelRequest { filter, for_seconds, reset } = request.into_inner();
        let max = LASTING_MAX.as_secs();
        if for_seconds > max {
            let words =
                format!("for_seconds = {for_seconds}: expected 1 to {max}, or 0 for no end");
            return Err(Status::invalid_argument(words));
        }
        if reset && !(filter.is_empty() && for_seconds == 0) {
            let words = "reset = true: expected no filter and no end beside it";
            return Err(Status::invalid_argument(words));
        }
        let lasting = (for_seconds > 0).then(|| Duration::from_secs(for_seconds));
        let from = self.control.level().filter;
        let level = match reset {
            true => self.control.reset().map_err(Status::internal)?,
            false => self.control.set(&filter, lasting).map_err(Status::invalid_argument)?,
        };
        tracing::info!(caller, from, to = level.filter, for_seconds, "log level changes");
        Ok(self.told(level))
    }
}
