//! Waiting for a condition with a deadline, in place of sleeping.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a test waits for something that has to happen.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Tries again until `attempt` succeeds; after [`DEADLINE`] its last error is the answer.
pub async fn eventually<T, F: Future<Output = Result<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T> {
    let start = Instant::now();
    loop {
        let left = DEADLINE.saturating_sub(start.elapsed());
        match tokio::time::timeout(left.max(Duration::from_millis(1)), attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(e)) if start.elapsed() >= DEADLINE => {
                return Err(e).context(format!("{what}: not within {DEADLINE:?}"));
            }
            Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(_) => bail!("{what}: an attempt hung until the deadline of {DEADLINE:?}"),
        }
    }
}
