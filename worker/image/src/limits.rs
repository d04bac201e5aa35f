//! Bounds on what one archive may cost, so that a decompression bomb ends in an error and not in a full
//! disk. Pure; the readers count against a [`Budget`].

/// What one load or import may use at most. Exceeding any of them fails the whole load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive's members after decompression of the archive itself.
    pub archive_bytes: u64,
    /// Bytes of all layers together once unpacked.
    pub unpacked_bytes: u64,
    /// Files, directories, links and whiteouts of all layers together.
    pub entries: u64,
    /// Members of the archive itself.
    pub members: u64,
    /// Layers of one image: what can be stacked in a container's root file system, and what other engines take.
    pub layers: usize,
    /// Components of a path in a layer.
    pub depth: usize,
    /// Bytes of one component of a path; no file system of Linux takes more than 255.
    pub name_bytes: usize,
    /// Bytes of a manifest, an index or a config.
    pub json_bytes: u64,
    /// Bytes of the extended headers of one entry (long names, extended attributes).
    pub header_bytes: u64,
}

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

impl Default for Limits {
    fn default() -> Self {
        Self {
            archive_bytes: 64 * GIB,
            unpacked_bytes: 128 * GIB,
            entries: 4_000_000,
            members: 10_000,
            layers: 127,
            depth: 256,
            name_bytes: 255,
            json_bytes: 4 * MIB,
            header_bytes: MIB,
        }
    }
}

/// A limit that an archive ran into.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{what} exceed the limit of {limit}, which can't be raised: build the image with fewer layers and files, or split it"
)]
pub struct LimitExceeded {
    /// What there was too much of.
    pub what: &'static str,
    /// How much is allowed.
    pub limit: u64,
}

impl LimitExceeded {
    pub(crate) fn check(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value > limit { Err(Self { what, limit }) } else { Ok(()) }
    }
}

/// A running total against a limit.
#[derive(Debug)]
pub(crate) struct Budget {
    what: &'static str,
    used: u64,
    limit: u64,
}

impl Budget {
    pub(crate) fn new(what: &'static str, limit: u64) -> Self {
        Self { what, used: 0, limit }
    }

    /// Counts `amount`, or says that it is too much.
    pub(crate) fn spend(&mut self, amount: u64) -> Result<(), LimitExceeded> {
        let used = self.used.saturating_add(amount);
        LimitExceeded::check(self.what, used, self.limit)?;
        self.used = used;
        Ok(())
    }

    /// Fails already if `amount` more would be too much, without counting it.
    pub(crate) fn could_spend(&self, amount: u64) -> Result<(), LimitExceeded> {
        LimitExceeded::check(self.what, self.used.saturating_add(amount), self.limit)
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_said_with_what_to_do() {
        let mut budget = Budget::new("entries", 3);
        assert_eq!(budget.spend(2), Ok(()));
        assert_eq!(budget.could_spend(1), Ok(()));
        let why = "entries exceed the limit of 3, which can't be raised: build the image with fewer layers and files, or \
                   split it";
        assert_eq!(budget.spend(2).map_err(|e| e.to_string()), Err(why.to_owned()));
        assert_eq!((budget.used(), budget.spend(1), budget.used()), (2, Ok(()), 3));
    }
}
