//! The part of Go's templates that people use in `--format`: fields, `json`, `join`, `lower`, `upper`, `title`, `len`,
//! `index`, `println`, `if`/`else`, `range`. Pure: a template and a value make a text.

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A template, read once and rendered for each row.
#[derive(Debug)]
pub(crate) struct Template(Vec<Node>);

#[derive(Debug)]
enum Node {
    Text(String),
    Show(Vec<Call>),
    If(Vec<Call>, Vec<Node>, Vec<Node>),
    Range(Vec<Call>, Vec<Node>, Vec<Node>),
}

/// One stage of a pipeline: a function or a value, and its arguments.
type Call = Vec<Operand>;

#[derive(Debug, Clone)]
enum Operand {
    Field(Vec<String>),
    Root(Vec<String>),
    Literal(Value),
    Function(String),
    Nested(Vec<Call>),
}

impl Template {
    /// Reads a template. `\t` and `\n` may be written with a backslash.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut pieces = split(&text)?;
        pieces.reverse();
        let (nodes, end) = block(&mut pieces, false)?;
        if let Some(end) = end {
            bail!("template parsing error: unexpected {{{{{end}}}}}");
        }
        Ok(Self(nodes))
    }

    /// The text for a value.
    pub(crate) fn render(&self, value: &Value) -> Result<String> {
        let mut out = String::new();
        render(&self.0, value, value, &mut out)?;
        Ok(out)
    }

    /// The fields of a row that the template reads: what follows a dot or `$`, outside `range`, where a dot means
    /// something else.
    pub(crate) fn reads(&self) -> Vec<String> {
        let mut found = Vec::new();
        reads(&self.0, true, &mut found);
        found
    }

    /// The first field of each `{{…}}`, for headers of tables.
    pub(crate) fn fields(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|node| match node {
                Node::Show(pipeline) => Some(pipeline.iter().flatten().find_map(first_field).unwrap_or_default()),
                _ => None,
            })
            .collect()
    }
}

fn reads(nodes: &[Node], row: bool, found: &mut Vec<String>) {
    for node in nodes {
        match node {
            Node::Text(_) => {}
            Node::Show(pipeline) => read_by(pipeline, row, found),
            Node::If(condition, body, otherwise) => {
                read_by(condition, row, found);
                reads(body, row, found);
                reads(otherwise, row, found);
            }
            Node::Range(pipeline, body, otherwise) => {
                read_by(pipeline, row, found);
                reads(body, false, found);
                reads(otherwise, row, found);
            }
        }
    }
}

fn read_by(pipeline: &[Call], row: bool, found: &mut Vec<String>) {
    for operand in pipeline.iter().flatten() {
        match operand {
            Operand::Field(path) if row => found.extend(path.first().cloned()),
            Operand::Root(path) => found.extend(path.first().cloned()),
            Operand::Nested(inner) => read_by(inner, row, found),
            _ => {}
        }
    }
}

fn first_field(operand: &Operand) -> Option<String> {
    match operand {
        Operand::Field(path) => path.last().cloned(),
        Operand::Nested(pipeline) => pipeline.iter().flatten().find_map(first_field),
        _ => None,
    }
}

enum Piece {
    Text(String),
    Action(String),
}

fn split(mut text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    while let Some(start) = text.find("{{") {
        let mut before = &text[..start];
        let rest = &text[start + 2..];
        let end = rest.find("}}").with_context(|| format!("template parsing error: unclosed action in {text:?}"))?;
        let mut action = &rest[..end];
        text = &rest[end + 2..];
        if let Some(inner) = action.strip_prefix("- ") {
            action = inner;
            before = before.trim_end();
        }
        if let Some(inner) = action.strip_suffix(" -") {
            action = inner;
            text = text.trim_start();
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        pieces.push(Piece::Action(action.trim().to_owned()));
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text.to_owned()));
    }
    Ok(pieces)
}

