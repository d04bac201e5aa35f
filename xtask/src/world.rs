//! What the checks look at, read once: the workspace as cargo sees it and the files as git sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package as CargoPackage, TargetKind};

/// A text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct TextFile {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    /// Its content.
    pub(crate) text: String,
}

/// A crate of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crate {
    /// Package name.
    pub(crate) name: String,
    /// Directory relative to the root; what `Cargo.toml` lists as a member.
    pub(crate) dir: String,
    /// Direct dependencies that the product has, without those of tests and build scripts.
    pub(crate) dependencies: Vec<String>,
    /// Direct dependencies of tests.
    pub(crate) dev_dependencies: Vec<String>,
    /// Source files of its libraries and programs, relative to the root.
    pub(crate) roots: Vec<String>,
}

/// A crate from elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Foreign {
    /// Name and version.
    pub(crate) name: String,
    /// Licence expression, if it says one.
    pub(crate) license: Option<String>,
    /// The registry or repository that it comes from.
    pub(crate) source: String,
}

/// Everything that is checked.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    /// Absolute path of the workspace.
    pub(crate) root: String,
    /// Home of who builds it.
    pub(crate) home: String,
    pub(crate) crates: Vec<Crate>,
    pub(crate) foreign: Vec<Foreign>,
    /// Text files that git tracks or would track.
    pub(crate) files: Vec<TextFile>,
    /// Every path that exists: files and directories, relative to the root.
    pub(crate) paths: Vec<String>,
}

impl World {
    /// Absolute path of the workspace.
    pub(crate) fn root() -> PathBuf {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        here.parent().unwrap_or(here).to_owned()
    }

    /// Reads it all.
    pub(crate) fn read() -> Result<Self> {
        let root = Self::root();
        let metadata = MetadataCommand::new()
            .current_dir(&root)
            // Crates for other systems would have to be downloaded just to be looked at.
            .other_options(vec!["--filter-platform".to_owned(), host()?])
            .exec()
            .context("cargo metadata failed")?;
        let (files, paths) = read_files(&root)?;
        Ok(Self {
            root: root.to_string_lossy().into_owned(),
            home: std::env::var("HOME").unwrap_or_default(),
            crates: crates(&metadata),
            foreign: foreign(&metadata),
            files,
            paths,
        })
    }

    /// The text of a file.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }

    /// The crate that a file belongs to: the one with the longest directory around it.
    pub(crate) fn crate_of(&self, path: &str) -> Option<&Crate> {
        let inside = |c: &&Crate| path.strip_prefix(c.dir.as_str()).is_some_and(|rest| rest.starts_with('/'));
        self.crates.iter().filter(inside).max_by_key(|c| c.dir.len())
    }

    /// Rust files of the workspace's crates.
    pub(crate) fn rust(&self) -> impl Iterator<Item = (&Crate, &TextFile)> {
        let rust = self.files.iter().filter(|file| file.path.ends_with(".rs"));
        rust.filter_map(|file| Some((self.crate_of(&file.path)?, file)))
    }
}

/// The target triple of this machine.
fn host() -> Result<String> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("rustc could not be started")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_owned())
}

fn crates(metadata: &Metadata) -> Vec<Crate> {
    let ours = metadata.workspace_packages();
    ours.into_iter().map(|package| one_crate(metadata, package)).collect()
}

fn one_crate(metadata: &Metadata, package: &CargoPackage) -> Crate {
    let relative = |path: &cargo_metadata::camino::Utf8Path| {
        path.strip_prefix(&metadata.workspace_root).map(ToString::to_string).unwrap_or_default()
    };
    let of_kind = |kind| {
        let chosen = package.dependencies.iter().filter(move |d| d.kind == kind);
        chosen.map(|d| d.name.clone()).collect()
    };
    let is_root = |kinds: &[TargetKind]| kinds.iter().any(|k| matches!(k, TargetKind::Lib | TargetKind::Bin));
    Crate {
        name: package.name.to_string(),
        dir: package.manifest_path.parent().map(relative).unwrap_or_default(),
        dependencies: of_kind(DependencyKind::Normal),
        dev_dependencies: of_kind(DependencyKind::Development),
        roots: package.targets.iter().filter(|t| is_root(&t.kind)).map(|t| relative(&t.src_path)).collect(),
    }
}

fn foreign(metadata: &Metadata) -> Vec<Foreign> {
    let used: BTreeMap<_, ()> =
        metadata.resolve.iter().flat_map(|r| &r.nodes).map(|node| (node.id.clone(), ())).collect();
    let packages = metadata.packages.iter().filter(|p| used.contains_key(&p.id));
    packages
        .filter_map(|p| {
            let source = p.source.as_ref()?.repr.clone();
            Some(Foreign { name: format!("{} {}", p.name, p.version), license: p.license.clone(), source })
        })
        .collect()
}

fn read_files(root: &Path) -> Result<(Vec<TextFile>, Vec<String>)> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .current_dir(root)
        .output()
        .context("git could not be started")?;
    if !output.status.success() {
        bail!("git ls-files failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let listed = String::from_utf8(output.stdout).context("a file name is not UTF-8")?;
    let (mut files, mut paths) = (Vec::new(), Vec::new());
    for path in listed.split('\0').filter(|path| !path.is_empty()) {
        // Deleted and not yet committed, or a link to nowhere.
        if !root.join(path).is_file() {
            continue;
        }
        let mut parent = path;
        while let Some((dir, _)) = parent.rsplit_once('/') {
            parent = dir;
            paths.push(dir.to_owned());
        }
        paths.push(path.to_owned());
        let bytes = std::fs::read(root.join(path)).with_context(|| format!("{path} can't be read"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(TextFile { path: path.to_owned(), text });
        }
    }
    paths.sort();
    paths.dedup();
    Ok((files, paths))
}
