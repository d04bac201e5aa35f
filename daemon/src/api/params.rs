//! What a request's URI says: the name in its path, and query parameters, read as the Engine API reads them (several
//! values under one name, and its own idea of truth).

use axum::extract::{self, FromRequestParts, Query};
use http::request::Parts;

use super::ApiError;
use super::filters::Filters;

/// The query of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|Query(pairs)| Self(pairs))
            .map_err(|e| ApiError::bad_request(format!("invalid query: {e}")))
    }
}

/// The variable part of a request's path, decoded.
#[derive(Clone, Debug)]
pub(super) struct Path(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Path {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match extract::Path::<String>::from_request_parts(parts, state).await {
            Ok(extract::Path(text)) => Ok(Self(text)),
            Err(error) => Err(ApiError::new(error.status(), error.body_text())),
        }
    }
}

impl Params {
    /// The first value of a name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first value of a name, or nothing.
    pub(super) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    /// All values of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a flag is set: anything but empty, `0`, `no`, `false` and `none`.
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.text(name).trim().to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// A whole number that has to be there.
    pub(super) fn number(&self, name: &str) -> Result<u64, ApiError> {
        let text = self.text(name);
        text.parse().map_err(|_| ApiError::bad_request(format!("invalid {name} {text:?}: give a whole number")))
    }

    /// The `filters` parameter.
    pub(super) fn filters(&self, accepted: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.get("filters"), accepted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_is_what_the_engine_takes_for_it() {
        for (value, expected) in
            [("1", true), ("true", true), ("yes", true), ("", false), ("0", false), ("False", false), ("none", false)]
        {
            let params = Params(vec![("force".to_owned(), value.to_owned())]);
            assert_eq!(params.flag("force"), expected, "{value}");
        }
        assert!(!Params::default().flag("force"));
    }
}
