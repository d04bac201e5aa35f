//! JSON bodies: bounded, checked for their type, and refused with a message that says where they are wrong.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use http::{StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Body;
use serde::de::DeserializeOwned;

use super::{ApiError, convert};

/// Most that a JSON body may hold. Larger things (images) are streamed.
pub(super) const MAX_JSON: usize = 4 << 20;

/// How long it may take to arrive.
const JSON_DEADLINE: Duration = Duration::from_secs(30);

/// How much of a body that nobody wants is read all the same, and for how long.
const MAX_UNWANTED: usize = 64 << 20;
const UNWANTED_DEADLINE: Duration = Duration::from_secs(5);

/// Reads what is left of a body whose content matters no more. Clients that still write would otherwise see a broken
/// pipe in place of the answer.
pub(super) async fn discard<B>(body: B)
where
    B: Body,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = async {
        let mut body = std::pin::pin!(Limited::new(body, MAX_UNWANTED));
        while let Some(Ok(_)) = body.frame().await {}
    };
    // Late or too long: then the client has to live with the broken pipe.
    let _ = tokio::time::timeout(UNWANTED_DEADLINE, read).await;
}

/// A JSON body; an empty one is `None`.
pub(super) struct OptionalJson<T>(pub(super) Option<T>);

/// A JSON body that has to be there.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
        let too_large = || {
            let text = format!("the request's body is larger than the {} MiB that JSON may have", MAX_JSON >> 20);
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        };
        let announced =
            request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|n| n > MAX_JSON as u64) {
            discard(request.into_body()).await;
            return Err(too_large());
        }
        let read = Limited::new(request.into_body(), MAX_JSON).collect();
        let read = tokio::time::timeout(JSON_DEADLINE, read).await.map_err(|_| {
            let text = format!("the request's body did not arrive within {} s", JSON_DEADLINE.as_secs());
            ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
        })?;
        let bytes = read.map_err(|error| {
            if error.is::<LengthLimitError>() || error.source().is_some_and(|e| e.is::<LengthLimitError>()) {
                too_large()
            } else {
                ApiError::bad_request(format!("the request's body could not be read: {error}"))
            }
        })?;
        let bytes = bytes.to_bytes();
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        let given = content_type.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default();
        let media = given.split(';').next().unwrap_or_default().trim();
        if !media.is_empty() && !media.eq_ignore_ascii_case("application/json") {
            let text = format!("unsupported Content-Type header ({given}): must be 'application/json'");
            return Err(ApiError::bad_request(text));
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| ApiError::bad_request(format!("invalid JSON in the request's body: {e}")))?;
        convert::shaped(value)
            .map(|body| Self(Some(body)))
            .map_err(|why| ApiError::bad_request(format!("the request's body is not what this path takes: {why}")))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match OptionalJson::from_request(request, state).await? {
            OptionalJson(Some(value)) => Ok(Self(value)),
            OptionalJson(None) => Err(ApiError::bad_request("invalid JSON: the request has no body")),
        }
    }
}
