//! Images into an archive.

use std::io::Write;

use crate::archive::Writer;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::Reference;
use crate::store::{References, Store};

impl Store {
    /// Writes images as a tar that is both an OCI layout and what `docker load` reads; [`Store::load`]
    /// gives back the same ids and names.
    ///
    /// A name with a tag brings that name, a repository without a tag all its tags, an id no name. Layers
    /// that images share are written once. After an error the output is of no use.
    pub fn save(&self, names: &[&str], out: impl Write) -> Result<()> {
        let references = self.references()?;
        let mut images: Vec<(Digest, Vec<Reference>)> = Vec::new();
        for name in names {
            for (id, reference) in self.selected(name, &references)? {
                let at = images.iter().position(|(other, _)| *other == id).unwrap_or_else(|| {
                    images.push((id, Vec::new()));
                    images.len() - 1
                });
                let names = &mut images[at].1;
                names.extend(reference.filter(|reference| !names.contains(reference)));
            }
        }
        if images.is_empty() {
            return Err(Error::Invalid("no image is named to be saved".to_owned()));
        }
        let mut archive = Writer::new(out)?;
        for (id, references) in images {
            let record = self.record(&id)?;
            let layers: Vec<_> = record.layers.iter().map(|layer| layer.blob.clone()).collect();
            for descriptor in layers.iter().chain([&record.config, &record.manifest]) {
                if !archive.has(&descriptor.digest) {
                    archive.blob(descriptor, self.blobs.open(&descriptor.digest)?)?;
                }
            }
            archive.image(&record.manifest, &record.config, &layers, &references);
        }
        archive.finish()
    }

    /// What a name selects: images, each with one of the names that shall go with it.
    fn selected(&self, name: &str, references: &References) -> Result<Vec<(Digest, Option<Reference>)>> {
        if let Ok(reference) = Reference::parse(name)
            && reference.tag().is_none()
            && reference.digest().is_none()
        {
            let of_repository: Vec<_> = references
                .iter()
                .filter_map(|(name, id)| Some((id.clone(), Reference::parse(name).ok()?)))
                .filter(|(_, other)| other.tag().is_some() && other.repository() == reference.repository())
                .map(|(id, other)| (id, Some(other)))
                .collect();
            if !of_repository.is_empty() {
                return Ok(of_repository);
            }
        }
        let (id, found) = self.find(name, references)?;
        let found = found.and_then(|found| Reference::parse(&found).ok()).filter(|found| found.digest().is_none());
        Ok(vec![(id, found)])
    }
}
