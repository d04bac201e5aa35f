//! Ids of objects: 25 characters of base 36, as Swarm users know them. Whoever proposes a change makes them.

use rand::Rng;

/// Length of an id in characters: 36^25 is just above 2^128.
pub const LENGTH: usize = 25;

/// A new random id.
pub fn new() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    (0..LENGTH).map(|_| char::from(DIGITS[rng.random_range(0..DIGITS.len())])).collect()
}

/// Whether a text has the form of a whole id.
pub fn is_id(text: &str) -> bool {
    text.len() == LENGTH && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_ids_have_the_form_and_differ() {
        let (a, b) = (new(), new());
        assert!(is_id(&a), "{a}");
        assert!(is_id(&b), "{b}");
        assert_ne!(a, b);
        assert!(!is_id("short"));
        assert!(!is_id(&"A".repeat(LENGTH)));
    }
}