/// Reads nodes up to `end` or `else` (given back), from the back of the reversed pieces.
fn block(pieces: &mut Vec<Piece>, inner: bool) -> Result<(Vec<Node>, Option<String>)> {
    let mut nodes = Vec::new();
    while let Some(piece) = pieces.pop() {
        let action = match piece {
            Piece::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Piece::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "end" | "else" => return Ok((nodes, Some(action.clone()))),
            "if" | "range" => {
                let pipeline = pipeline(rest)?;
                let (body, end) = block(pieces, true)?;
                let otherwise = match end.as_deref() {
                    Some("else") => block(pieces, true)?.0,
                    Some(chained) if chained.starts_with("else ") => {
                        pieces.push(Piece::Action(chained["else ".len()..].to_owned()));
                        // The inner `if` takes the only `end`; it is put back for the outer one.
                        let nested = chain(pieces)?;
                        vec![nested]
                    }
                    _ => Vec::new(),
                };
                nodes.push(match word {
                    "if" => Node::If(pipeline, body, otherwise),
                    _ => Node::Range(pipeline, body, otherwise),
                });
            }
            _ if action.starts_with("/*") => {}
            _ => nodes.push(Node::Show(pipeline(&action)?)),
        }
    }
    if inner {
        bail!("template parsing error: unexpected EOF, an {{{{end}}}} is missing");
    }
    Ok((nodes, None))
}

/// The `if` of an `else if`.
fn chain(pieces: &mut Vec<Piece>) -> Result<Node> {
    let Some(Piece::Action(action)) = pieces.pop() else { bail!("template parsing error: bad else") };
    let rest = action.strip_prefix("if ").context("template parsing error: after else stands if or nothing")?;
    let condition = pipeline(rest)?;
    let (body, end) = block(pieces, true)?;
    let otherwise = match end.as_deref() {
        Some("else") => block(pieces, true)?.0,
        Some(chained) if chained.starts_with("else ") => {
            pieces.push(Piece::Action(chained["else ".len()..].to_owned()));
            vec![chain(pieces)?]
        }
        _ => Vec::new(),
    };
    Ok(Node::If(condition, body, otherwise))
}

fn pipeline(text: &str) -> Result<Vec<Call>> {
    let mut calls = vec![Vec::new()];
    let mut rest = text.trim();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            ' ' | '\t' => 1,
            '|' => {
                calls.push(Vec::new());
                1
            }
            '(' => {
                let end = closing(rest)?;
                push(&mut calls, Operand::Nested(pipeline(&rest[1..end])?));
                end + 1
            }
            '"' | '`' => {
                let (literal, length) = quoted(rest, first)?;
                push(&mut calls, Operand::Literal(Value::from(literal)));
                length
            }
            _ => {
                let end = rest.find([' ', '\t', '|', ')']).unwrap_or(rest.len());
                push(&mut calls, word(&rest[..end])?);
                end
            }
        };
        rest = &rest[length..];
    }
    if calls.iter().any(Vec::is_empty) {
        bail!("template parsing error: missing value in {text:?}");
    }
    Ok(calls)
}

fn push(calls: &mut [Call], operand: Operand) {
    if let Some(call) = calls.last_mut() {
        call.push(operand);
    }
}

fn closing(text: &str) -> Result<usize> {
    let mut depth = 0;
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok(index);
        }
    }
    bail!("template parsing error: unclosed left paren in {text:?}")
}

/// The content of a quoted text, and how much of the input it took.
fn quoted(text: &str, quote: char) -> Result<(String, usize)> {
    let (mut out, mut escaped) = (String::new(), false);
    for (index, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => {
                out.push(match c {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
                escaped = false;
            }
            '\\' if quote == '"' => escaped = true,
            c if c == quote => return Ok((out, index + 1)),
            other => out.push(other),
        }
    }
    bail!("template parsing error: unterminated quoted string in {text:?}")
}

fn word(text: &str) -> Result<Operand> {
    let path = |t: &str| t.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    if let Some(rest) = text.strip_prefix('$') {
        return Ok(Operand::Root(path(rest)));
    }
    if text.starts_with('.') {
        return Ok(Operand::Field(path(text)));
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Operand::Literal(Value::from(number)));
    }
    match text {
        "true" | "false" => Ok(Operand::Literal(Value::from(text == "true"))),
        "json" | "join" | "lower" | "upper" | "title" | "len" | "index" | "print" | "println" | "not" | "eq" | "ne"
        | "and" | "or" | "split" | "truncate" => Ok(Operand::Function(text.to_owned())),
        other => bail!("template parsing error: function {other:?} not defined"),
    }
}

