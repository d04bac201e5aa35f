//! The config of an image: what its JSON says, read leniently where builders differ. Decides nothing about
//! how a container runs; labels and annotations stay text. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// How containers of an image start unless told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// Program and its first arguments; none if the image names none.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments after the entry point, or the command if there is none.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`, in order.
    pub env: Vec<String>,
    /// Directory to start in; empty means `/`.
    pub working_dir: String,
    /// `name|uid[:group|gid]`, looked up in the image's own files; empty means root.
    pub user: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port/protocol`.
    pub exposed_ports: BTreeSet<String>,
    /// Signal that asks the container to end, as a name or a number.
    pub stop_signal: Option<String>,
    /// Paths that want a volume.
    pub volumes: BTreeSet<String>,
    /// How to tell whether a container is healthy.
    pub healthcheck: Option<Healthcheck>,
}

/// A health check of an image. Durations are nanoseconds; 0 means "the default".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", program, …]` or `["CMD-SHELL", line]`.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: u64,
    /// Time that one check may take.
    pub timeout: u64,
    /// Time after the start in which failures don't count.
    pub start_period: u64,
    /// Time between two checks within the start period.
    pub start_interval: u64,
    /// Failures in a row that make a container unhealthy.
    pub retries: u64,
}

/// One step in the making of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When the step was done.
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub created: Option<Timestamp>,
    /// The instruction.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// A remark.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Who did it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// The whole document whose digest is the image's id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigFile {
    #[serde(skip_serializing_if = "Option::is_none", with = "time")]
    pub(crate) created: Option<Timestamp>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) author: String,
    pub(crate) architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) variant: String,
    pub(crate) os: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) config: RunConfig,
    pub(crate) rootfs: RootFs,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) history: Vec<History>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(crate) diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".to_owned(), diff_ids: Vec::new() }
    }
}

/// A set in the API's dress: `{"80/tcp": {}}`.
type Set = BTreeMap<String, Empty>;

/// `{}`, whatever is inside.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Empty {}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RunConfig {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) user: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub(crate) exposed_ports: Set,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text_or_list")]
    pub(crate) entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "text_or_list")]
    pub(crate) cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) healthcheck: Option<Healthcheck>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub(crate) volumes: Set,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) working_dir: String,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_default")]
    pub(crate) on_build: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_is_default")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_signal: Option<String>,
}

impl RunConfig {
    /// The config without the API's dress.
    pub(crate) fn public(self) -> ImageConfig {
        ImageConfig {
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env,
            working_dir: self.working_dir,
            user: self.user,
            labels: self.labels,
            exposed_ports: self.exposed_ports.into_keys().collect(),
            stop_signal: self.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: self.volumes.into_keys().collect(),
            healthcheck: self.healthcheck,
        }
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(input).map(Option::unwrap_or_default)
}

/// RFC 3339; a time that nobody can read is no reason to refuse an image.
mod time {
    use super::{Deserialize, Deserializer, Serializer, Timestamp};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Timestamp>, D::Error> {
        let text = Option::<String>::deserialize(input)?;
        Ok(text.and_then(|text| text.parse().ok()))
    }

    pub(super) fn serialize<S: Serializer>(time: &Option<Timestamp>, output: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => output.collect_str(time),
            None => output.serialize_none(),
        }
    }
}

/// Old builders wrote one word as a string.
fn text_or_list<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        List(Vec<String>),
    }
    Ok(Option::<Either>::deserialize(input)?.map(|either| match either {
        Either::Text(text) => vec![text],
        Either::List(list) => list,
    }))
}

/// The architecture of this machine in the names of the OCI specification.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn configs_of_different_builders_are_understood() {
        let text = r#"{"architecture":"arm64","os":"linux","created":"2024-01-02T03:04:05.123456789Z",
            "config":{"Env":["A=b"],"Entrypoint":"/x","Cmd":null,"Labels":null,"ExposedPorts":{"80/tcp":{}},
            "Volumes":{"/data":{"x":1}},"StopSignal":"","Healthcheck":{"Test":["CMD","x"],"Interval":5},"Unknown":[1]},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let file: ConfigFile = serde_json::from_str(text).unwrap();
        assert_eq!(file.created.unwrap().to_string(), "2024-01-02T03:04:05.123456789Z");
        let config = file.config.public();
        assert_eq!(config.entrypoint, Some(vec!["/x".to_owned()]));
        assert_eq!((config.cmd, config.stop_signal), (None, None));
        assert_eq!(config.volumes.into_iter().collect::<Vec<_>>(), ["/data"]);
        assert_eq!(config.healthcheck.unwrap().interval, 5);
        let least: ConfigFile = serde_json::from_str(r#"{"created":"yesterday","config":null}"#).unwrap();
        assert_eq!(least.created, None);
    }
}
