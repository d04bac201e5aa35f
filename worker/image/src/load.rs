//! Archives into images: what `docker save`, `skopeo`, `buildx` and this store write, plain or compressed.
//!
//! Decides which images an archive holds for this machine, and makes them visible all at once. Every
//! document and layer is checked against the digest that names it before anything can be seen.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::blob::{self, Staged};
use crate::codec::{Compression, Hashing, Metered, decompress};
use crate::config::ConfigFile;
use crate::digest::{Digest, chain_ids};
use crate::error::{Error, Result, io_at};
use crate::limits::{Budget, LimitExceeded, Limits};
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::staging::{Staging, sync_parent};
use crate::store::{LayerFile, LayerRecord, Loaded, Record, Store, damaged, write_json};
use crate::unpack::{Budgets, unpack};

mod bundle;
mod contents;

use bundle::Bundle;

/// How often a load starts over because layers that it wanted to share were removed meanwhile.
const ATTEMPTS: usize = 5;

/// An image in a staging directory, its documents checked, its layers not yet.
pub(crate) struct Candidate {
    pub(crate) config: Staged,
    pub(crate) config_type: String,
    pub(crate) manifest: Staged,
    pub(crate) manifest_type: String,
    /// Blobs of the layers with their media types, base first.
    pub(crate) layers: Vec<(Staged, String)>,
    pub(crate) references: Vec<Reference>,
    /// Digests under which a registry may know it: of its manifest, of the index that it came in.
    pub(crate) digests: Vec<Digest>,
}

impl Store {
    /// Loads all images of an archive: a `docker save` tar or a tar of an OCI layout, either plain or
    /// compressed with gzip or zstd. Of a multi-platform image this machine's is taken.
    ///
    /// On an error nothing of the archive is in the store.
    pub fn load(&self, archive: impl Read, limits: &Limits) -> Result<Vec<Loaded>> {
        let mut staging = self.stage()?;
        let bundle = Bundle::from_tar(archive, &mut staging, limits)?;
        let candidates = contents::candidates(&bundle, &mut staging, limits)?;
        self.install(candidates, &mut staging, limits, false)
    }

    /// The same for an OCI layout that lies in a directory.
    pub fn load_dir(&self, oci_layout: &Path, limits: &Limits) -> Result<Vec<Loaded>> {
        let mut staging = self.stage()?;
        let bundle = Bundle::from_dir(oci_layout, &mut staging, limits)?;
        let candidates = contents::candidates(&bundle, &mut staging, limits)?;
        self.install(candidates, &mut staging, limits, false)
    }

    /// Checks and unpacks layers, then makes the candidates visible. `require_end`: layers must end with
    /// tar's end mark, since no independent digest vouches for them.
    pub(crate) fn install(
        &self,
        candidates: Vec<Candidate>,
        staging: &mut Staging,
        limits: &Limits,
        require_end: bool,
    ) -> Result<Vec<Loaded>> {
        let mut installer = Installer {
            store: self,
            staging,
            limits,
            require_end,
            budgets: Budgets::new(limits),
            raw: Budget::new("bytes of all layers", raw_limit(limits)),
            unpacked: HashMap::new(),
        };
        let images = candidates.into_iter().map(|candidate| installer.plan(candidate)).collect::<Result<Vec<_>>>()?;
        for _ in 0..ATTEMPTS {
            for image in &images {
                installer.unpack_missing(image)?;
            }
            let root = File::open(self.root()).map_err(io_at("open", self.root()))?;
            rustix::fs::syncfs(&root).map_err(|e| io_at("sync", self.root())(e.into()))?;
            let _lock = self.lock()?;
            if installer.complete(&images)? {
                return installer.commit(images);
            }
        }
        let why = "layers are being removed at the same time; try again".to_owned();
        Err(Error::Conflict { name: "the loaded image".to_owned(), why })
    }
}

/// Payload plus the headers that so many entries need.
fn raw_limit(limits: &Limits) -> u64 {
    limits.unpacked_bytes.saturating_add(limits.entries.saturating_mul(2048))
}

struct Planned {
    candidate: Candidate,
    layers: Vec<LayerRecord>,
}

