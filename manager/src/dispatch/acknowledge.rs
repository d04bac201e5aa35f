//! Which generation a node's wires show, as far as its manager knows. Pure. Generations are log indexes here.
//!
//! A node whose assignment a change does not touch is sent nothing, and has nothing to acknowledge: what it shows is
//! right for the newer generation too.

/// The book of one session.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledge {
    /// Generation of the last assignment that was sent.
    sent: u64,
    /// Newest generation that the worker says is in force.
    applied: u64,
    /// Newest generation for which there was nothing to send.
    unchanged: u64,
}

impl Acknowledge {
    /// An assignment of this generation is on its way.
    pub(crate) fn sent(&mut self, generation: u64) {
        self.sent = self.sent.max(generation);
    }

    /// The state of this generation holds nothing new for the node. Returns what is acknowledged now.
    pub(crate) fn nothing_new(&mut self, generation: u64) -> u64 {
        self.unchanged = self.unchanged.max(generation);
        self.acknowledged()
    }

    /// The worker's word. A generation that was never sent in this session counts only as far as it was sent.
    pub(crate) fn worker_applied(&mut self, generation: u64) -> u64 {
        self.applied = self.applied.max(generation.min(self.sent));
        self.acknowledged()
    }

    /// The newest generation that the node's wires are known to show; 0: none in this session.
    pub(crate) fn acknowledged(&self) -> u64 {
        if self.sent > 0 && self.applied >= self.sent { self.applied.max(self.unchanged) } else { self.applied }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_and_applied_counts() {
        let mut book = Acknowledge::default();
        assert_eq!(book.worker_applied(99), 0, "a generation from an older session proves nothing here");
        book.sent(10);
        assert_eq!(book.acknowledged(), 0);
        assert_eq!(book.nothing_new(12), 0, "the assignment before is still on its way");
        assert_eq!(book.worker_applied(10), 12);
        book.sent(15);
        assert_eq!(book.nothing_new(20), 10, "waits for 15");
        assert_eq!(book.worker_applied(15), 20);
    }
}
