//! Names, images and content that go away. Decides what a removal takes with it; never removes what the
//! caller says is in use, nor what another image needs.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use crate::digest::Digest;
use crate::error::{Error, Result, io_at};
use crate::reference::Reference;
use crate::staging::{Staging, sync_parent};
use crate::store::{Record, References, Store, familiar};

/// One thing that a removal did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A name is gone, in familiar form.
    Untagged(String),
    /// An image or a layer is gone, by id or chain id.
    Deleted(String),
}

/// What a collection freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: usize,
    /// Blobs.
    pub blobs: usize,
    /// Bytes, as far as they are known.
    pub bytes: u64,
}

impl Store {
    /// Removes a name, and the image with it if that was its last; or, by id, an image with all its names.
    ///
    /// `in_use` holds the ids (`sha256:…`) of images that containers use. Such an image is never deleted:
    /// by name its last name is only taken with `force`, by id the call fails. By id an image with several
    /// names needs `force` too.
    pub fn remove(&self, name: &str, force: bool, in_use: &HashSet<String>) -> Result<Vec<Removed>> {
        let lock = self.lock()?;
        let mut references = self.references()?;
        let (id, found) = self.find(name, &references)?;
        let used = in_use.contains(id.as_str());
        let conflict = |why: String| Err(Error::Conflict { name: name.to_owned(), why });
        let (gone, delete) = match &found {
            Some(found) => {
                let gone = names_that_go(found, &id, &references);
                let last = !references.iter().any(|(other, target)| *target == id && !gone.contains(other));
                if last && used && !force {
                    return conflict(
                        "a container uses it; remove the container, or use force to take the name only".to_owned(),
                    );
                }
                (gone, last && !used)
            }
            None => {
                let all: Vec<String> =
                    references.iter().filter(|(_, target)| **target == id).map(|(name, _)| name.clone()).collect();
                if used {
                    return conflict("a container uses it; remove the container first".to_owned());
                }
                let tags: Vec<String> = all.iter().filter(|name| !name.contains('@')).map(|n| familiar(n)).collect();
                if tags.len() > 1 && !force {
                    return conflict(format!("it has several names ({}); use force to take them all", tags.join(", ")));
                }
                (all, true)
            }
        };
        for name in &gone {
            references.remove(name);
        }
        self.write_references(&references)?;
        let mut removed: Vec<Removed> = gone.iter().map(|name| Removed::Untagged(familiar(name))).collect();
        if delete {
            // The trash is emptied after the lock is given back.
            let mut trash = Staging::new(&self.tmp())?;
            removed.extend(self.delete(&id, &mut trash)?);
            drop(lock);
        }
        tracing::info!(image.id = %id, untagged = gone.len(), deleted = delete, "image removed");
        Ok(removed)
    }

    /// Removes what no image needs: unpacked layers and blobs that crashes or removals left. Directories
    /// in `in_use` (as [`Store::layers`] gives them) stay in any case.
    pub fn collect(&self, in_use: &HashSet<PathBuf>) -> Result<Collected> {
        let lock = self.lock()?;
        let (layers, blobs) = self.needed()?;
        let mut collected = Collected::default();
        let mut trash = Staging::new(&self.tmp())?;
        let dir = self.layers_dir();
        for entry in fs::read_dir(&dir).map_err(io_at("read", &dir))? {
            let entry = entry.map_err(io_at("read", &dir))?;
            let kept = entry.file_name().to_str().is_some_and(|name| layers.contains(name));
            if kept || in_use.contains(&entry.path().join("diff")) {
                continue;
            }
            let size = fs::read(entry.path().join("layer.json")).ok();
            let size = size.and_then(|bytes| serde_json::from_slice::<crate::store::LayerFile>(&bytes).ok());
            collected.bytes += size.map_or(0, |file| file.size);
            fs::rename(entry.path(), trash.fresh()).map_err(io_at("remove", &entry.path()))?;
            collected.layers += 1;
        }
        let (count, bytes) = self.blobs.retain(|hex| blobs.contains(hex))?;
        collected.blobs = count;
        collected.bytes += bytes;
        drop(lock);
        drop(trash);
        tracing::debug!(
            layers = collected.layers,
            blobs = collected.blobs,
            bytes = collected.bytes,
            "images collected"
        );
        Ok(collected)
    }

    /// Removes a record and what only it needed. The lock is held.
    fn delete(&self, id: &Digest, trash: &mut Staging) -> Result<Vec<Removed>> {
        let record = self.record(id);
        let path = self.record_path(id);
        fs::remove_file(&path).map_err(io_at("remove", &path))?;
        sync_parent(&path)?;
        let mut removed = vec![Removed::Deleted(id.to_string())];
        // What a damaged record named is left to a collection.
        let Ok(record) = record else {
            return Ok(removed);
        };
        let (layers, blobs) = match self.needed() {
            Ok(needed) => needed,
            // Another image is damaged: what it shares with this one is unknown, so everything stays.
            Err(error) => {
                tracing::warn!(image.id = %id, %error, "layers are left to a collection");
                return Ok(removed);
            }
        };
        for layer in record.layers.iter().rev() {
            let path = self.layer_path(&layer.chain_id);
            if !layers.contains(Self::layer_name(&layer.chain_id)) && path.exists() {
                fs::rename(&path, trash.fresh()).map_err(io_at("remove", &path))?;
                removed.push(Removed::Deleted(layer.chain_id.to_string()));
            }
        }
        let own: HashSet<&str> = record.blobs().map(Digest::hex).collect();
        self.blobs.retain(|hex| !own.contains(hex) || blobs.contains(hex))?;
        Ok(removed)
    }

    /// Names of the layer directories and of the blobs that images need. Fails if a record can't be read,
    /// since what it needs is unknown then.
    fn needed(&self) -> Result<(HashSet<String>, HashSet<String>)> {
        let records = self.ids()?.iter().map(|id| self.record(id)).collect::<Result<Vec<Record>>>()?;
        let layers = records.iter().flat_map(|record| &record.layers);
        let layers = layers.map(|layer| Self::layer_name(&layer.chain_id).to_owned()).collect();
        let blobs = records.iter().flat_map(Record::blobs).map(|digest| digest.hex().to_owned()).collect();
        Ok((layers, blobs))
    }
}

/// The name itself, and with the last tag of a repository the digests of that repository.
fn names_that_go(name: &str, id: &Digest, references: &References) -> Vec<String> {
    let mut gone = vec![name.to_owned()];
    let Ok(reference) = Reference::parse(name) else {
        return gone;
    };
    let repository = reference.repository();
    let siblings: Vec<&String> = references
        .iter()
        .filter(|(other, target)| *target == id && *other != name)
        .map(|(other, _)| other)
        .filter(|other| Reference::parse(other).is_ok_and(|other| other.repository() == repository))
        .collect();
    let tagged = siblings.iter().any(|sibling| !sibling.contains('@'));
    if reference.tag().is_some() && !tagged {
        gone.extend(siblings.into_iter().cloned());
    }
    gone
}