struct Installer<'a> {
    store: &'a Store,
    staging: &'a mut Staging,
    limits: &'a Limits,
    require_end: bool,
    budgets: Budgets,
    /// Bytes of the layers' tars, so that padding can't be endless either.
    raw: Budget,
    /// Chain id -> staged layer.
    unpacked: HashMap<Digest, PathBuf>,
}

impl Installer<'_> {
    /// What the documents say about the layers, checked as far as documents go.
    fn plan(&self, candidate: Candidate) -> Result<Planned> {
        let id = &candidate.config.digest;
        let document = candidate.config.document(self.limits.json_bytes)?;
        let config: ConfigFile = parse(&document, "config of an image")?;
        if !matches!(config.os.as_str(), "" | "linux") {
            return Err(Error::Invalid(format!("image {id} is for {}, not for linux", shorten(&config.os))));
        }
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.is_empty() || diff_ids.len() != candidate.layers.len() {
            let (stated, present) = (diff_ids.len(), candidate.layers.len());
            return Err(Error::Invalid(format!("image {id} has {present} layers, its config lists {stated}")));
        }
        LimitExceeded::check("layers of an image", diff_ids.len() as u64, self.limits.layers as u64)?;
        let records = chain_ids(&diff_ids).into_iter().zip(diff_ids).zip(&candidate.layers);
        let layers = records
            .map(|((chain_id, diff_id), (blob, media_type))| {
                let blob = Descriptor::new(media_type, blob.digest.clone(), blob.size);
                LayerRecord { chain_id, diff_id, blob }
            })
            .collect();
        Ok(Planned { candidate, layers })
    }

    fn unpack_missing(&mut self, image: &Planned) -> Result<()> {
        for (at, layer) in image.layers.iter().enumerate() {
            if self.unpacked.contains_key(&layer.chain_id) {
                continue;
            }
            let (blob, _) = &image.candidate.layers[at];
            if self.store.layer_file(&layer.chain_id)?.is_some() {
                self.verify(blob, &layer.diff_id)?;
                continue;
            }
            let path = self.unpack(blob, layer, &image.layers[..at])?;
            self.unpacked.insert(layer.chain_id.clone(), path);
        }
        Ok(())
    }

    /// The layer is here already, but its blob will be kept too, so it must be the same.
    fn verify(&mut self, blob: &Staged, diff_id: &Digest) -> Result<()> {
        if blob.compression == Compression::None {
            return same(diff_id, blob.digest.clone());
        }
        if self.store.blobs.contains(&blob.digest) {
            return Ok(());
        }
        let (_, stream) = decompress(blob.open()?).map_err(Error::reading)?;
        let mut content = Hashing::new(Metered { inner: stream, budget: &mut self.raw });
        std::io::copy(&mut content, &mut std::io::sink()).map_err(Error::reading)?;
        same(diff_id, content.finish().1)
    }

    fn unpack(&mut self, blob: &Staged, layer: &LayerRecord, below: &[LayerRecord]) -> Result<PathBuf> {
        let dir = self.staging.fresh();
        let target = new_layer(&dir)?;
        let parents = below.iter().rev().map(|parent| self.open_layer(&parent.chain_id)).collect::<Result<_>>()?;
        let before = self.budgets.bytes.used();
        let (_, stream) = decompress(blob.open()?).map_err(Error::reading)?;
        let mut content = Hashing::new(Metered { inner: stream, budget: &mut self.raw });
        unpack(&mut content, self.require_end, target, parents, self.limits, &mut self.budgets)
            .map_err(|error| Error::layer(layer.diff_id.as_str(), error))?;
        same(&layer.diff_id, content.finish().1)?;
        let size = self.budgets.bytes.used() - before;
        let file = LayerFile { chain_id: layer.chain_id.clone(), diff_id: layer.diff_id.clone(), size };
        write_json(&dir.join("layer.json"), &file)?;
        Ok(dir)
    }

    fn open_layer(&self, chain_id: &Digest) -> Result<OwnedFd> {
        let dir = self.unpacked.get(chain_id).cloned().unwrap_or_else(|| self.store.layer_path(chain_id));
        let path = dir.join("diff");
        File::open(&path).map(OwnedFd::from).map_err(io_at("open", &path))
    }

    /// Whether every layer is staged or in the store. The lock is held.
    fn complete(&self, images: &[Planned]) -> Result<bool> {
        for layer in images.iter().flat_map(|image| &image.layers) {
            if !self.unpacked.contains_key(&layer.chain_id) && self.store.layer_file(&layer.chain_id)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Layers and blobs first, then the record that names them, then the names. The lock is held.
    fn commit(&self, images: Vec<Planned>) -> Result<Vec<Loaded>> {
        for (chain_id, staged) in &self.unpacked {
            let path = self.store.layer_path(chain_id);
            if !path.exists() {
                fs::rename(staged, &path).map_err(io_at("create", &path))?;
            }
        }
        sync_parent(&self.store.layers_dir().join("any"))?;
        let mut references = self.store.references()?;
        let mut loaded = Vec::new();
        for image in images {
            let id = image.candidate.config.digest.clone();
            if !self.intact(&id) {
                self.record(&image)?;
            }
            let mut names = Vec::new();
            for reference in &image.candidate.references {
                let name = reference.clone().without_digest().or_latest();
                references.insert(name.to_string(), id.clone());
                names.push(name.familiar());
                for digest in &image.candidate.digests {
                    references.insert(name.pinned(digest.clone()).to_string(), id.clone());
                }
            }
            tracing::info!(image.id = %id, references = ?names, "image loaded");
            loaded.push(Loaded { id: id.to_string(), references: names });
        }
        self.store.write_references(&references)?;
        Ok(loaded)
    }

    /// Whether the image is in the store with all that belongs to it.
    fn intact(&self, id: &Digest) -> bool {
        self.store.record(id).is_ok_and(|record| {
            record.blobs().all(|digest| self.store.blobs.contains(digest))
                && record.layers.iter().all(|layer| self.store.layer_path(&layer.chain_id).exists())
        })
    }

    fn record(&self, image: &Planned) -> Result<()> {
        let candidate = &image.candidate;
        let layers = candidate.layers.iter().map(|(blob, _)| blob);
        for blob in layers.chain([&candidate.config, &candidate.manifest]) {
            self.store.blobs.adopt(blob)?;
        }
        sync_parent(&self.store.blobs.dir().join("any"))?;
        let mut size = 0;
        for layer in &image.layers {
            let file = self.store.layer_file(&layer.chain_id)?;
            size += file.map_or(0, |file| file.size);
        }
        let (config, manifest) = (&candidate.config, &candidate.manifest);
        let record = Record {
            id: config.digest.clone(),
            manifest: Descriptor::new(&candidate.manifest_type, manifest.digest.clone(), manifest.size),
            config: Descriptor::new(&candidate.config_type, config.digest.clone(), config.size),
            layers: image.layers.clone(),
            size,
        };
        write_json(&self.store.record_path(&record.id), &record)
    }
}

/// `DIR/diff`, owned by root with the mode that a root directory has where no layer says otherwise.
fn new_layer(dir: &Path) -> Result<OwnedFd> {
    let diff = dir.join("diff");
    fs::create_dir(dir).map_err(io_at("create", dir))?;
    fs::create_dir(&diff).map_err(io_at("create", &diff))?;
    fs::set_permissions(&diff, fs::Permissions::from_mode(0o755)).map_err(io_at("set the mode of", &diff))?;
    File::open(&diff).map(OwnedFd::from).map_err(io_at("open", &diff))
}

fn same(expected: &Digest, actual: Digest) -> Result<()> {
    if *expected == actual {
        return Ok(());
    }
    Err(Error::DigestMismatch { what: "a layer".to_owned(), expected: expected.clone(), actual })
}

/// A document of an archive.
pub(crate) fn parse<T: DeserializeOwned>(document: &[u8], what: &str) -> Result<T> {
    serde_json::from_slice(document).map_err(|error| Error::Invalid(format!("the {what} is malformed: {error}")))
}

/// Text of an archive, fit for a message.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A small document that was made here, in the staging directory.
pub(crate) fn stage_document(staging: &mut Staging, value: &impl serde::Serialize) -> Result<Staged> {
    let path = staging.fresh();
    let bytes = serde_json::to_vec(value).map_err(|error| damaged(&path, &error.to_string()))?;
    blob::stage(bytes.as_slice(), path)
}
