//! The records of a pax extended header: `LENGTH KEY=VALUE\n`, where the value may be any bytes. Pure.

/// The records in order, or none if the data is malformed anywhere.
pub(super) fn records(mut data: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    while !data.is_empty() && data[0] != 0 {
        let space = data.iter().take(20).position(|b| *b == b' ')?;
        let length: usize = number(&data[..space])?;
        let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|b| *b == b'=')?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Some(records)
}

/// A plain decimal number.
pub(super) fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// Seconds with an optional sign and fraction, as (seconds, nanoseconds).
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = text.split_at(dot.unwrap_or(text.len()));
    let seconds: i64 = number(whole)?;
    let mut nanos = 0;
    let digits = fraction.strip_prefix(b".").unwrap_or_default();
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    for at in 0..9 {
        nanos = nanos * 10 + u32::from(digits.get(at).map_or(0, |d| d - b'0'));
    }
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}
