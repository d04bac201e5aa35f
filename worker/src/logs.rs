//! Answers a manager's log subscription with the lines of this node's tasks.

use std::pin::Pin;
use std::sync::Arc;

use skep_proto::v1::dispatcher_client::DispatcherClient;
use skep_proto::v1::{LogBatch, LogFailure, LogLine, LogOptions, LogSubscription, PublishLogsRequest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Log streams that one session may have open.
pub(crate) const MAX_STREAMS: usize = 128;
/// Batches on their way to the manager.
const QUEUE: usize = 16;
/// Lines that travel together.
const LINES: usize = 256;

/// Lines of one task.
pub type Lines = Pin<Box<dyn futures::Stream<Item = Result<LogLine, String>> + Send>>;

/// Where the lines come from.
pub trait Source: Send + Sync {
    /// The log of one task's container; an error in words when there is none.
    fn lines(&self, task_id: &str, options: &LogOptions) -> Result<Lines, String>;
}

/// Streams every task of the subscription; one that can't be read is a failure among the lines of the others.
pub(crate) async fn publish(
    source: Arc<dyn Source>,
    mut client: DispatcherClient<Channel>,
    subscription: LogSubscription,
) {
    let (out, batches) = mpsc::channel(QUEUE);
    let id = subscription.id.clone();
    // The call returns when the manager has all, so it runs beside what feeds it.
    let call = client.publish_logs(ReceiverStream::new(batches));
    let feed = async {
        let gone = out.clone();
        // A quiet task that is followed would never notice that nobody listens.
        tokio::select! { () = feed(source, subscription, out) => {}, () = gone.closed() => {} }
    };
    let (answer, ()) = tokio::join!(call, feed);
    if let Err(status) = answer {
        tracing::debug!(subscription.id = id, error = status.message(), "log stream ended early");
    }
}

async fn feed(source: Arc<dyn Source>, subscription: LogSubscription, out: mpsc::Sender<PublishLogsRequest>) {
    let options = subscription.options.unwrap_or_default();
    let wrap = |batch| PublishLogsRequest { subscription_id: subscription.id.clone(), batch: Some(batch) };
    // An empty batch first: the manager knows that this node answers.
    if out.send(wrap(LogBatch::default())).await.is_err() {
        return;
    }
    let mut streams = Vec::new();
    for task_id in subscription.task_ids {
        match source.lines(&task_id, &options) {
            Ok(lines) => {
                let id = task_id.clone();
                streams.push(Box::pin(lines.map(move |line| (id.clone(), line))));
            }
            Err(message) => {
                let failures = vec![LogFailure { task_id, message, ..LogFailure::default() }];
                if out.send(wrap(LogBatch { failures, ..LogBatch::default() })).await.is_err() {
                    return;
                }
            }
        }
    }
    let merged = futures::stream::select_all(streams);
    let mut chunks = futures::StreamExt::ready_chunks(merged, LINES);
    while let Some(chunk) = chunks.next().await {
        let mut batch = LogBatch::default();
        for (task_id, line) in chunk {
            match line {
                Ok(line) => batch.lines.push(line),
                Err(message) => batch.failures.push(LogFailure { task_id, message, ..LogFailure::default() }),
            }
        }
        if out.send(wrap(batch)).await.is_err() {
            return;
        }
    }
}
