//! Logs of tasks: from anywhere in the cluster when this node is a manager.

use std::sync::Arc;

use futures::future::BoxFuture;
use skep_manager::logs::LogTasks;
use skep_proto::v1::{LogBatch, LogOptions};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::backend::{BoxStream, Failure, TaskLogs};
use crate::node::Node;

/// Logs as the API wants them.
pub(crate) struct LogsFacility(pub(crate) Arc<Node>);

impl TaskLogs for LogsFacility {
    fn task_logs(
        &self,
        task_ids: Vec<String>,
        service_id: Option<String>,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<Result<LogBatch, Failure>>, Failure>> {
        Box::pin(async move {
            let manager =
                self.0.manager().ok_or_else(|| Failure::Unavailable("this node is not a swarm manager".to_owned()))?;
            let batches = manager.task_logs(LogTasks { task_ids, service_id }, options);
            Ok(Box::pin(ReceiverStream::new(batches).map(Ok)) as _)
        })
    }
}
