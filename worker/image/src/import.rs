//! A root file system's tar into an image of one layer.

use std::io::Read;

use jiff::Timestamp;

use crate::blob;
use crate::change;
use crate::codec::{Metered, decompress};
use crate::config::{ConfigFile, History, RootFs, RunConfig, host_architecture};
use crate::error::{Error, Result};
use crate::limits::{Budget, Limits};
use crate::load::{Candidate, stage_document};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_MANIFEST, layer_media_type};
use crate::reference::Reference;
use crate::store::{Loaded, Store};

impl Store {
    /// Makes an image of the tar of a root file system, plain or compressed with gzip or zstd.
    ///
    /// `reference` is its name, with `:latest` if there is no tag. `changes` are Dockerfile instructions
    /// (`CMD ["/x"]`, `ENV A=b`, …) that fill its config, `comment` stands in its history. On an error nothing is in the
    /// store.
    pub fn import(
        &self,
        rootfs_tar: impl Read,
        reference: Option<&str>,
        changes: &[String],
        comment: Option<&str>,
        limits: &Limits,
    ) -> Result<Loaded> {
        let reference = reference.map(Reference::parse).transpose()?;
        if let Some(pinned) = reference.as_ref().filter(|reference| reference.digest().is_some()) {
            return Err(Error::Invalid(format!("{pinned} has a digest; name the new image without one")));
        }
        let mut config = RunConfig::default();
        for change in changes {
            change::apply(&mut config, change)?;
        }
        let mut staging = self.stage()?;
        let mut budget = Budget::new("bytes of the archive", limits.archive_bytes);
        let (_, stream) = decompress(rootfs_tar).map_err(Error::reading)?;
        let layer = blob::stage(Metered { inner: stream, budget: &mut budget }, staging.fresh())?;
        let created = Some(Timestamp::now());
        let comment = comment.unwrap_or("Imported from -").to_owned();
        let file = ConfigFile {
            created,
            architecture: host_architecture().to_owned(),
            os: "linux".to_owned(),
            config,
            rootfs: RootFs { diff_ids: vec![layer.digest.clone()], ..RootFs::default() },
            history: vec![History { created, comment, ..History::default() }],
            ..ConfigFile::default()
        };
        let config = stage_document(&mut staging, &file)?;
        let kind = layer_media_type(layer.compression);
        let manifest = Manifest::new(
            Descriptor::new(OCI_CONFIG, config.digest.clone(), config.size),
            vec![Descriptor::new(&kind, layer.digest.clone(), layer.size)],
        );
        let manifest = stage_document(&mut staging, &manifest)?;
        let candidate = Candidate {
            digests: vec![manifest.digest.clone()],
            config,
            config_type: OCI_CONFIG.to_owned(),
            manifest,
            manifest_type: OCI_MANIFEST.to_owned(),
            layers: vec![(layer, kind)],
            references: reference.into_iter().collect(),
        };
        let loaded = self.install(vec![candidate], &mut staging, limits, true)?;
        loaded.into_iter().next().ok_or_else(|| Error::Invalid("the import made no image".to_owned()))
    }
}
