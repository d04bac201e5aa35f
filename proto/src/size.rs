//! Sizes in bytes, as people write them in options: `10m`, `4096`, `1GB`.
//!
//! Decides what such a text means. Managers read it to refuse what no worker could follow, workers to follow it, so that
//! both mean the same. Pure.

/// Bytes; `None` for what is no size, or larger than 64 bits can say. Units are powers of 1024, in any case, with or
/// without a `b`: `k`, `m`, `g`.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    // A sign is no part of a size, though the library would take one.
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok()?.checked_mul(unit)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("512b", Some(512)),
            ("4k", Some(4 << 10)),
            ("10m", Some(10 << 20)),
            ("10M", Some(10 << 20)),
            ("10mb", Some(10 << 20)),
            ("1GB", Some(1 << 30)),
            ("17179869183g", Some(17_179_869_183 << 30)),
            ("17179869184g", None),
            ("18446744073709551616", None),
            ("", None),
            ("m", None),
            ("x", None),
            ("5q", None),
            ("5bb", None),
            ("5mbb", None),
            ("+5m", None),
            ("-5m", None),
            ("1.5g", None),
            ("5 m", None),
            (" 5m", None),
            ("5é", None),
        ] {
            assert_eq!(parse(text), bytes, "{text:?}");
        }
    }
}