// ---- rendering ----------------------------------------------------------------------------------------------

fn render(nodes: &[Node], root: &Value, dot: &Value, out: &mut String) -> Result<()> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Show(pipeline) => out.push_str(&shown(&evaluate(pipeline, root, dot)?)),
            Node::If(condition, body, otherwise) => {
                let branch = if truth(&evaluate(condition, root, dot)?) { body } else { otherwise };
                render(branch, root, dot, out)?;
            }
            Node::Range(pipeline, body, otherwise) => {
                let items = match evaluate(pipeline, root, dot)? {
                    Value::Array(items) => items,
                    Value::Object(members) => members.into_iter().map(|(_, value)| value).collect(),
                    Value::Null => Vec::new(),
                    other => bail!("template: range can't iterate over {}", shown(&other)),
                };
                if items.is_empty() {
                    render(otherwise, root, dot, out)?;
                }
                for item in &items {
                    render(body, root, item, out)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(pipeline: &[Call], root: &Value, dot: &Value) -> Result<Value> {
    let mut last: Option<Value> = None;
    for call in pipeline {
        let mut operands = call.iter();
        let first = operands.next().context("template: empty command")?;
        let mut arguments = operands.map(|o| operand(o, root, dot)).collect::<Result<Vec<_>>>()?;
        arguments.extend(last.take());
        last = Some(match first {
            Operand::Function(name) => function(name, &arguments)?,
            other if arguments.is_empty() => operand(other, root, dot)?,
            _ => bail!("template: a value is no function"),
        });
    }
    Ok(last.unwrap_or(Value::Null))
}

fn operand(operand: &Operand, root: &Value, dot: &Value) -> Result<Value> {
    match operand {
        Operand::Field(path) => field(dot, path),
        Operand::Root(path) => field(root, path),
        Operand::Literal(value) => Ok(value.clone()),
        Operand::Nested(pipeline) => evaluate(pipeline, root, dot),
        Operand::Function(name) => function(name, &[]),
    }
}

/// A field by its name, or by its name in other case, as Go's readers of JSON take it.
fn field(value: &Value, path: &[String]) -> Result<Value> {
    let mut value = value;
    for name in path {
        let Value::Object(members) = value else {
            if value.is_null() {
                return Ok(Value::Null);
            }
            bail!("template: can't evaluate field {name} in {}", shown(value));
        };
        let found = members
            .get(name)
            .or_else(|| members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value));
        value = found.unwrap_or(&Value::Null);
    }
    Ok(value.clone())
}

fn function(name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |index: usize| arguments.get(index).map(shown).unwrap_or_default();
    Ok(match (name, arguments) {
        ("json", [value]) => Value::from(value.to_string()),
        ("lower", [_]) => Value::from(text(0).to_lowercase()),
        ("upper", [_]) => Value::from(text(0).to_uppercase()),
        ("title", [_]) => Value::from(title(&text(0))),
        ("print", values) => Value::from(values.iter().map(shown).collect::<String>()),
        ("println", values) => Value::from(values.iter().map(shown).collect::<Vec<_>>().join(" ") + "\n"),
        ("len", [Value::Array(items)]) => Value::from(items.len()),
        ("len", [Value::Object(members)]) => Value::from(members.len()),
        ("len", [Value::Null]) => Value::from(0),
        ("len", [_]) => Value::from(text(0).len()),
        ("join", [Value::Array(items), separator]) => {
            Value::from(items.iter().map(shown).collect::<Vec<_>>().join(&shown(separator)))
        }
        ("join", [Value::Null, _]) => Value::from(""),
        ("split", [_, _]) => text(0).split(&text(1)).map(Value::from).collect(),
        ("truncate", [_, length]) => {
            let length = length.as_u64().and_then(|l| usize::try_from(l).ok()).unwrap_or(usize::MAX);
            Value::from(text(0).chars().take(length).collect::<String>())
        }
        ("index", [first, keys @ ..]) => {
            let step = |value: Value, key: &Value| match key.as_u64().and_then(|k| usize::try_from(k).ok()) {
                Some(index) => value.get(index).cloned().context("template: index out of range"),
                None => Ok(value.get(shown(key)).cloned().unwrap_or(Value::Null)),
            };
            keys.iter().try_fold(first.clone(), step)?
        }
        ("not", [value]) => Value::from(!truth(value)),
        ("eq", [first, others @ ..]) => Value::from(others.contains(first)),
        ("ne", [first, second]) => Value::from(first != second),
        ("and", values) => values.iter().find(|v| !truth(v)).or(values.last()).cloned().unwrap_or(Value::Null),
        ("or", values) => values.iter().find(|v| truth(v)).or(values.last()).cloned().unwrap_or(Value::Null),
        _ => bail!("template: wrong arguments for {name}"),
    })
}

fn title(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(truth) => *truth,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// A value as Go prints it.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(members) => {
            let members: Vec<_> = members.iter().map(|(key, value)| format!("{key}:{}", shown(value))).collect();
            format!("map[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_render_as_go_does() {
        let value = json!({
            "ID": "x", "Spec": { "Name": "web", "Labels": { "a.b": "c" } }, "N": 3, "List": ["p", "q"], "No": null,
            "Items": [{ "V": 1 }, { "V": 2 }], "Yes": true,
        });
        for (template, expected) in [
            ("{{.ID}}", "x"),
            ("{{ .Spec.Name }}: {{.N}}", "web: 3"),
            ("{{json .Spec.Labels}}", r#"{"a.b":"c"}"#),
            ("{{.Spec.Name | upper}}", "WEB"),
            ("{{join .List \", \"}}", "p, q"),
            ("{{index .Spec.Labels \"a.b\"}}", "c"),
            ("{{index .List 1}}", "q"),
            ("{{range .Items}}{{.V}};{{end}}", "1;2;"),
            ("{{range .No}}x{{else}}none{{end}}", "none"),
            ("{{if .Yes}}a{{else}}b{{end}}", "a"),
            ("{{if .No}}a{{else if eq .ID \"x\"}}c{{else}}b{{end}}!", "c!"),
            ("{{len .List}}\\t{{.spec.name}}", "2\tweb"),
            ("{{.List}} {{.Spec.Labels}} {{.Missing}}", "[p q] map[a.b:c] <no value>"),
            ("{{title (lower \"ABC\")}}", "Abc"),
            ("a {{- .ID -}} b", "axb"),
            ("{{range .Items}}{{$.ID}}{{.V}}{{end}}", "x1x2"),
            ("plain", "plain"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render(&value).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for template in ["{{", "{{.ID", "{{nope .ID}}", "{{if .A}}x", "{{end}}", "{{\"x}}", "{{| json}}", "{{(.A}}"] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
        let value = json!({ "A": "x" });
        for template in ["{{.A.B}}", "{{range .A}}{{end}}", "{{index .L 5}}", "{{json}}"] {
            let parsed = Template::parse(template).unwrap();
            assert!(parsed.render(&value).is_err() || template.contains("index"), "{template}");
        }
    }

    #[test]
    fn what_a_template_reads_is_known_before_there_is_a_row() {
        for (template, fields) in [
            ("{{.ID}} {{json .Spec.Name}} {{upper (lower .Mode)}}", vec!["ID", "Spec", "Mode"]),
            ("{{if .A}}{{.B}}{{else}}{{.C}}{{end}}", vec!["A", "B", "C"]),
            ("{{range .List}}{{.V}}{{$.ID}}{{else}}{{.D}}{{end}}", vec!["List", "ID", "D"]),
            ("{{json .}} {{\".X\"}} text", vec![]),
        ] {
            assert_eq!(Template::parse(template).unwrap().reads(), fields, "{template}");
        }
    }

    #[test]
    fn headers_come_from_fields() {
        let template = Template::parse("{{.ID}}\t{{json .Spec.Name}}\t{{upper (lower .Mode)}}").unwrap();
        assert_eq!(template.fields(), ["ID", "Name", "Mode"]);
    }
}
