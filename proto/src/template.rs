//! Placeholders in a service's spec: `{{.Node.Hostname}}` in a host name or in the environment, another text in every
//! task.
//!
//! Decides what is a placeholder; what one stands for is the worker's to say. Managers read a text to refuse what no
//! worker could expand, workers to expand it, so that both mean the same. Pure.

use std::borrow::Cow;

/// What a placeholder can stand for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    /// `.Service.ID`
    ServiceId,
    /// `.Service.Name`
    ServiceName,
    /// `.Service.Labels.name` or `index .Service.Labels "name"`
    ServiceLabel(String),
    /// `.Node.ID`
    NodeId,
    /// `.Node.Hostname`
    NodeHostname,
    /// `.Node.Platform.OS`
    NodeOs,
    /// `.Node.Platform.Architecture`
    NodeArchitecture,
    /// `.Task.ID`
    TaskId,
    /// `.Task.Name`
    TaskName,
    /// `.Task.Slot`
    TaskSlot,
}

/// A piece of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// Stands for itself. `{{"x"}}` is one too: how a text can hold two braces.
    Text(&'a str),
    /// Is replaced.
    Field(Field),
}

/// Why a text can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The second pair of braces is missing.
    #[error("`{{{{` is not closed by `}}}}`; to have the braces themselves, write {{{{\"{{{{\"}}}}")]
    Open,
    /// Nothing has that name.
    #[error(
        "placeholder `{{{{{0}}}}}` is unknown: there are .Service.ID, .Service.Name, .Service.Labels.NAME, .Node.ID, \
         .Node.Hostname, .Node.Platform.OS, .Node.Platform.Architecture, .Task.ID, .Task.Name and .Task.Slot; to have \
         the braces themselves, write {{{{\"{{{{\"}}}}"
    )]
    Unknown(String),
}

/// Takes a text apart.
///
/// # Errors
/// Braces that nothing closes, or a placeholder that stands for nothing.
pub fn parse(text: &str) -> Result<Vec<Part<'_>>, Error> {
    let (mut parts, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find("{{") {
        if at > 0 {
            parts.push(Part::Text(&rest[..at]));
        }
        let (part, after) = placeholder(&rest[at + 2..])?;
        parts.push(part);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest));
    }
    Ok(parts)
}

/// The text with every placeholder replaced by what `value` says.
///
/// # Errors
/// As [`parse`].
pub fn expand<'a>(text: &'a str, value: impl Fn(&Field) -> String) -> Result<Cow<'a, str>, Error> {
    if !text.contains("{{") {
        return Ok(Cow::Borrowed(text));
    }
    let parts = parse(text)?.into_iter().map(|part| match part {
        Part::Text(text) => Cow::Borrowed(text),
        Part::Field(field) => Cow::Owned(value(&field)),
    });
    Ok(Cow::Owned(parts.collect::<String>()))
}

/// What stands behind two opening braces, and the rest behind the closing ones.
fn placeholder(text: &str) -> Result<(Part<'_>, &str), Error> {
    let inner = text.trim_start();
    if let Some((quoted, rest)) = quoted(inner)
        && let Some(rest) = rest.trim_start().strip_prefix("}}")
    {
        return Ok((Part::Text(quoted), rest));
    }
    let end = text.find("}}").ok_or(Error::Open)?;
    let name = text[..end].trim();
    let field = field(name).ok_or_else(|| Error::Unknown(name.chars().take(80).collect()))?;
    Ok((Part::Field(field), &text[end + 2..]))
}

/// A text in quotes at the beginning, and what follows. Nothing is escaped in it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '`'))?;
    text[1..].split_once(quote)
}

fn field(name: &str) -> Option<Field> {
    Some(match name {
        ".Service.ID" => Field::ServiceId,
        ".Service.Name" => Field::ServiceName,
        ".Node.ID" => Field::NodeId,
        ".Node.Hostname" => Field::NodeHostname,
        ".Node.Platform.OS" => Field::NodeOs,
        ".Node.Platform.Architecture" => Field::NodeArchitecture,
        ".Task.ID" => Field::TaskId,
        ".Task.Name" => Field::TaskName,
        ".Task.Slot" => Field::TaskSlot,
        _ => Field::ServiceLabel(label(name)?.to_owned()),
    })
}

fn label(name: &str) -> Option<&str> {
    if let Some(label) = name.strip_prefix(".Service.Labels.") {
        let plain = !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '_');
        return plain.then_some(label);
    }
    let key = name.strip_prefix("index ")?.trim_start().strip_prefix(".Service.Labels ")?.trim_start();
    quoted(key).filter(|(_, rest)| rest.is_empty()).map(|(key, _)| key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shown(text: &str) -> Result<String, Error> {
        expand(text, |field| format!("<{field:?}>")).map(Cow::into_owned)
    }

    #[test]
    fn placeholders_are_replaced_and_the_rest_stays() {
        for (text, expected) in [
            ("", ""),
            ("plain {x} }}", "plain {x} }}"),
            ("{{.Node.Hostname}}", "<NodeHostname>"),
            ("a-{{ .Service.Name }}-{{.Task.Slot}}.b", "a-<ServiceName>-<TaskSlot>.b"),
            ("{{.Service.ID}}{{.Node.ID}}{{.Task.ID}}{{.Task.Name}}", "<ServiceId><NodeId><TaskId><TaskName>"),
            ("{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}", "<NodeOs>/<NodeArchitecture>"),
            ("{{.Service.Labels.tier}}", "<ServiceLabel(\"tier\")>"),
            ("{{index .Service.Labels \"a.b-c\"}}", "<ServiceLabel(\"a.b-c\")>"),
            ("F={{\"{{\"}}.Names}}", "F={{.Names}}"),
            ("{{ `}}` }}", "}}"),
            ("é{{.Task.Slot}}é", "é<TaskSlot>é"),
        ] {
            assert_eq!(shown(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_stands_for_nothing_is_an_error() {
        for text in ["{{", "a{{.Task.ID", "{{.Task.ID}", "{{\"x\""] {
            assert_eq!(shown(text), Err(Error::Open), "{text}");
        }
        for (text, name) in [
            ("{{}}", ""),
            ("{{.Node}}", ".Node"),
            ("{{.node.hostname}}", ".node.hostname"),
            ("{{.Service.Labels.}}", ".Service.Labels."),
            ("{{.Service.Labels.a-b}}", ".Service.Labels.a-b"),
            ("{{index .Service.Labels}}", "index .Service.Labels"),
            ("{{range .x}}{{end}}", "range .x"),
            ("{{\"a\" b}}", "\"a\" b"),
        ] {
            assert_eq!(shown(text), Err(Error::Unknown(name.to_owned())), "{text}");
        }
        assert!(shown("{{.X}}").unwrap_err().to_string().starts_with("placeholder `{{.X}}` is unknown"));
    }
}
