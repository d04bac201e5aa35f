//! A look at Rust source that tells code from comments and text. Not a parser: enough to search for words. Pure.

/// The source with every comment, string and character replaced by spaces; lines stay where they are.
pub(crate) fn code(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let before_is_word = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let taken = comment(rest).or_else(|| if before_is_word { plain_string(rest) } else { string(rest) });
        match taken.or_else(|| character(rest)) {
            Some(length) => {
                blank(&mut out, &rest[..length]);
                rest = &rest[length..];
            }
            None => {
                out.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    out
}

/// Lines (from 1) in which `word` stands as a whole word, or path of words.
pub(crate) fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.lines().enumerate().filter_map(move |(number, line)| {
        let found = line
            .match_indices(word)
            .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word));
        found.then_some(number + 1)
    })
}

fn blank(out: &mut String, taken: &str) {
    out.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
}

fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (1, 2);
    while depth > 0 && at < rest.len() {
        let here = &rest[at..];
        let (step, change) = if here.starts_with("*/") {
            (2, -1)
        } else if here.starts_with("/*") {
            (2, 1)
        } else {
            (here.chars().next().map_or(1, char::len_utf8), 0)
        };
        at += step;
        depth += change;
    }
    Some(at)
}

/// A string with whatever prefix: `"…"`, `b"…"`, `c"…"`, `r#"…"#`, `br"…"`.
fn string(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""]
        .into_iter()
        .find(|p| rest.strip_prefix(p).is_some_and(|after| after.starts_with(['"', '#'])))?;
    let after = &rest[prefix.len()..];
    if !prefix.ends_with('r') {
        return plain_string(after).map(|length| prefix.len() + length);
    }
    let hashes = after.len() - after.trim_start_matches('#').len();
    if !after[hashes..].starts_with('"') {
        return None; // a raw identifier
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let body = &after[hashes + 1..];
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(prefix.len() + hashes + 1 + length)
}

fn plain_string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('"')?;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    Some(rest.len())
}

/// `'x'` or `'\n'`, but not the lifetime `'x`.
fn character(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('\'')?;
    let first = body.chars().next()?;
    if first == '\\' {
        let end = body.get(2..)?.find('\'')?;
        return Some(1 + 2 + end + 1);
    }
    let after = &body[first.len_utf8()..];
    after.starts_with('\'').then_some(1 + first.len_utf8() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_texts_are_blanked_and_code_stays() {
        let table: [(&str, &[&str]); 9] = [
            ("a // unsafe\nb", &["a", "b"]),
            ("a /* x /* y */ z */ b", &["a", "b"]),
            (r#"f("unsafe \" x") g"#, &["f(", ")", "g"]),
            (r##"f(r#"a " b"#) g"##, &["f(", ")", "g"]),
            ("'a' 'b: &'static x", &["'b:", "&'static", "x"]),
            (r"'\'' x", &["x"]),
            ("r#type x", &["r#type", "x"]),
            ("b\"x\" y", &["y"]),
            ("ä \"ö\" ü", &["ä", "ü"]),
        ];
        for (source, left) in table {
            let code = code(source);
            assert_eq!(code.split_whitespace().collect::<Vec<_>>(), left, "{source}");
            assert_eq!(code.chars().count(), source.chars().count(), "{source}");
            assert_eq!(code.lines().count(), source.lines().count(), "{source}");
        }
    }

    #[test]
    fn words_are_found_whole() {
        let text = "x unsafe_code\nunsafe {\nstd::fs::read\nmystd::fs";
        assert_eq!(lines_with(text, "unsafe").collect::<Vec<_>>(), [2]);
        assert_eq!(lines_with(text, "std::fs").collect::<Vec<_>>(), [3]);
    }
}
