//! Names for services whose makers give none, as `docker service create IMAGE` does. Decides how such a name looks;
//! called when a service is created.

const FIRST: [&str; 24] = [
    "amber", "brisk", "busy", "calm", "clever", "dusky", "early", "fair", "gentle", "golden", "honeyed", "humming",
    "keen", "lively", "mellow", "nimble", "quiet", "roaming", "steady", "sunny", "swift", "tidy", "warm", "wild",
];
const SECOND: [&str; 24] = [
    "acacia", "alder", "aster", "borage", "briar", "clover", "comb", "crocus", "drone", "foxglove", "heather", "hive",
    "ivy", "lavender", "linden", "meadow", "nectar", "orchard", "poppy", "queen", "sage", "thyme", "willow", "worker",
];
/// Letters of the id that keep two names apart.
const SUFFIX: usize = 5;

/// A name made of a random id: two words and some of its letters.
pub(super) fn from_id(id: &str) -> String {
    let number = |part: &str| part.bytes().fold(0_usize, |sum, byte| (sum * 31 + usize::from(byte)) % 65_521);
    let (front, back) = id.split_at(id.len() / 2);
    let suffix: String = id.chars().rev().take(SUFFIX).collect();
    format!("{}_{}_{suffix}", FIRST[number(front) % FIRST.len()], SECOND[number(back) % SECOND.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_are_valid() {
        let names: std::collections::BTreeSet<String> = (0..200).map(|_| from_id(&skep_proto::id::new())).collect();
        assert_eq!(names.len(), 200);
        for name in &names {
            assert!(name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{name}");
        }
        assert!(names.iter().map(|n| n.split('_').next()).collect::<std::collections::BTreeSet<_>>().len() > 12);
    }
}
