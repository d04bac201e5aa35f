//! The connection to whoever leads, kept from call to call: a handshake of two certificates costs more than most calls.
//!
//! Decides only when a new one is dialled; what a failed call means is its caller's affair, who then cuts the line.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::transport::Channel;

use crate::raft::Dialer;

/// A connection is not used for longer: the next one carries the certificate of its day, and meets the other side's.
const LIFETIME: Duration = Duration::from_secs(10);

/// A connection to one manager at a time. Clones share it.
#[derive(Clone)]
pub(crate) struct Line {
    dialer: Arc<dyn Dialer>,
    kept: Arc<Mutex<Option<Kept>>>,
}

struct Kept {
    address: String,
    since: Instant,
    channel: Channel,
}

impl Line {
    pub(crate) fn new(dialer: Arc<dyn Dialer>) -> Self {
        Self { dialer, kept: Arc::default() }
    }

    /// A channel to `address`: the kept one if it leads there and is not too old.
    pub(crate) fn to(&self, address: &str) -> io::Result<Channel> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.as_ref().filter(|k| k.address == address && k.since.elapsed() < LIFETIME) {
            return Ok(found.channel.clone());
        }
        let channel = self.dialer.channel(address)?;
        *kept = Some(Kept { address: address.to_owned(), since: Instant::now(), channel: channel.clone() });
        Ok(channel)
    }

    /// A call failed: the next one dials anew.
    pub(crate) fn cut(&self) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Dialer for Counting {
        fn channel(&self, address: &str) -> io::Result<Channel> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}"));
            Ok(endpoint.map_err(io::Error::other)?.connect_lazy())
        }
    }

    #[tokio::test]
    async fn dialled_once_until_it_is_cut_or_leads_elsewhere() {
        let dialer = Arc::new(Counting::default());
        let line = Line::new(Arc::clone(&dialer) as _);
        let dialled = |address: &str| {
            assert!(line.to(address).is_ok(), "{address}");
            dialer.0.load(Ordering::Relaxed)
        };
        assert_eq!(dialled("127.0.0.1:1"), 1);
        assert_eq!(dialled("127.0.0.1:1"), 1);
        assert_eq!(dialled("127.0.0.1:2"), 2);
        line.cut();
        assert_eq!(dialled("127.0.0.1:2"), 3);
        assert!(line.to("no address").is_err());
    }
}
