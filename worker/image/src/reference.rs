//! Names of images: `[registry/]repository[:tag][@digest]`, parsed and normalised as the Docker command
//! does (`x` means `docker.io/library/x`, and is shown as `x`). Pure; called wherever a user, an API call
//! or an archive names an image.

use std::fmt;

use crate::digest::Digest;

#[cfg(test)]
mod tests;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised name of an image. Its `Display` is the full form, with the registry spelled out.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no name of an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    /// Nothing to parse.
    #[error("the image name is empty")]
    Empty,
    /// The name without tag and digest is too long.
    #[error("the image name is longer than {NAME_MAX} characters")]
    TooLong,
    /// Repository names are lowercase.
    #[error("image name {0:?}: the repository must be lowercase")]
    Uppercase(String),
    /// 64 hex digits would be taken for an id.
    #[error("image name {0:?} looks like an image id; choose another name")]
    LooksLikeId(String),
    /// The registry's host or port is malformed.
    #[error("image name {0:?}: the registry is not a host name with an optional port")]
    Domain(String),
    /// A component of the repository is malformed.
    #[error(
        "image name {0:?}: the repository may have lowercase letters and digits, separated by `.`, `_`, `__` or dashes"
    )]
    Path(String),
    /// The tag is malformed.
    #[error(
        "image name {0:?}: a tag has at most {TAG_MAX} letters, digits, `_`, `.` and `-`, and starts with none of the last two"
    )]
    Tag(String),
    /// The digest is malformed or of another algorithm than SHA-256.
    #[error("image name {0:?}: a digest is sha256: and 64 lowercase hex digits")]
    Digest(String),
}

impl Reference {
    /// Parses and normalises a name; a tag is not added (see [`Reference::or_latest`]).
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        if text.is_empty() {
            return Err(ParseError::Empty);
        }
        let shown = || text.chars().take(NAME_MAX).collect::<String>();
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = Digest::parse(digest).map_err(|_| ParseError::Digest(shown()))?;
                (rest, Some(digest))
            }
        };
        let (domain, remainder) = split_domain(rest);
        let (path, tag) = match remainder.split_once(':') {
            None => (remainder, None),
            Some((path, tag)) => (path, Some(tag)),
        };
        let short = path.strip_prefix(OFFICIAL).unwrap_or(path);
        if domain == DEFAULT_DOMAIN && looks_like_id(short) {
            return Err(ParseError::LooksLikeId(shown()));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ParseError::Uppercase(shown()));
        }
        if !valid_domain(domain) {
            return Err(ParseError::Domain(shown()));
        }
        if !path.split('/').all(valid_path_component) {
            return Err(ParseError::Path(shown()));
        }
        if tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(ParseError::Tag(shown()));
        }
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path.to_owned() };
        if domain.len() + 1 + path.len() > NAME_MAX {
            return Err(ParseError::TooLong);
        }
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }

    /// The same name with the tag `latest`, if it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository with this digest and no tag: what a pinned name is looked up by.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), tag: None, digest: Some(digest) }
    }

    /// The same repository and tag without a digest.
    #[must_use]
    pub fn without_digest(mut self) -> Self {
        self.digest = None;
        self
    }

    /// Registry, for example `docker.io` or `registry.example:5000`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository within the registry, for example `library/alpine`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag, if the name has one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Digest, if the name has one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository in full, for example `docker.io/library/alpine`.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it, for example `alpine`.
    #[must_use]
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        let short = self.path.strip_prefix(OFFICIAL).filter(|short| !short.contains('/'));
        let short = short.unwrap_or(&self.path);
        // `docker.io/a.b/c` has no shorter form: `a.b/c` would name the registry a.b.
        if split_domain(short).1 == short { short.to_owned() } else { self.repository() }
    }

    /// The whole name as people write it, for example `alpine:latest`.
    #[must_use]
    pub fn familiar(&self) -> String {
        self.with_suffix(self.familiar_repository())
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest.as_str());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(self.repository()))
    }
}

impl std::str::FromStr for Reference {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

/// The first component is a registry if it can't be part of a repository of the default one.
fn split_domain(text: &str) -> (&str, &str) {
    match text.split_once('/') {
        Some((first, rest))
            if first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (if first == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { first }, rest)
        }
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn looks_like_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                ("x", port)
            }
            None => return false,
        },
        None => match domain.find(':') {
            Some(at) => domain.split_at(at),
            None => (domain, ""),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let port_ok = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|p| !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()));
    port_ok && host.split('.').all(label)
}

/// Runs of lowercase letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn valid_path_component(component: &str) -> bool {
    let alnum = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let bytes = component.as_bytes();
    let ends_ok = bytes.first().copied().is_some_and(alnum) && bytes.last().copied().is_some_and(alnum);
    ends_ok
        && bytes
            .split(|b| alnum(*b))
            .filter(|run| !run.is_empty())
            .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}
