//! The API's objects and the cluster's messages, each turned into the other. Pure: no request, no clock, no store.
//!
//! Nothing that a client asks for is dropped silently. A spec that comes in is turned into its message and that back
//! again; whatever the client said and the way back does not say is a field that we don't honour, and the request is
//! refused with its name ([`lossless`]). Called by the resources of the API and by tests.

pub mod cluster;
pub mod container_spec;
pub mod endpoint;
pub mod lossless;
pub mod network;
pub mod node;
pub mod secret;
pub mod service;
pub mod task;
pub mod task_spec;

use std::collections::{BTreeMap, HashMap};

use bollard_stubs::models;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use skep_proto::v1;

use super::clock::rfc3339;

/// Why an object of the API can't become a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The JSON has the wrong shape.
    #[error("invalid {object}: {message}")]
    Shape {
        /// `service spec` …
        object: &'static str,
        /// What the JSON reader says.
        message: String,
    },
    /// A value that makes no sense.
    #[error("invalid value for {field}: {message}")]
    Value {
        /// Path of the field, as the API names it.
        field: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A field that we don't honour.
    #[error("{field} is not supported by this version of Skep ({value}); leave it out")]
    Unsupported {
        /// Path of the field, as the API names it.
        field: String,
        /// What the client gave, shortened.
        value: String,
    },
}

impl Error {
    fn value(field: &str, message: impl Into<String>) -> Self {
        Self::Value { field: field.to_owned(), message: message.into() }
    }
}

/// Reads a spec: empty texts and nulls in it are "not given", as clients mean them.
pub(super) fn read<T: DeserializeOwned>(object: &'static str, value: &Value) -> Result<T, Error> {
    shaped(lossless::without_empty(value)).map_err(|message| Error::Shape { object, message })
}

/// Reads an object; the error says where it has the wrong shape, in the API's words.
pub(super) fn shaped<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    let found = match &value {
        Value::Object(_) => return serde_path_to_error::deserialize(value).map_err(|error| placed(&error)),
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
    };
    Err(format!("a JSON object, {{\"Name\": value, …}}, is expected and {found} was sent"))
}

/// The reader's words behind the path of what it could not read.
fn placed(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, why) = (error.path().to_string(), error.inner().to_string());
    // The names of our types mean nothing to a client.
    let why = match why.split_once(", expected struct ") {
        Some((found, _)) => format!("{found}, expected an object"),
        None => why,
    };
    if path == "." { why } else { format!("{path}: {why}") }
}

/// Writes a model. Models hold texts, numbers, lists and maps with text keys, which always can be written.
pub(super) fn write<T: Serialize>(model: &T) -> Value {
    serde_json::to_value(model).unwrap_or(Value::Null)
}

// ---- small things that every object has ---------------------------------------------------------------------

fn map_in(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}

fn map_out(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn some_map(map: &BTreeMap<String, String>) -> Option<HashMap<String, String>> {
    (!map.is_empty()).then(|| map_out(map))
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn some_list<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

fn some_number(number: i64) -> Option<i64> {
    (number != 0).then_some(number)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(field: &str, number: Option<i64>) -> Result<u64, Error> {
    u64::try_from(number.unwrap_or(0)).map_err(|_| Error::value(field, "it can't be negative"))
}

fn version(meta: Option<&v1::Meta>) -> Option<models::ObjectVersion> {
    Some(models::ObjectVersion { index: Some(meta.map_or(0, |m| m.version)) })
}

fn created(meta: Option<&v1::Meta>) -> Option<String> {
    Some(rfc3339(meta.map_or(0, |m| m.created_ns)))
}

fn updated(meta: Option<&v1::Meta>) -> Option<String> {
    Some(rfc3339(meta.map_or(0, |m| m.updated_ns)))
}

fn annotations(name: Option<String>, labels: Option<HashMap<String, String>>) -> Option<v1::Annotations> {
    Some(v1::Annotations { name: name.unwrap_or_default(), labels: map_in(labels) })
}

fn name_of(annotations: Option<&v1::Annotations>) -> Option<String> {
    Some(annotations.map(|a| a.name.clone()).unwrap_or_default())
}

fn labels_of(annotations: Option<&v1::Annotations>) -> Option<HashMap<String, String>> {
    Some(annotations.map(|a| map_out(&a.labels)).unwrap_or_default())
}

#[cfg(test)]
mod tests;
