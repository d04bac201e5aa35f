//! Builders of archives, good and evil, and a place to load them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use skep_image::{Digest, Store};
use tar::{EntryType, Header};

/// The tar of a layer, written block by block so that it can hold anything.
#[derive(Clone, Default)]
pub struct Layer {
    bytes: Vec<u8>,
}

pub struct Member<'a> {
    pub kind: u8,
    pub path: &'a str,
    pub link: &'a str,
    pub mode: u32,
    pub owner: (u64, u64),
    pub device: (u32, u32),
    pub data: &'a [u8],
}

impl Default for Member<'_> {
    fn default() -> Self {
        Self { kind: b'0', path: "", link: "", mode: 0o644, owner: (0, 0), device: (0, 0), data: b"" }
    }
}

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn member(mut self, member: &Member<'_>) -> Self {
        if member.path.len() > 100 || member.link.len() > 100 {
            self = self.pax(&[("path", member.path.as_bytes()), ("linkpath", member.link.as_bytes())]);
        }
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        let path = &member.path.as_bytes()[..member.path.len().min(100)];
        let link = &member.link.as_bytes()[..member.link.len().min(100)];
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_entry_type(EntryType::new(member.kind));
        header.set_mode(member.mode);
        header.set_uid(member.owner.0);
        header.set_gid(member.owner.1);
        header.set_mtime(1_000_000);
        header.set_size(member.data.len() as u64);
        header.set_device_major(member.device.0).unwrap();
        header.set_device_minor(member.device.1).unwrap();
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(member.data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// An extended header for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records.iter().filter(|(_, value)| !value.is_empty()) {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.member(&Member { kind: b'x', path: "pax", data: &data, ..Member::default() })
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.member(&Member { path, data, ..Member::default() })
    }

    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.member(&Member { kind: b'5', path, mode, ..Member::default() })
    }

    pub fn symlink(self, path: &str, link: &str) -> Self {
        self.member(&Member { kind: b'2', path, link, mode: 0o777, ..Member::default() })
    }

    pub fn hardlink(self, path: &str, link: &str) -> Self {
        self.member(&Member { kind: b'1', path, link, ..Member::default() })
    }

    pub fn device(self, kind: u8, path: &str, device: (u32, u32)) -> Self {
        self.member(&Member { kind, path, device, mode: 0o666, ..Member::default() })
    }

    pub fn tar(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

pub fn config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({
        "architecture": "amd64", "os": "linux", "created": "2024-05-06T07:08:09Z",
        "config": {"Entrypoint": ["/x"], "Cmd": ["y"], "Env": ["A=b"], "User": "1:2", "WorkingDir": "/w",
            "Labels": {"l": "v"}, "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGINT", "Volumes": {"/v": {}},
            "Healthcheck": {"Test": ["CMD", "true"], "Retries": 3}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "test"}],
    })
}

/// What `docker save` writes for one image.
pub fn docker_save(layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    docker_save_with(&config(layers), layers, tags)
}

pub fn docker_save_with(config: &Value, layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config = serde_json::to_vec(config).unwrap();
    let name = format!("{}.json", Digest::of(&config).hex());
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": names}]);
    let mut tar = Layer::new().file(&name, &config);
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.dir(name.trim_end_matches("layer.tar"), 0o755).file(name, layer);
    }
    tar.file("manifest.json", &serde_json::to_vec(&manifest).unwrap()).tar()
}

/// The files of an OCI layout of one image, whose layer blobs are `blobs`.
pub struct Oci {
    pub files: BTreeMap<String, Vec<u8>>,
    pub manifest: String,
}

pub fn oci(layers: &[Vec<u8>], blobs: &[Vec<u8>], name: &str) -> Oci {
    let mut files = BTreeMap::new();
    let mut add = |bytes: Vec<u8>, media_type: &str| {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        files.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    };
    let config = add(serde_json::to_vec(&config(layers)).unwrap(), "application/vnd.oci.image.config.v1+json");
    let layers: Vec<Value> =
        blobs.iter().map(|blob| add(blob.clone(), "application/vnd.oci.image.layer.v1.tar+gzip")).collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = add(serde_json::to_vec(&manifest).unwrap(), manifest_type);
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    manifest["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let other = json!({"mediaType": manifest_type, "digest": Digest::of(b"absent"), "size": 6,
        "platform": {"os": "linux", "architecture": "s390x"}});
    let mut index = add(
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [other, manifest]})).unwrap(),
        "application/vnd.oci.image.index.v1+json",
    );
    index["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    files.insert("index.json".into(), serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [index]})).unwrap());
    files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    Oci { files, manifest: digest }
}

impl Oci {
    pub fn tar(&self) -> Vec<u8> {
        self.files.iter().fold(Layer::new(), |tar, (name, bytes)| tar.file(name, bytes)).tar()
    }

    pub fn write_to(&self, dir: &Path) {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        for (name, bytes) in &self.files {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

/// A store in a temporary directory, with a canary beside it.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(dir.path().join("outside/canary"), "alive").unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        Self { dir, store }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn outside(&self) -> PathBuf {
        self.path("outside")
    }

    /// Names, content and modes of all that lies outside.
    pub fn canary(&self) -> Vec<(String, String, u32)> {
        canary(&self.outside())
    }

    /// What a store has besides its empty directories.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for dir in ["blobs/sha256", "layers", "images", "tmp"] {
            for entry in fs::read_dir(self.path("store").join(dir)).unwrap() {
                left.push(format!("{dir}/{}", entry.unwrap().file_name().display()));
            }
        }
        let references = fs::read_to_string(self.path("store/references.json")).unwrap_or_default();
        if !matches!(references.as_str(), "" | "{}") {
            left.push(references);
        }
        left
    }
}

pub fn canary(outside: &Path) -> Vec<(String, String, u32)> {
    use std::os::unix::fs::MetadataExt;
    let mut found = vec![(".".to_owned(), String::new(), fs::metadata(outside).unwrap().mode())];
    for entry in fs::read_dir(outside).unwrap() {
        let entry = entry.unwrap();
        let content = fs::read_to_string(entry.path()).unwrap_or_default();
        let meta = entry.path().symlink_metadata().unwrap();
        found.push((entry.file_name().display().to_string(), content, meta.mode()));
        found.push((format!("links of {}", entry.file_name().display()), meta.nlink().to_string(), meta.uid()));
    }
    found.sort();
    found
}

/// Gives bytes in small pieces and calls `at_half` once in the middle.
pub struct Halfway<'a, F: FnMut()> {
    pub bytes: &'a [u8],
    pub half: usize,
    pub at_half: F,
}

impl<F: FnMut()> Read for Halfway<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = buf.len().min(self.bytes.len()).min(777);
        let before = self.bytes.len();
        buf[..n].copy_from_slice(&self.bytes[..n]);
        self.bytes = &self.bytes[n..];
        if before > self.half && self.bytes.len() <= self.half {
            (self.at_half)();
        }
        Ok(n)
    }
}
