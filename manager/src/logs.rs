//! A service's logs, wherever its tasks run: asks every manager for the tasks whose workers it serves and joins the
//! streams. What can't be had is said per task; the rest goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use skep_proto::v1::peers_client::PeersClient;
use skep_proto::v1::{LogBatch, LogFailure, LogOptions, TaskLogsRequest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Manager;

/// Batches that may wait for a slow reader.
const QUEUE: usize = 64;
/// How long a manager may take to begin its answer.
const BEGIN_WITHIN: Duration = Duration::from_secs(5);

type Batches = std::pin::Pin<Box<dyn futures::Stream<Item = Result<LogBatch, Status>> + Send>>;

impl Manager {
    /// Logs of the given tasks from all nodes. Ends when every worker has finished, or with `follow` when the reader
    /// goes. Failures of single nodes are part of the stream.
    pub fn task_logs(&self, task_ids: Vec<String>, options: LogOptions) -> mpsc::Receiver<LogBatch> {
        let (out, reader) = mpsc::channel(QUEUE);
        let this = self.clone();
        self.tasks.spawn(async move {
            let read = out.clone();
            tokio::select! {
                () = this.gather_logs(task_ids, options, out) => {}
                () = read.closed() => {}
                () = this.stop.cancelled() => {}
            }
        });
        reader
    }

    async fn gather_logs(&self, task_ids: Vec<String>, options: LogOptions, out: mpsc::Sender<LogBatch>) {
        let view = self.store.view();
        let request =
            TaskLogsRequest { task_ids: task_ids.clone(), options: Some(options), ..TaskLogsRequest::default() };
        let mut missing: BTreeSet<String> = task_ids.into_iter().collect();
        let mut streams = Vec::new();
        for node in view.state.nodes() {
            let Some(manager) = &node.manager else { continue };
            let stream = if node.id == self.node_id {
                self.dispatcher
                    .task_logs(request.clone())
                    .await
                    .map(|lines| Box::pin(ReceiverStream::new(lines)) as Batches)
            } else {
                self.remote_logs(&manager.address, request.clone()).await
            };
            match stream {
                Ok(stream) => streams.push(stream),
                Err(status) => {
                    tracing::debug!(node.id = node.id, error = status.message(), "a manager has no logs to give")
                }
            }
        }
        // The first batch of each tells which tasks it covers; what nobody covers has no connected worker.
        let mut open = Vec::new();
        for mut stream in streams {
            if let Ok(Some(Ok(batch))) = tokio::time::timeout(BEGIN_WITHIN, stream.next()).await {
                for task in &batch.covered_task_ids {
                    missing.remove(task);
                }
                open.push(stream);
            }
        }
        let failures = missing.into_iter().filter_map(|task_id| {
            // A task that was never placed has no log, and that is no failure.
            let node_id = view.state.task(&task_id).map(|t| t.node_id.clone()).filter(|n| !n.is_empty())?;
            Some(LogFailure { task_id, node_id, message: "the node is not connected to any manager".to_owned() })
        });
        let failures: Vec<_> = failures.collect();
        if !failures.is_empty() && out.send(LogBatch { failures, ..LogBatch::default() }).await.is_err() {
            return;
        }
        let mut all = futures::stream::select_all(open);
        while let Some(batch) = all.next().await {
            match batch {
                Ok(batch) => {
                    if out.send(batch).await.is_err() {
                        return;
                    }
                }
                Err(status) => tracing::debug!(error = status.message(), "a stream of logs broke off"),
            }
        }
    }

    async fn remote_logs(&self, address: &str, request: TaskLogsRequest) -> Result<Batches, Status> {
        let channel = self.control.dialer.channel(address).map_err(|e| Status::unavailable(e.to_string()))?;
        let mut client = PeersClient::new(channel);
        let answer = tokio::time::timeout(BEGIN_WITHIN, client.task_logs(request))
            .await
            .map_err(|_| Status::deadline_exceeded("the manager did not answer"))??;
        Ok(Box::pin(answer.into_inner()))
    }
}
