//! Durations on the command line: `500ms`, `1s`, `2m`, or a bare number of seconds. Pure.

use std::time::Duration;

const MAX: u64 = 86_400_000;

pub(crate) fn parse(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = match &text[digits..] {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|millis| *millis <= MAX).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [("1s", Some(1000)), ("250ms", Some(250)), ("2", Some(2000)), ("3m", Some(180_000))] {
            assert_eq!(parse(text).map(|d| d.as_millis()), millis, "{text}");
        }
        for text in ["", "s", "1h", "-1s", "1.5s", "99999999999m"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
