//! The node's image store, for the API. The store is synchronous: every call runs on the blocking pool, and what is
//! uploaded reaches it through a bounded pipe.

use std::collections::HashSet;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::future::BoxFuture;
use skep_image::{Limits, Store};
use skep_worker::container::IMAGE_LABEL;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::events::of_image;
use crate::api::EventHub;
use crate::api::backend::{Failure, Image, ImageConfig, ImageHistory, Images, Import, LocalEvents, Removed, Upload};
use crate::node::Node;

/// Chunks of an upload or download that may wait.
const PIPE: usize = 16;

/// Images of this node.
pub(crate) struct ImagesFacility {
    pub(crate) store: Arc<Store>,
    pub(crate) node: Arc<Node>,
    pub(crate) events: Arc<EventHub>,
}

impl ImagesFacility {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> skep_image::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || work(&store)).await {
            Ok(done) => done.map_err(|e| failure(&e)),
            Err(error) => Err(Failure::Internal(format!("the image store failed: {error}"))),
        }
    }
}

impl Images for ImagesFacility {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Image>, Failure>> {
        Box::pin(async move { Ok(self.blocking(Store::list).await?.into_iter().map(shown).collect()) })
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Image, Failure>> {
        Box::pin(async move {
            let name = name.to_owned();
            self.blocking(move |store| store.resolve(&name)).await.map(shown)
        })
    }

    fn load(&self, archive: Upload) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let reader = pipe(archive);
            let loaded = self.blocking(move |store| store.load(reader, &Limits::default())).await?;
            for image in &loaded {
                self.events.publish(of_image("load", &image.id, image.references.first().unwrap_or(&image.id)));
            }
            Ok(loaded
                .into_iter()
                .flat_map(|image| if image.references.is_empty() { vec![image.id] } else { image.references })
                .collect())
        })
    }

    fn import(&self, root: Upload, request: Import) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async move {
            let reader = pipe(root);
            let loaded = self
                .blocking(move |store| {
                    let reference = (!request.reference.is_empty()).then_some(request.reference.as_str());
                    let comment = Some(request.message.as_str()).filter(|message| !message.is_empty());
                    store.import(reader, reference, &request.changes, comment, &Limits::default())
                })
                .await?;
            self.events.publish(of_image("import", &loaded.id, loaded.references.first().unwrap_or(&loaded.id)));
            Ok(loaded.id)
        })
    }

    fn save(&self, names: Vec<String>) -> BoxFuture<'_, Result<Upload, Failure>> {
        Box::pin(async move {
            for name in &names {
                self.inspect(name).await?;
            }
            let (chunks, stream) = mpsc::channel(PIPE);
            let store = Arc::clone(&self.store);
            // Owned by the stream: when its reader goes, the next write fails and the task ends.
            tokio::task::spawn_blocking(move || {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let writer = io::BufWriter::with_capacity(64 * 1024, ChunkWriter(chunks.clone()));
                if let Err(error) = store.save(&names, writer) {
                    let _ = chunks.blocking_send(Err(io::Error::other(error.to_string())));
                }
            });
            Ok(Box::pin(ReceiverStream::new(stream)) as _)
        })
    }

    fn tag<'a>(&'a self, name: &'a str, reference: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (name, tagged) = (name.to_owned(), reference.to_owned());
            self.blocking(move |store| store.tag(&name, &tagged)).await?;
            let image = self.inspect(reference).await?;
            self.events.publish(of_image("tag", &image.id, reference));
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str, force: bool) -> BoxFuture<'a, Result<Vec<Removed>, Failure>> {
        Box::pin(async move {
            let (name, in_use) = (name.to_owned(), self.images_in_use().await?);
            let image = self.inspect(&name).await?;
            let removed = self.blocking(move |store| store.remove(&name, force, &in_use)).await?;
            for removed in &removed {
                self.events.publish(match removed {
                    skep_image::Removed::Untagged(reference) => of_image("untag", &image.id, reference),
                    skep_image::Removed::Deleted(id) => of_image("delete", id, id),
                });
            }
            Ok(removed
                .into_iter()
                .map(|removed| match removed {
                    skep_image::Removed::Untagged(reference) => Removed::Untagged(reference),
                    skep_image::Removed::Deleted(id) => Removed::Deleted(id),
                })
                .collect())
        })
    }
}

