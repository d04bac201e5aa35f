//! Archives of images, written so that everything loads them: an OCI layout with the `manifest.json` of
//! `docker save` beside it. The same content always gives the same bytes.
//!
//! `Store::save` writes its images with it; [`single_binary`] makes an image of one static program, which
//! is how the project's own demo image comes about without any builder.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::codec::{Compression, Hashing};
use crate::config::{ConfigFile, Empty, History, RootFs, RunConfig, host_architecture};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{
    DOCKER_FILE, Descriptor, DockerManifest, INDEX_FILE, Index, LAYOUT, LAYOUT_FILE, Manifest, NAME_ANNOTATION,
    OCI_CONFIG, OCI_MANIFEST, REF_ANNOTATION, blob_path, layer_media_type,
};
use crate::reference::Reference;

/// An image of one static program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingleBinary {
    /// What the image is called.
    pub reference: Reference,
    /// Name of the program in the root directory; the image's entry point.
    pub program: String,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
}

/// Writes an archive of the image `spec`, whose program is `executable`, to `out`; gives the image's id.
///
/// The bytes depend on the arguments only: all times are the epoch.
pub fn single_binary(spec: &SingleBinary, executable: &[u8], out: impl Write) -> Result<String> {
    if spec.program.is_empty() || spec.program.contains(['/', '\0']) || spec.program.starts_with('.') {
        return Err(Error::Invalid(format!("{:?} is no name of a program", spec.program)));
    }
    let layer = program_layer(&spec.program, executable).map_err(written)?;
    let diff_id = Digest::of(&layer);
    let epoch = Some(jiff::Timestamp::UNIX_EPOCH);
    let config = ConfigFile {
        created: epoch,
        architecture: host_architecture().to_owned(),
        os: "linux".to_owned(),
        config: RunConfig {
            entrypoint: Some(vec![format!("/{}", spec.program)]),
            exposed_ports: spec.exposed_ports.iter().map(|port| (port.clone(), Empty {})).collect(),
            env: spec.env.clone(),
            working_dir: "/".to_owned(),
            ..RunConfig::default()
        },
        rootfs: RootFs { diff_ids: vec![diff_id.clone()], ..RootFs::default() },
        history: vec![History {
            created: epoch,
            created_by: format!("COPY {0} /{0}", spec.program),
            ..History::default()
        }],
        ..ConfigFile::default()
    };
    let config = json(&config)?;
    let config_descriptor = Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64);
    let layer_descriptor = Descriptor::new(&layer_media_type(Compression::None), diff_id, layer.len() as u64);
    let manifest = json(&Manifest::new(config_descriptor.clone(), vec![layer_descriptor.clone()]))?;
    let manifest_descriptor = Descriptor::new(OCI_MANIFEST, Digest::of(&manifest), manifest.len() as u64);
    let mut archive = Writer::new(out)?;
    archive.blob(&layer_descriptor, layer.as_slice())?;
    archive.blob(&config_descriptor, config.as_slice())?;
    archive.blob(&manifest_descriptor, manifest.as_slice())?;
    let reference = spec.reference.clone().without_digest().or_latest();
    archive.image(&manifest_descriptor, &config_descriptor, &[layer_descriptor], &[reference]);
    archive.finish()?;
    Ok(config_descriptor.digest.to_string())
}

/// The root directory and the program, readable and executable by everyone.
fn program_layer(program: &str, executable: &[u8]) -> io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_data(&mut header(EntryType::Directory, 0, 0o755), "./", io::empty())?;
    let mut file = header(EntryType::Regular, executable.len() as u64, 0o755);
    layer.append_data(&mut file, program, executable)?;
    layer.into_inner()
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::Invalid(format!("cannot be written as JSON: {error}")))
}

fn written(source: io::Error) -> Error {
    Error::Archive { why: format!("it cannot be written: {source}"), source: Some(source) }
}

/// Writes blobs as they come and the documents that name them at the end.
pub(crate) struct Writer<W: Write> {
    tar: tar::Builder<W>,
    blobs: HashSet<Digest>,
    index: Vec<Descriptor>,
    docker: Vec<DockerManifest>,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Result<Self> {
        let mut tar = tar::Builder::new(out);
        for dir in ["blobs/", "blobs/sha256/"] {
            tar.append_data(&mut header(EntryType::Directory, 0, 0o755), dir, io::empty()).map_err(written)?;
        }
        Ok(Self { tar, blobs: HashSet::new(), index: Vec::new(), docker: Vec::new() })
    }

    /// Whether a blob was written already.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains(digest)
    }

    /// Writes a blob and checks it on the way; after an error the archive is of no use.
    pub(crate) fn blob(&mut self, descriptor: &Descriptor, content: impl Read) -> Result<()> {
        if !self.blobs.insert(descriptor.digest.clone()) {
            return Ok(());
        }
        let mut content = Hashing::new(content.take(descriptor.size));
        let mut header = header(EntryType::Regular, descriptor.size, 0o444);
        self.tar.append_data(&mut header, blob_path(&descriptor.digest), &mut content).map_err(written)?;
        let (_, actual, _) = content.finish();
        if actual != descriptor.digest {
            let what = "a blob of the store".to_owned();
            return Err(Error::DigestMismatch { what, expected: descriptor.digest.clone(), actual });
        }
        Ok(())
    }

    /// Lists an image whose blobs were written.
    pub(crate) fn image(
        &mut self,
        manifest: &Descriptor,
        config: &Descriptor,
        layers: &[Descriptor],
        references: &[Reference],
    ) {
        self.docker.push(DockerManifest {
            config: blob_path(&config.digest),
            repo_tags: Some(references.iter().map(Reference::familiar).collect()),
            layers: layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
        });
        let plain = Descriptor { annotations: None, platform: None, ..manifest.clone() };
        if references.is_empty() {
            self.index.push(plain.clone());
        }
        for reference in references {
            let annotations = BTreeMap::from([
                (NAME_ANNOTATION.to_owned(), reference.to_string()),
                (REF_ANNOTATION.to_owned(), reference.tag().unwrap_or("latest").to_owned()),
            ]);
            self.index.push(Descriptor { annotations: Some(annotations), ..plain.clone() });
        }
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        let index = json(&Index::new(std::mem::take(&mut self.index)))?;
        let docker = json(&self.docker)?;
        for (name, content) in [(INDEX_FILE, &index[..]), (DOCKER_FILE, &docker), (LAYOUT_FILE, LAYOUT.as_bytes())] {
            let mut header = header(EntryType::Regular, content.len() as u64, 0o444);
            self.tar.append_data(&mut header, name, content).map_err(written)?;
        }
        self.tar.into_inner().and_then(|mut out| out.flush()).map_err(written)
    }
}
