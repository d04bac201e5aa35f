//! Which images an archive holds: reads its documents, checks each against the digest that names it.

use std::collections::BTreeMap;

use crate::blob::Staged;
use crate::config::host_architecture;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::manifest::{
    self, DOCKER_FILE, Descriptor, DockerManifest, INDEX_FILE, Index, LAYOUT_FILE, Manifest, OCI_CONFIG, OCI_MANIFEST,
    blob_path, layer_media_type,
};
use crate::reference::Reference;
use crate::staging::Staging;

use super::bundle::Bundle;
use super::{Candidate, parse, shorten, stage_document};

/// Indexes in indexes.
const NESTING: usize = 4;

/// The images for this machine, each once, in the order of the archive.
pub(super) fn candidates(bundle: &Bundle, staging: &mut Staging, limits: &Limits) -> Result<Vec<Candidate>> {
    let mut found = Found { bundle, limits, images: Vec::new() };
    let layout = bundle.get(LAYOUT_FILE).is_some() && bundle.get(INDEX_FILE).is_some();
    if layout {
        found.oci()?;
    }
    if let Some(file) = bundle.get(DOCKER_FILE) {
        let manifests: Vec<DockerManifest> = parse(&file.document(limits.json_bytes)?, DOCKER_FILE)?;
        for manifest in manifests {
            found.docker(&manifest, staging)?;
        }
    } else if !layout {
        let why = format!("neither {DOCKER_FILE} nor {LAYOUT_FILE} with {INDEX_FILE} is in it; is it an image at all?");
        return Err(Error::Archive { why, source: None });
    }
    if found.images.is_empty() {
        return Err(Error::Invalid("the archive lists no image".to_owned()));
    }
    Ok(found.images)
}

struct Found<'a> {
    bundle: &'a Bundle,
    limits: &'a Limits,
    images: Vec<Candidate>,
}

