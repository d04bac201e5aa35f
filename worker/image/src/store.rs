//! The store of a node: what images there are, what they are called, where their layers lie.
//!
//! Reads take no lock: each file is replaced atomically, and what a record names exists before the record.
//! Changes of what is visible happen under the store's lock, in `load`, `import` and `remove`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::blob::Blobs;
use crate::config::{ConfigFile, History, ImageConfig};
use crate::digest::Digest;
use crate::error::{Error, Result, io_at};
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::staging::{self, Lock, Staging};

/// How many candidates an error about an ambiguous id names.
const CANDIDATES: usize = 5;

/// The images of one node. Cheap to clone; any number of processes may have the same store open.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) blobs: Blobs,
}

/// An image as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// `sha256:…`, the digest of the config.
    pub id: String,
    /// Names with a tag, in familiar form (`alpine:3.20`), sorted.
    pub references: Vec<String>,
    /// Names with a digest, in familiar form (`alpine@sha256:…`), sorted.
    pub digests: Vec<String>,
    /// When it was built, if the config says so.
    pub created: Option<Timestamp>,
    /// Bytes of all layers once unpacked.
    pub size: u64,
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Who built it; may be empty.
    pub author: String,
    /// How its containers start.
    pub config: ImageConfig,
    /// Diff ids, base first.
    pub layers: Vec<String>,
    /// How it was built.
    pub history: Vec<History>,
}

/// One image that a load or an import brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// `sha256:…`.
    pub id: String,
    /// Names that now point to it, in familiar form.
    pub references: Vec<String>,
}

/// One image on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: Digest,
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) size: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) blob: Descriptor,
}

/// One unpacked layer on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerFile {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// Full name -> id.
pub(crate) type References = BTreeMap<String, Digest>;

impl Record {
    /// All that the image needs in the blob store.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let own = [&self.manifest.digest, &self.config.digest];
        own.into_iter().chain(self.layers.iter().map(|layer| &layer.blob.digest))
    }
}

