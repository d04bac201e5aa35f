//! Which version of the API a request speaks: takes `/v1.NN` off the path, refuses what is too old or too new, and
//! says in every answer what the node can. The path without a version speaks the newest.

use http::{HeaderMap, HeaderValue, Uri};

use super::ApiError;

/// A version of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u16, pub u16);

/// Oldest version that is answered.
pub const MIN_VERSION: ApiVersion = ApiVersion(1, 24);

/// Newest version that is answered: that of the models.
pub const MAX_VERSION: ApiVersion = ApiVersion(1, 53);

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(major) || !digits(minor) {
            return None;
        }
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// The version and the path (with its query) that is left.
pub(super) fn split(uri: &Uri) -> Result<(ApiVersion, Uri), ApiError> {
    let path = uri.path();
    let Some((version, rest)) = prefix(path) else {
        return Ok((MAX_VERSION, uri.clone()));
    };
    if version < MIN_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too old. Minimum supported API version is {MIN_VERSION}, please upgrade your \
             client to a newer version"
        )));
    }
    if version > MAX_VERSION {
        return Err(ApiError::bad_request(format!(
            "client version {version} is too new. Maximum supported API version is {MAX_VERSION}"
        )));
    }
    let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let stripped =
        format!("{rest}{query}").parse().map_err(|_| ApiError::bad_request(format!("invalid path {path:?}")))?;
    Ok((version, stripped))
}

fn prefix(path: &str) -> Option<(ApiVersion, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/').unwrap_or(rest.len());
    let version = ApiVersion::parse(&rest[..end])?;
    Some((version, if end == rest.len() { "/" } else { &rest[end..] }))
}

/// The headers of every answer.
pub(super) fn announce(headers: &mut HeaderMap) {
    const SERVER: &str = concat!("Skep/", env!("CARGO_PKG_VERSION"), " (linux)");
    headers.insert("api-version", HeaderValue::from_static("1.53"));
    headers.insert("docker-experimental", HeaderValue::from_static("false"));
    headers.insert("ostype", HeaderValue::from_static("linux"));
    headers.insert("server", HeaderValue::from_static(SERVER));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn versions_are_taken_off_the_path() {
        for (uri, version, rest) in [
            ("/v1.41/services?status=true", ApiVersion(1, 41), "/services?status=true"),
            ("/services", MAX_VERSION, "/services"),
            ("/v1.24/_ping", MIN_VERSION, "/_ping"),
            ("/v1.53", MAX_VERSION, "/"),
            ("/version", MAX_VERSION, "/version"),
            ("/volumes/v1.2", MAX_VERSION, "/volumes/v1.2"),
        ] {
            let (found, stripped) = split(&uri.parse().unwrap()).unwrap();
            assert_eq!((found, stripped.to_string().as_str()), (version, rest), "{uri}");
        }
    }

    #[test]
    fn versions_out_of_range_are_refused_with_the_known_words() {
        let old = split(&"/v1.18/info".parse().unwrap()).unwrap_err();
        assert!(old.message.starts_with("client version 1.18 is too old. Minimum supported API version is 1.24,"));
        let new = split(&"/v1.99/info".parse().unwrap()).unwrap_err();
        assert_eq!(new.message, "client version 1.99 is too new. Maximum supported API version is 1.53");
        assert_eq!((old.status.as_u16(), new.status.as_u16()), (400, 400));
    }

    #[test]
    fn the_announced_version_is_the_newest() {
        let mut headers = HeaderMap::new();
        announce(&mut headers);
        assert_eq!(headers["api-version"], MAX_VERSION.to_string());
    }
}
