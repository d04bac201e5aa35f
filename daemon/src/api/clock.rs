//! Times as the API writes and reads them: RFC 3339 with nanoseconds out, RFC 3339 or Unix seconds in. Pure but for
//! [`now_ns`].

use std::time::SystemTime;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use skep_proto::time::unix_ns;

use super::ApiError;

/// What clients take for "never".
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The clock, asked at the edge only.
pub(super) fn now_ns() -> i64 {
    unix_ns(SystemTime::now())
}

fn timestamp(ns: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(ns)).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `2026-01-02T03:04:05.6Z`; 0 is "never".
pub(super) fn rfc3339(ns: i64) -> String {
    if ns == 0 { NEVER.to_owned() } else { timestamp(ns).to_string() }
}

/// With all nine digits, as log lines have it.
pub(super) fn rfc3339_fixed(ns: i64) -> String {
    DateTimePrinter::new().precision(Some(9)).timestamp_to_string(&timestamp(ns))
}

/// A `since` or `until` parameter as Unix nanoseconds: `1700000000`, `1700000000.123`, RFC 3339; empty is 0.
pub(super) fn parse(name: &str, text: &str) -> Result<i64, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    unix(text).or_else(|| iso(text)).ok_or_else(|| {
        ApiError::bad_request(format!("invalid value for {name:?}: {text:?}: give Unix seconds or an RFC 3339 time"))
    })
}

fn unix(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

fn iso(text: &str) -> Option<i64> {
    let at: Timestamp = text.parse().ok()?;
    i64::try_from(at.as_nanosecond()).ok()
}

/// How long ago, in the words of `docker ps` (`Up 5 minutes`).
pub fn words(seconds: i64) -> String {
    match seconds {
        i64::MIN..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        3600..5400 => "About an hour".to_owned(),
        5400..172_800 => format!("{} hours", (seconds + 1800) / 3600),
        172_800..1_209_600 => format!("{} days", seconds / 86_400),
        1_209_600..5_184_000 => format!("{} weeks", seconds / 604_800),
        5_184_000..63_072_000 => format!("{} months", seconds / 2_592_000),
        _ => format!("{} years", seconds / 31_536_000),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_written_as_go_reads_them() {
        assert_eq!(rfc3339(0), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_fixed(1_700_000_000_120_000_000), "2023-11-14T22:13:20.120000000Z");
    }

    #[test]
    fn times_are_read_in_each_form() {
        for (text, expected) in [
            ("", 0),
            ("0", 0),
            ("1700000000", 1_700_000_000_000_000_000),
            ("1700000000.5", 1_700_000_000_500_000_000),
            ("1700000000.000000012", 1_700_000_000_000_000_012),
            ("2023-11-14T22:13:20.12Z", 1_700_000_000_120_000_000),
        ] {
            assert_eq!(parse("since", text).unwrap(), expected, "{text}");
        }
        for text in ["yesterday", "1.x", "99999999999999999999", "1.0000000001"] {
            assert_eq!(parse("since", text).unwrap_err().status.as_u16(), 400, "{text}");
        }
    }

    #[test]
    fn ages_are_told_as_people_know_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (86_400, "24 hours"),
            (86_400 * 3, "3 days"),
        ] {
            assert_eq!(words(seconds), text);
        }
    }
}
