//! Reading and changing JSON by path: `Spec.Name`. Pure. What is absent reads as nothing, as Go's zero values do.

use serde_json::{Map, Value};

/// Access by path.
pub(crate) trait At {
    /// The value at a path, or null.
    fn at(&self, path: &str) -> &Value;
    /// The text at a path, or nothing.
    fn text(&self, path: &str) -> &str;
    /// The number at a path, or 0.
    fn number(&self, path: &str) -> i64;
    /// The list at a path, or none.
    fn list(&self, path: &str) -> &[Value];
    /// Sets a value, making the objects on the way.
    fn set(&mut self, path: &str, value: Value);
    /// Changes the list at a path, made if it is not there.
    fn with_list(&mut self, path: &str, change: impl FnOnce(&mut Vec<Value>));
    /// Changes the object at a path, made if it is not there.
    fn with_map(&mut self, path: &str, change: impl FnOnce(&mut Map<String, Value>));
}

fn slot<'a>(value: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(value, |value, name| {
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        &mut value[name]
    })
}

impl At for Value {
    fn at(&self, path: &str) -> &Value {
        path.split('.').fold(self, |value, name| &value[name])
    }

    fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    fn number(&self, path: &str) -> i64 {
        self.at(path).as_i64().unwrap_or(0)
    }

    fn list(&self, path: &str) -> &[Value] {
        self.at(path).as_array().map_or(&[], Vec::as_slice)
    }

    fn set(&mut self, path: &str, value: Value) {
        *slot(self, path) = value;
    }

    fn with_list(&mut self, path: &str, change: impl FnOnce(&mut Vec<Value>)) {
        let slot = slot(self, path);
        if !slot.is_array() {
            *slot = Value::Array(Vec::new());
        }
        if let Value::Array(list) = slot {
            change(list);
        }
    }

    fn with_map(&mut self, path: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let slot = slot(self, path);
        if !slot.is_object() {
            *slot = Value::Object(Map::new());
        }
        if let Value::Object(map) = slot {
            change(map);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_are_read_and_made() {
        let mut value = json!({ "a": { "b": "x", "n": 3 }, "l": [1] });
        assert_eq!((value.text("a.b"), value.number("a.n"), value.text("a.c.d")), ("x", 3, ""));
        assert_eq!(value.list("l"), &[json!(1)]);
        value.set("p.q", json!(1));
        value.with_list("p.l", |list| list.push(json!(2)));
        value.with_map("p.m", |map| drop(map.insert("k".to_owned(), json!(""))));
        assert_eq!(value["p"], json!({ "q": 1, "l": [2], "m": { "k": "" } }));
    }
}
