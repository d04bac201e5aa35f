//! The `filters` parameter of lists: what a client wants to see. Reads both forms that clients send and answers
//! questions about single values. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ApiError;

/// Values by filter name; a thing passes when it fits one value of every filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

/// `{"name":["a"]}` since API 1.22, `{"name":{"a":true}}` before, and still in some clients.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    Set(BTreeMap<String, bool>),
    Null(()),
}

impl Filters {
    /// Reads the parameter; only the `accepted` names may occur.
    pub(super) fn parse(text: Option<&str>, accepted: &[&str]) -> Result<Self, ApiError> {
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let raw: BTreeMap<String, Values> = serde_json::from_str(text).map_err(|e| {
            ApiError::bad_request(format!("invalid filter: the parameter \"filters\" is no JSON map: {e}"))
        })?;
        let mut filters = BTreeMap::new();
        for (name, values) in raw {
            if !accepted.contains(&name.as_str()) {
                return Err(ApiError::bad_request(format!("invalid filter '{name}'")));
            }
            let values: Vec<String> = match values {
                Values::List(list) => list,
                Values::Set(set) => set.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
                Values::Null(()) => Vec::new(),
            };
            if !values.is_empty() {
                filters.insert(name, values);
            }
        }
        Ok(Self(filters))
    }

    /// The values of a filter; empty when it was not given.
    pub(super) fn get(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether a filter was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Refuses values that nothing could ever have.
    pub(super) fn known(&self, name: &str, values: &[&str]) -> Result<(), ApiError> {
        match self.get(name).iter().find(|value| !values.contains(&value.as_str())) {
            Some(value) => {
                let text = format!("invalid filter '{name}={value}': give one of {}", values.join(", "));
                Err(ApiError::bad_request(text))
            }
            None => Ok(()),
        }
    }

    /// Whether the filter is absent or one of its values is exactly this.
    pub(super) fn exact(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| wanted == value)
    }

    /// Whether the filter is absent or one of its values begins this.
    pub(super) fn prefix(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| value.starts_with(wanted))
    }

    /// Whether the filter is absent or one of its values occurs in this.
    pub(super) fn contains(&self, name: &str, value: &str) -> bool {
        self.any(name, |wanted| value.contains(wanted.trim_start_matches('^').trim_end_matches('$')))
    }

    /// Whether the filter is absent or the predicate holds for one of its values.
    pub(super) fn any(&self, name: &str, predicate: impl Fn(&str) -> bool) -> bool {
        !self.has(name) || self.get(name).iter().any(|wanted| predicate(wanted))
    }

    /// Whether all wanted labels are there: `name` or `name=value`.
    pub(super) fn labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.get(name).iter().all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        })
    }

    /// A filter that is a yes or no; `None` when it was not given.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.get(name).first().map(String::as_str) {
            None => Ok(None),
            Some("1" | "true" | "True" | "TRUE" | "t") => Ok(Some(true)),
            Some("0" | "false" | "False" | "FALSE" | "f") => Ok(Some(false)),
            Some(other) => Err(ApiError::bad_request(format!("invalid filter '{name}={other}': give true or false"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn both_forms_say_the_same() {
        let list = Filters::parse(Some(r#"{"name":["a","b"],"id":null}"#), &["name", "id"]).unwrap();
        let set = Filters::parse(Some(r#"{"name":{"a":true,"b":true,"c":false}}"#), &["name"]).unwrap();
        assert_eq!(list, set);
        assert!(list.prefix("name", "abc") && list.exact("name", "b") && list.exact("absent", "x"));
        assert!(!list.exact("name", "abc"));
        assert_eq!(Filters::parse(Some(""), &[]).unwrap(), Filters::default());
        assert_eq!(Filters::parse(Some("{}"), &[]).unwrap(), Filters::default());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["[", "[]", r#"{"name":5}"#, r#"{"colour":["red"]}"#, r#"{"name":["a"]"#] {
            assert_eq!(Filters::parse(Some(text), &["name"]).unwrap_err().status.as_u16(), 400, "{text}");
        }
    }

    #[test]
    fn values_that_nothing_has_are_refused() {
        let filters = Filters::parse(Some(r#"{"role":["worker","king"]}"#), &["role"]).unwrap();
        assert!(filters.known("role", &["worker", "manager"]).unwrap_err().message.contains("'role=king'"));
        filters.known("role", &["worker", "king"]).unwrap();
        filters.known("other", &[]).unwrap();
    }

    #[test]
    fn labels_all_have_to_fit() {
        let labels = BTreeMap::from([("tier".to_owned(), "web".to_owned()), ("x".to_owned(), String::new())]);
        for (wanted, fits) in [
            (r#"{"label":["tier"]}"#, true),
            (r#"{"label":["tier=web","x"]}"#, true),
            (r#"{"label":["tier=db"]}"#, false),
            (r#"{"label":["tier","y"]}"#, false),
        ] {
            assert_eq!(Filters::parse(Some(wanted), &["label"]).unwrap().labels("label", &labels), fits, "{wanted}");
        }
    }
}
