//! The documents that tie an archive together: OCI index and manifest, and the `manifest.json` of
//! `docker save`. Decides which image of a multi-platform index is this machine's. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::codec::Compression;
use crate::digest::Digest;

pub(crate) const LAYOUT_FILE: &str = "oci-layout";
pub(crate) const INDEX_FILE: &str = "index.json";
pub(crate) const DOCKER_FILE: &str = "manifest.json";
pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Full name of the image, as containerd and Docker write it.
pub(crate) const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// Name or only the tag, as the OCI specification has it.
pub(crate) const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";
const REFERENCE_TYPE_ANNOTATION: &str = "vnd.docker.reference.type";

/// Points at content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Index {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default)]
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

/// One image in the `manifest.json` of `docker save`; the values are names of members of the archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DockerManifest {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: None }
    }

    pub(crate) fn is_index(&self) -> bool {
        self.media_type == OCI_INDEX || self.media_type == DOCKER_LIST
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether this may be an image for `architecture`, and not an attestation or for another machine.
    pub(crate) fn runs_on(&self, architecture: &str) -> bool {
        if self.annotation(REFERENCE_TYPE_ANNOTATION).is_some() {
            return false;
        }
        self.platform.as_ref().is_none_or(|platform| {
            platform.architecture.is_empty() || (platform.architecture == architecture && platform.os == "linux")
        })
    }
}

impl Manifest {
    pub(crate) fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: OCI_MANIFEST.to_owned(), config, layers }
    }
}

impl Index {
    pub(crate) fn new(manifests: Vec<Descriptor>) -> Self {
        Self { schema_version: 2, media_type: OCI_INDEX.to_owned(), manifests }
    }
}

pub(crate) fn layer_media_type(compression: Compression) -> String {
    match compression {
        Compression::None => OCI_LAYER.to_owned(),
        Compression::Gzip => format!("{OCI_LAYER}+gzip"),
        Compression::Zstd => format!("{OCI_LAYER}+zstd"),
    }
}

/// Where a blob lies in an OCI layout.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The best of several images for `architecture`: the first without a special variant, else the first.
pub(crate) fn choose<'a>(descriptors: &'a [Descriptor], architecture: &str) -> Option<&'a Descriptor> {
    let plain = |d: &&Descriptor| d.platform.as_ref().is_none_or(|p| p.variant.is_empty() || p.variant == "v8");
    let mut fitting = descriptors.iter().filter(|d| d.runs_on(architecture));
    fitting.clone().find(plain).or_else(|| fitting.next())
}

/// The platforms that an index offers, for an error message.
pub(crate) fn platforms(descriptors: &[Descriptor]) -> String {
    let names: Vec<String> = descriptors
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .take(20)
        .map(|p| format!("{}/{}", p.os, p.architecture))
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn descriptor(os: &str, architecture: &str, variant: &str) -> Descriptor {
        let platform = Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() };
        Descriptor { platform: Some(platform), ..Descriptor::new(OCI_MANIFEST, Digest::of(variant.as_bytes()), 1) }
    }

    #[test]
    fn this_machines_image_is_chosen() {
        let all = [
            descriptor("windows", "amd64", ""),
            descriptor("linux", "amd64", "v3"),
            descriptor("linux", "amd64", ""),
            descriptor("linux", "arm64", "v8"),
            descriptor("unknown", "unknown", ""),
        ];
        assert_eq!(choose(&all, "amd64"), Some(&all[2]));
        assert_eq!(choose(&all, "arm64"), Some(&all[3]));
        assert_eq!(choose(&all[..2], "amd64"), Some(&all[1]));
        assert_eq!(choose(&all, "s390x"), None);
        let mut attestation = descriptor("linux", "amd64", "");
        attestation.annotations =
            Some([(REFERENCE_TYPE_ANNOTATION.to_owned(), "attestation-manifest".to_owned())].into());
        assert_eq!(choose(&[attestation], "amd64"), None);
        assert_eq!(platforms(&all[..1]), "windows/amd64");
    }
}
