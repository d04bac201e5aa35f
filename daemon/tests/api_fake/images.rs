//! The node's images.

use futures::StreamExt;
use futures::future::BoxFuture;
use skep_daemon::api::backend::*;

use super::{Fake, now_ns};

impl Fake {
    /// Adds an image, as loading one would.
    pub(crate) fn add_image(&self, reference: &str) {
        let mut state = self.state();
        let id = format!("sha256:{:0>64x}", state.images.len() + 10);
        state.images.push(Image {
            id,
            references: vec![reference.to_owned()],
            created_ns: now_ns(),
            size: 1_234_567,
            architecture: "amd64".to_owned(),
            os: "linux".to_owned(),
            config: ImageConfig { cmd: vec!["sh".to_owned()], ..ImageConfig::default() },
            layers: vec![format!("sha256:{:0>64x}", 5)],
            history: vec![ImageHistory { created_by: "load".to_owned(), ..ImageHistory::default() }],
            ..Image::default()
        });
    }

    fn inspect_last(&self) -> String {
        self.state().images.last().map(|i| i.id.clone()).unwrap_or_default()
    }
}

impl Images for Fake {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Image>, Failure>> {
        Box::pin(async move { Ok(self.state().images.clone()) })
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Image, Failure>> {
        Box::pin(async move {
            let state = self.state();
            let short = |image: &&Image| {
                image.id == name
                    || image.id.trim_start_matches("sha256:").starts_with(name)
                    || image.references.iter().any(|r| r == name || r.trim_end_matches(":latest") == name)
            };
            let found = state.images.iter().find(short).cloned();
            found.ok_or_else(|| Failure::NotFound(format!("No such image: {name}")))
        })
    }

    fn load(&self, mut archive: Upload) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let mut size = 0;
            while let Some(piece) = archive.next().await {
                size += piece.map_err(|e| Failure::Invalid(format!("the archive is truncated: {e}")))?.len();
            }
            if size == 0 {
                return Err(Failure::Invalid("the archive is empty".to_owned()));
            }
            self.add_image("loaded:latest");
            Ok(vec!["loaded:latest".to_owned()])
        })
    }

    fn import(&self, root: Upload, request: Import) -> BoxFuture<'_, Result<String, Failure>> {
        Box::pin(async move {
            root.for_each(|_| std::future::ready(())).await;
            self.add_image(&request.reference);
            Ok(self.inspect_last())
        })
    }

    fn save(&self, names: Vec<String>) -> BoxFuture<'_, Result<Upload, Failure>> {
        Box::pin(async move {
            for name in &names {
                Images::inspect(self, name).await?;
            }
            let pieces = names.into_iter().map(|name| Ok(bytes::Bytes::from(name)));
            Ok(Box::pin(futures::stream::iter(pieces.collect::<Vec<_>>())) as _)
        })
    }

    fn tag<'a>(&'a self, name: &'a str, reference: &'a str) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let image = Images::inspect(self, name).await?;
            let mut state = self.state();
            for found in state.images.iter_mut().filter(|i| i.id == image.id) {
                found.references.push(reference.to_owned());
            }
            Ok(())
        })
    }

    fn remove<'a>(&'a self, name: &'a str, _: bool) -> BoxFuture<'a, Result<Vec<Removed>, Failure>> {
        Box::pin(async move {
            let image = Images::inspect(self, name).await?;
            self.state().images.retain(|i| i.id != image.id);
            let mut removed: Vec<Removed> = image.references.into_iter().map(Removed::Untagged).collect();
            removed.push(Removed::Deleted(image.id));
            Ok(removed)
        })
    }
}