impl Found<'_> {
    fn oci(&mut self) -> Result<()> {
        let file = self.bundle.require(INDEX_FILE)?;
        let index: Index = parse(&file.document(self.limits.json_bytes)?, INDEX_FILE)?;
        let architecture = host_architecture();
        let fitting: Vec<&Descriptor> = index.manifests.iter().filter(|d| d.runs_on(architecture)).collect();
        if fitting.is_empty() && !index.manifests.is_empty() {
            return Err(no_platform(&index.manifests, architecture));
        }
        // One image is usually listed once for each of its names.
        let mut names: BTreeMap<&Digest, Vec<Reference>> = BTreeMap::new();
        for descriptor in &fitting {
            let of_image = names.entry(&descriptor.digest).or_default();
            of_image.extend(reference_of(descriptor));
        }
        for descriptor in fitting {
            if let Some(references) = names.remove(&descriptor.digest) {
                let mut digests = Vec::new();
                let chosen = self.descend(descriptor, &mut digests, NESTING)?;
                self.manifest(&chosen, references, digests)?;
            }
        }
        Ok(())
    }

    /// From an index to this machine's manifest; `digests` collects the digests on the way.
    fn descend(&self, descriptor: &Descriptor, digests: &mut Vec<Digest>, left: usize) -> Result<Descriptor> {
        digests.push(descriptor.digest.clone());
        if !descriptor.is_index() {
            return Ok(descriptor.clone());
        }
        if left == 0 {
            return Err(Error::Invalid(format!("indexes are nested more than {NESTING} times")));
        }
        let file = self.content(descriptor)?;
        let index: Index = parse(&file.document(self.limits.json_bytes)?, "index")?;
        match manifest::choose(&index.manifests, host_architecture()) {
            Some(chosen) => self.descend(chosen, digests, left - 1),
            None => Err(no_platform(&index.manifests, host_architecture())),
        }
    }

    fn manifest(&mut self, descriptor: &Descriptor, references: Vec<Reference>, digests: Vec<Digest>) -> Result<()> {
        let file = self.content(descriptor)?;
        let manifest: Manifest = parse(&file.document(self.limits.json_bytes)?, "manifest")?;
        let config = self.content(&manifest.config)?;
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            layers.push((self.content(layer)?, layer.media_type.clone()));
        }
        let manifest_type = match (&descriptor.media_type, manifest.media_type) {
            (stated, _) if !stated.is_empty() => stated.clone(),
            (_, own) if !own.is_empty() => own,
            _ => OCI_MANIFEST.to_owned(),
        };
        let config_type = manifest.config.media_type;
        self.add(Candidate { config, config_type, manifest: file, manifest_type, layers, references, digests });
        Ok(())
    }

    fn docker(&mut self, stated: &DockerManifest, staging: &mut Staging) -> Result<()> {
        let mut references = Vec::new();
        for tag in stated.repo_tags.iter().flatten() {
            references.push(Reference::parse(tag)?);
        }
        let config = self.bundle.require(&stated.config)?.clone();
        if let Some(image) = self.images.iter_mut().find(|image| image.config.digest == config.digest) {
            merge(&mut image.references, references);
            return Ok(());
        }
        // The config's name is its digest, in one of two dresses; an archive whose config was changed
        // without its name is not what its maker saved.
        let stem = stated.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
        if let Ok(named) = Digest::parse(&format!("sha256:{stem}"))
            && named != config.digest
        {
            return Err(mismatch("a config", &named, &config.digest));
        }
        let mut layers = Vec::new();
        for name in &stated.layers {
            let blob = self.bundle.require(name)?.clone();
            let media_type = layer_media_type(blob.compression);
            layers.push((blob, media_type));
        }
        let descriptors =
            layers.iter().map(|(blob, kind)| Descriptor::new(kind, blob.digest.clone(), blob.size)).collect();
        let document = Manifest::new(Descriptor::new(OCI_CONFIG, config.digest.clone(), config.size), descriptors);
        let manifest = stage_document(staging, &document)?;
        let digests = vec![manifest.digest.clone()];
        let (config_type, manifest_type) = (OCI_CONFIG.to_owned(), OCI_MANIFEST.to_owned());
        self.add(Candidate { config, config_type, manifest, manifest_type, layers, references, digests });
        Ok(())
    }

    fn add(&mut self, candidate: Candidate) {
        match self.images.iter_mut().find(|image| image.config.digest == candidate.config.digest) {
            Some(image) => merge(&mut image.references, candidate.references),
            None => self.images.push(candidate),
        }
    }

    /// The content that a descriptor points at, which must be what it says.
    fn content(&self, descriptor: &Descriptor) -> Result<Staged> {
        let path = blob_path(&descriptor.digest);
        let blob = self.bundle.require(&path)?;
        if blob.digest != descriptor.digest {
            return Err(mismatch(&path, &descriptor.digest, &blob.digest));
        }
        if blob.size != descriptor.size {
            let (actual, stated) = (blob.size, descriptor.size);
            return Err(Error::Invalid(format!("{path} has {actual} bytes, but {stated} are stated")));
        }
        Ok(blob.clone())
    }
}

fn merge(into: &mut Vec<Reference>, more: Vec<Reference>) {
    for reference in more {
        if !into.contains(&reference) {
            into.push(reference);
        }
    }
}

fn mismatch(what: &str, expected: &Digest, actual: &Digest) -> Error {
    Error::DigestMismatch { what: what.to_owned(), expected: expected.clone(), actual: actual.clone() }
}

fn no_platform(descriptors: &[Descriptor], architecture: &str) -> Error {
    let offered = shorten(&manifest::platforms(descriptors));
    Error::Invalid(format!("no image for linux/{architecture} in the archive; it offers: {offered}"))
}

/// The name that an index gives an image. A bare tag names no repository, so it names nothing here.
fn reference_of(descriptor: &Descriptor) -> Option<Reference> {
    let full = descriptor.annotation(manifest::NAME_ANNOTATION);
    let short = descriptor.annotation(manifest::REF_ANNOTATION).filter(|name| name.contains(['/', ':']));
    let name = full.or(short)?;
    match Reference::parse(name) {
        Ok(reference) => Some(reference),
        Err(error) => {
            tracing::warn!(name = shorten(name), %error, "name in the archive ignored");
            None
        }
    }
}