impl Store {
    /// Opens the store below `root`, which is created if it is missing, and removes what interrupted
    /// calls of ended processes left. The file system must take extended attributes of root and device
    /// nodes, and be one that overlayfs takes as a lower layer.
    pub fn open(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(io_at("create", root))?;
        let root = root.canonicalize().map_err(io_at("open", root))?;
        let blobs = root.join("blobs");
        for dir in [&root.join("tmp"), &blobs, &blobs.join("sha256"), &root.join("layers"), &root.join("images")] {
            match staging::private_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(io_at("create", dir)(error));
                }
                _ => {}
            }
        }
        let store = Self { blobs: Blobs::new(blobs.join("sha256")), root };
        let _lock = store.lock()?;
        staging::sweep(&store.tmp())?;
        Ok(store)
    }

    /// All images, by id. One that can't be read is left out, with a warning in the log.
    pub fn list(&self) -> Result<Vec<Image>> {
        let references = self.references()?;
        let mut images = Vec::new();
        for id in self.ids()? {
            match self.record(&id).and_then(|record| self.image(&record, &references)) {
                Ok(image) => images.push(image),
                // Removed meanwhile.
                Err(Error::NotFound(_)) => {}
                Err(error) => tracing::warn!(image.id = %id, %error, "image left out of the list"),
            }
        }
        Ok(images)
    }

    /// The image of a name, a digest, or the beginning of an id.
    ///
    /// A name without tag means `:latest`; with tag and digest, the digest decides.
    pub fn resolve(&self, name_or_id: &str) -> Result<Image> {
        let references = self.references()?;
        let (id, _) = self.find(name_or_id, &references)?;
        self.image(&self.record(&id)?, &references)
    }

    /// Gives the image `source` one more name, which may have belonged to another image.
    pub fn tag(&self, source: &str, target: &str) -> Result<()> {
        let target = Reference::parse(target)?;
        if target.digest().is_some() {
            return Err(Error::Invalid(format!("{target} has a digest; a new name must have a tag or nothing")));
        }
        let _lock = self.lock()?;
        let mut references = self.references()?;
        let (id, _) = self.find(source, &references)?;
        references.insert(target.or_latest().to_string(), id);
        self.write_references(&references)
    }

    /// The unpacked layers of an image as absolute paths of overlayfs lower directories, **base first**
    /// (the `lowerdir=` option of a mount wants them the other way round). They are read only: whatever
    /// writes to them breaks every image that shares them.
    pub fn layers(&self, image_id: &str) -> Result<Vec<PathBuf>> {
        let id = match Digest::parse(image_id) {
            Ok(id) if self.record_path(&id).exists() => id,
            _ => self.find(image_id, &self.references()?)?.0,
        };
        let record = self.record(&id)?;
        let paths: Vec<PathBuf> =
            record.layers.iter().map(|layer| self.layer_path(&layer.chain_id).join("diff")).collect();
        match paths.iter().find(|path| !path.is_dir()) {
            None => Ok(paths),
            Some(path) => Err(damaged(path, "the layer is missing")),
        }
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Half of the id keeps mount options short; `layer.json` has the whole.
    pub(crate) fn layer_name(chain_id: &Digest) -> &str {
        &chain_id.hex()[..32]
    }

    pub(crate) fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.layers_dir().join(Self::layer_name(chain_id))
    }

    pub(crate) fn record_path(&self, id: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", id.hex()))
    }

    pub(crate) fn lock(&self) -> Result<Lock> {
        staging::lock(&self.root.join("lock"))
    }

    pub(crate) fn stage(&self) -> Result<Staging> {
        let _lock = self.lock()?;
        Staging::new(&self.tmp())
    }

    pub(crate) fn references(&self) -> Result<References> {
        Ok(read_json(&self.references_path())?.unwrap_or_default())
    }

    pub(crate) fn write_references(&self, references: &References) -> Result<()> {
        write_json(&self.references_path(), references)
    }

    fn references_path(&self) -> PathBuf {
        self.root.join("references.json")
    }

    pub(crate) fn record(&self, id: &Digest) -> Result<Record> {
        read_json(&self.record_path(id))?.ok_or_else(|| Error::NotFound(id.to_string()))
    }

    pub(crate) fn layer_file(&self, chain_id: &Digest) -> Result<Option<LayerFile>> {
        let path = self.layer_path(chain_id);
        let file: Option<LayerFile> = read_json(&path.join("layer.json"))?;
        match &file {
            Some(file) if file.chain_id != *chain_id => Err(damaged(&path, "it belongs to another chain of layers")),
            _ => Ok(file),
        }
    }

    /// Ids of all images, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        let dir = self.root.join("images");
        let mut ids = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_at("read", &dir))? {
            let name = entry.map_err(io_at("read", &dir))?.file_name();
            let hex = name.to_str().and_then(|name| name.strip_suffix(".json"));
            ids.extend(hex.and_then(|hex| Digest::parse(&format!("sha256:{hex}")).ok()));
        }
        ids.sort_unstable();
        Ok(ids)
    }

    /// The id that a text means, and the name by which it was found, if it was a name.
    pub(crate) fn find(&self, text: &str, references: &References) -> Result<(Digest, Option<String>)> {
        if let Ok(digest) = Digest::parse(text) {
            return self.find_digest(&digest, references).map(|id| (id, None));
        }
        if let Ok(reference) = Reference::parse(text) {
            let name = match reference.digest() {
                Some(digest) => reference.pinned(digest.clone()),
                None => reference.or_latest(),
            };
            if let Some(id) = references.get(&name.to_string()) {
                return Ok((id.clone(), Some(name.to_string())));
            }
        }
        self.find_prefix(text).map(|id| (id, None))
    }

    fn find_digest(&self, digest: &Digest, references: &References) -> Result<Digest> {
        if self.record_path(digest).exists() {
            return Ok(digest.clone());
        }
        let suffix = format!("@{digest}");
        if let Some((_, id)) = references.iter().find(|(name, _)| name.ends_with(&suffix)) {
            return Ok(id.clone());
        }
        for id in self.ids()? {
            if self.record(&id).is_ok_and(|record| record.manifest.digest == *digest) {
                return Ok(id);
            }
        }
        Err(Error::NotFound(digest.to_string()))
    }

    fn find_prefix(&self, text: &str) -> Result<Digest> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.is_empty() || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(Error::NotFound(text.to_owned()));
        }
        let mut fitting: Vec<Digest> = self.ids()?.into_iter().filter(|id| id.hex().starts_with(prefix)).collect();
        match fitting.len() {
            0 => Err(Error::NotFound(text.to_owned())),
            1 => Ok(fitting.remove(0)),
            _ => {
                let candidates = fitting.iter().take(CANDIDATES).map(ToString::to_string).collect();
                Err(Error::Ambiguous { prefix: text.to_owned(), candidates })
            }
        }
    }

    fn image(&self, record: &Record, references: &References) -> Result<Image> {
        let document = self.blobs.document(&record.config.digest)?;
        let file: ConfigFile = serde_json::from_slice(&document)
            .map_err(|error| damaged(&self.record_path(&record.id), &error.to_string()))?;
        let (digests, tags) = names_of(&record.id, references).into_iter().partition(|name| name.contains('@'));
        Ok(Image {
            id: record.id.to_string(),
            references: tags,
            digests,
            created: file.created,
            size: record.size,
            architecture: file.architecture,
            os: file.os,
            author: file.author,
            config: file.config.public(),
            layers: record.layers.iter().map(|layer| layer.diff_id.to_string()).collect(),
            history: file.history,
        })
    }
}

/// All names of an image in familiar form, sorted.
fn names_of(id: &Digest, references: &References) -> Vec<String> {
    let of_image = references.iter().filter(|(_, target)| *target == id);
    let mut names: Vec<String> = of_image.map(|(name, _)| familiar(name)).collect();
    names.sort_unstable();
    names
}

/// The familiar form of a name that the store wrote.
pub(crate) fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

pub(crate) fn damaged(path: &Path, why: &str) -> Error {
    Error::Damaged { path: path.display().to_string(), why: why.to_owned() }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(path, &error.to_string())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_at("read", path)(error)),
    }
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(|error| damaged(path, &error.to_string()))?;
    staging::replace_file(path, &bytes)
}
