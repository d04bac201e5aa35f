//! Numbers of any length in base 36, as join tokens carry them: lower case, most significant digit first, padded with
//! zeros to a fixed width. Pure.

const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// The big-endian number `bytes` in `width` digits. `width` has to be enough for every number of that length: 25 digits
/// for 16 bytes, 50 for 32.
pub(super) fn encode(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec![b'0'; width];
    for digit in digits.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            let part = rest << 8 | u32::from(*byte);
            *byte = u8::try_from(part / 36).unwrap_or(u8::MAX);
            rest = part % 36;
        }
        *digit = DIGITS[rest as usize];
    }
    digits.into_iter().map(char::from).collect()
}

/// The number as `N` big-endian bytes; `None` when a character is no digit or the number is too large.
pub(super) fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut number = [0_u8; N];
    for character in text.bytes() {
        let mut carry = match character {
            b'0'..=b'9' => u32::from(character - b'0'),
            b'a'..=b'z' => u32::from(character - b'a') + 10,
            _ => return None,
        };
        for byte in number.iter_mut().rev() {
            let part = u32::from(*byte) * 36 + carry;
            *byte = part.to_le_bytes()[0];
            carry = part >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(number)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_numbers() {
        let table: [(&[u8], usize, &str); 5] =
            [(&[0], 2, "00"), (&[35], 2, "0z"), (&[36], 2, "10"), (&[255], 2, "73"), (&[1, 0], 4, "0074")];
        for (bytes, width, text) in table {
            assert_eq!(encode(bytes, width), text, "{bytes:?}");
        }
    }

    #[test]
    fn there_and_back_at_the_extremes() {
        for bytes in [[0_u8; 16], [255; 16], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]] {
            assert_eq!(decode::<16>(&encode(&bytes, 25)).unwrap(), bytes);
        }
        assert_eq!(decode::<32>(&encode(&[255; 32], 50)).unwrap(), [255; 32]);
    }

    #[test]
    fn what_is_no_number_or_too_large_is_refused() {
        for text in ["A", "-1", "é", " "] {
            assert_eq!(decode::<4>(text), None, "{text:?}");
        }
        assert_eq!(decode::<16>(&"z".repeat(25)), None);
    }
}