impl ImagesFacility {
    /// Ids of the images that containers of this node were made from, those that have ended included.
    async fn images_in_use(&self) -> Result<HashSet<String>, Failure> {
        let runtime = self.node.runtime();
        let unreadable = |e: skep_runtime::Error| Failure::Internal(format!("containers can't be listed: {e}"));
        let mut in_use = HashSet::new();
        for id in runtime.list().await.map_err(unreadable)? {
            let record = match runtime.inspect(&id).await {
                Ok(record) => record,
                // Gone meanwhile, or only being made: then its layers are not mounted yet.
                Err(skep_runtime::Error::NotFound(_) | skep_runtime::Error::Busy(_)) => continue,
                Err(error) => return Err(unreadable(error)),
            };
            in_use.extend(record.labels.into_iter().filter(|(name, _)| name == IMAGE_LABEL).map(|(_, id)| id));
        }
        Ok(in_use)
    }
}

fn failure(error: &skep_image::Error) -> Failure {
    // What a cause says is often said above it already.
    let text = crate::identity::causes(error);
    use skep_image::Error as E;
    match error {
        E::NotFound(_) => Failure::NotFound(text),
        E::Conflict { .. } => Failure::Conflict(text),
        E::Io { .. } | E::Damaged { .. } | E::Busy { .. } => Failure::Internal(text),
        _ => Failure::Invalid(text),
    }
}

fn shown(image: skep_image::Image) -> Image {
    let ns = |at: Option<jiff::Timestamp>| at.and_then(|t| i64::try_from(t.as_nanosecond()).ok()).unwrap_or(0);
    Image {
        id: image.id,
        references: image.references,
        digests: image.digests,
        created_ns: ns(image.created),
        size: image.size,
        architecture: image.architecture,
        os: image.os,
        author: image.author,
        config: ImageConfig {
            entrypoint: image.config.entrypoint.unwrap_or_default(),
            cmd: image.config.cmd.unwrap_or_default(),
            env: image.config.env,
            working_dir: image.config.working_dir,
            user: image.config.user,
            labels: image.config.labels,
            exposed_ports: image.config.exposed_ports.into_iter().collect(),
            volumes: image.config.volumes.into_iter().collect(),
            stop_signal: image.config.stop_signal.unwrap_or_default(),
        },
        layers: image.layers,
        history: image
            .history
            .into_iter()
            .map(|step| ImageHistory {
                created_ns: ns(step.created),
                created_by: step.created_by,
                comment: step.comment,
                size: 0,
            })
            .collect(),
    }
}

/// A blocking reader of an upload. Bounded: the client waits while the store is busy.
fn pipe(mut upload: Upload) -> impl Read + Send + 'static {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIPE);
    // Ends with the upload, or when the reader has gone.
    tokio::spawn(async move {
        while let Some(chunk) = upload.next().await {
            if sender.send(chunk).await.is_err() {
                return;
            }
        }
    });
    PipeReader { receiver, current: Bytes::new() }
}

struct PipeReader {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for PipeReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..n]);
        Ok(n)
    }
}

struct ChunkWriter(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for ChunkWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the reader has gone");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(data))).map_err(gone)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_is_said_already_is_not_said_again() {
        let cause = || io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends early");
        let repeats = skep_image::Error::Archive { why: cause().to_string(), source: Some(cause()) };
        let text = failure(&repeats).to_string();
        assert_eq!(text.matches("the archive ends early").count(), 1, "{text}");
        let adds = skep_image::Error::Archive { why: "its third file".to_owned(), source: Some(cause()) };
        assert!(failure(&adds).to_string().ends_with("its third file: the archive ends early"), "{}", failure(&adds));
    }
}
