//! Secrets and configs: the same shape twice. What a secret holds never goes out again.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use bollard_stubs::models;
use bytes::Bytes;
use serde_json::Value;
use skep_proto::v1;

use super::{Error, annotations, created, labels_of, lossless, name_of, read, updated, version, write};

/// A secret that a client sent.
///
/// # Errors
/// Wrong shape, no base64, fields that we don't honour.
pub fn secret_in(given: &Value) -> Result<v1::SecretSpec, Error> {
    let model: models::SecretSpec = read("secret spec", given)?;
    let data = decode(model.data.as_deref())?;
    let spec = v1::SecretSpec { annotations: annotations(model.name, model.labels), data };
    lossless::check(&without_data(given), &write(&secret_model(&spec)))?;
    Ok(spec)
}

/// A config that a client sent.
///
/// # Errors
/// Wrong shape, no base64, fields that we don't honour.
pub fn config_in(given: &Value) -> Result<v1::ConfigSpec, Error> {
    let model: models::ConfigSpec = read("config spec", given)?;
    let data = decode(model.data.as_deref())?;
    let spec = v1::ConfigSpec { annotations: annotations(model.name, model.labels), data };
    lossless::check(&without_data(given), &write(&config_model(&spec, false)))?;
    Ok(spec)
}

fn decode(data: Option<&str>) -> Result<Bytes, Error> {
    let data = data.unwrap_or_default();
    // Standard alphabet in fact, URL-safe in the description of the API: both are taken.
    STANDARD
        .decode(data)
        .or_else(|_| URL_SAFE.decode(data))
        .map(Bytes::from)
        .map_err(|e| Error::value("Data", format!("it is not base64: {e}")))
}

fn without_data(given: &Value) -> Value {
    let mut given = given.clone();
    if let Some(members) = given.as_object_mut() {
        members.remove("Data");
    }
    given
}

fn secret_model(spec: &v1::SecretSpec) -> models::SecretSpec {
    models::SecretSpec {
        name: name_of(spec.annotations.as_ref()),
        labels: labels_of(spec.annotations.as_ref()),
        ..Default::default()
    }
}

fn config_model(spec: &v1::ConfigSpec, data: bool) -> models::ConfigSpec {
    models::ConfigSpec {
        name: name_of(spec.annotations.as_ref()),
        labels: labels_of(spec.annotations.as_ref()),
        data: data.then(|| STANDARD.encode(&spec.data)),
        templating: None,
    }
}

/// A secret as clients read it: without what it holds.
pub fn secret_out(secret: &v1::Secret) -> Value {
    let meta = secret.meta.as_ref();
    write(&models::Secret {
        id: Some(secret.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        spec: secret.spec.as_ref().map(secret_model),
    })
}

/// A config as clients read it.
pub fn config_out(config: &v1::Config) -> Value {
    let meta = config.meta.as_ref();
    write(&models::Config {
        id: Some(config.id.clone()),
        version: version(meta),
        created_at: created(meta),
        updated_at: updated(meta),
        spec: config.spec.as_ref().map(|spec| config_model(spec, true)),
    })
}
