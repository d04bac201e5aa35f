//! Numbers and times as people read them. Pure.

use std::time::SystemTime;

use jiff::Timestamp;
use serde_json::Value;

/// Bytes in decimal units with three digits, as lists of images show them: `1.23MB`.
pub(crate) fn decimal_size(bytes: f64) -> String {
    size(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Bytes in binary units, as memory is shown: `1.5GiB`.
pub(crate) fn binary_size(bytes: f64) -> String {
    size(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn size(mut bytes: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while bytes >= base && unit + 1 < units.len() {
        bytes /= base;
        unit += 1;
    }
    let whole = bytes.trunc().to_string().len();
    let mut text = format!("{bytes:.*}", digits.saturating_sub(whole));
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text + units.get(unit).copied().unwrap_or_default()
}

/// The seconds since a time of the API; `None` when it is no time.
pub(crate) fn seconds_since(time: &Value) -> Option<i64> {
    let now = Timestamp::try_from(SystemTime::now()).ok()?.as_second();
    match time {
        Value::Number(seconds) => Some(now - seconds.as_i64()?),
        Value::String(text) => Some(now - text.parse::<Timestamp>().ok()?.as_second()),
        _ => None,
    }
}

/// `5 minutes ago`; empty when it is no time.
pub(crate) fn ago(time: &Value) -> String {
    seconds_since(time).map(|s| format!("{} ago", skep_daemon::api::words(s))).unwrap_or_default()
}

/// Nanoseconds as Go writes a duration: `1h30m0s`, `500ms`, `0s`.
pub(crate) fn duration(ns: i64) -> String {
    if ns == 0 {
        return "0s".to_owned();
    }
    let fraction = |value: i64, unit: i64, name: &str| {
        let text = format!("{:.9}", value as f64 / unit as f64);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match ns {
        ..1_000 => format!("{ns}ns"),
        1_000..1_000_000 => fraction(ns, 1_000, "µs"),
        1_000_000..1_000_000_000 => fraction(ns, 1_000_000, "ms"),
        _ => {
            let (minutes, rest) = (ns / 60_000_000_000, ns % 60_000_000_000);
            let seconds = fraction(rest, 1_000_000_000, "s");
            match minutes {
                0 => seconds,
                1..60 => format!("{minutes}m{seconds}"),
                _ => format!("{}h{}m{seconds}", minutes / 60, minutes % 60),
            }
        }
    }
}

/// The first twelve characters of an id, without its algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.get(..12).unwrap_or(id)
}

/// At most so many characters; what is cut off is shown by a mark.
pub(crate) fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    text.chars().take(length.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_look_as_known() {
        for (bytes, text) in [(0.0, "0B"), (1_234_567.0, "1.23MB"), (999.0, "999B"), (12_300.0, "12.3kB")] {
            assert_eq!(decimal_size(bytes), text);
        }
        assert_eq!(binary_size(1_073_741_824.0), "1GiB");
        assert_eq!(binary_size(1_610_612_736.0), "1.5GiB");
        for (ns, text) in [
            (0, "0s"),
            (10_000_000_000, "10s"),
            (500_000_000, "500ms"),
            (5_400_000_000_000, "1h30m0s"),
            (90_000_000_000, "1m30s"),
            (7_776_000_000_000_000, "2160h0m0s"),
        ] {
            assert_eq!(duration(ns), text);
        }
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(ellipsis("abcdef", 4), "abc…");
    }
}
