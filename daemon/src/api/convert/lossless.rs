//! Whether all that a client said has been understood: what went in against what comes out again.

use serde_json::{Map, Value};

use super::Error;

/// Objects whose members are names that users choose: an empty text in them is a value.
const MAPS: [&str; 7] = ["Labels", "Options", "DriverOpts", "Sysctls", "Opts", "AuxiliaryAddresses", "AuxAddress"];

/// The value without nulls and without empty texts, which clients send for "not given".
pub fn without_empty(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let mut kept = Map::new();
            for (name, member) in members {
                if member.is_null() || member.as_str() == Some("") {
                    continue;
                }
                let member = if MAPS.contains(&name.as_str()) { member.clone() } else { without_empty(member) };
                kept.insert(name.clone(), member);
            }
            Value::Object(kept)
        }
        Value::Array(items) => Value::Array(items.iter().map(without_empty).collect()),
        other => other.clone(),
    }
}

/// Checks that everything the client gave is in what we honour. Zeros, empty texts, lists and objects are "not
/// given"; what we honour may say more (defaults).
///
/// # Errors
/// The first field that would be lost.
pub fn check(given: &Value, honoured: &Value) -> Result<(), Error> {
    compare(given, honoured, &mut Vec::new())
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_nothing),
        Value::Object(members) => members.values().all(is_nothing),
    }
}

fn compare(given: &Value, honoured: &Value, path: &mut Vec<String>) -> Result<(), Error> {
    if is_nothing(given) {
        return Ok(());
    }
    match (given, honoured) {
        (Value::Object(members), Value::Object(known)) => {
            for (name, member) in members {
                path.push(name.clone());
                compare(member, known.get(name).unwrap_or(&Value::Null), path)?;
                path.pop();
            }
            Ok(())
        }
        (Value::Array(items), Value::Array(known)) if items.len() == known.len() => {
            for (index, (item, known)) in items.iter().zip(known).enumerate() {
                path.push(index.to_string());
                compare(item, known, path)?;
                path.pop();
            }
            Ok(())
        }
        (Value::Number(a), Value::Number(b)) if a == b || a.as_f64() == b.as_f64() => Ok(()),
        (a, b) if a == b => Ok(()),
        _ => Err(lost(given, path)),
    }
}

/// Names the innermost field: of a lost object, the first member that says something.
fn lost(given: &Value, path: &mut Vec<String>) -> Error {
    if let Value::Object(members) = given
        && let Some((name, member)) = members.iter().find(|(_, member)| !is_nothing(member))
    {
        path.push(name.clone());
        return lost(member, path);
    }
    let mut value = given.to_string();
    if value.len() > 80 {
        value = value.chars().take(77).collect::<String>() + "...";
    }
    Error::Unsupported { field: path.join("."), value }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_kept_passes() {
        for (given, honoured) in [
            (json!({}), json!({})),
            (json!({"a": null, "b": "", "c": 0, "d": [], "e": {"f": false}}), json!({})),
            (json!({"a": 1}), json!({"a": 1, "b": 2})),
            (json!({"a": 1.0}), json!({"a": 1})),
            (json!({"a": [{"b": "x", "c": ""}]}), json!({"a": [{"b": "x", "d": 5}]})),
        ] {
            check(&given, &honoured).unwrap();
        }
    }

    #[test]
    fn what_is_lost_is_named() {
        for (given, honoured, field) in [
            (json!({"a": 1}), json!({}), "a"),
            (json!({"a": {"b": {"c": true}}}), json!({"a": {}}), "a.b.c"),
            (json!({"a": {"b": {"c": true}}}), json!({}), "a.b.c"),
            (json!({"a": [{"b": 1}, {"b": 2}]}), json!({"a": [{"b": 1}, {"b": 3}]}), "a.1.b"),
            (json!({"a": ["x"]}), json!({"a": []}), "a"),
            (json!({"a": "x"}), json!({"a": "y"}), "a"),
        ] {
            match check(&given, &honoured).unwrap_err() {
                Error::Unsupported { field: found, .. } => assert_eq!(found, field),
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn empty_values_of_labels_are_values() {
        let given = json!({"Name": "", "Labels": {"a": ""}, "Mode": {"Global": {}}, "Env": ["", "A="]});
        assert_eq!(without_empty(&given), json!({"Labels": {"a": ""}, "Mode": {"Global": {}}, "Env": ["", "A="]}));
    }
}
