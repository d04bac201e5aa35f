//! The handle that the worker holds, and the loop behind it: woken by a new desired state, by a request, and by a timer
//! that makes it verify.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use skep_net_kernel::ns::Namespace;
use skep_net_plan::Desired;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Config;
use crate::error::{Error, Result};
use crate::pins::{self, Pins};
use crate::reconcile::{Outcome, Reconciler};
use crate::status::Status;

/// How often the kernel is read and mended without any other reason.
const VERIFY: Duration = Duration::from_secs(2);
/// The first wait after a failure; it doubles up to [`VERIFY`].
const RETRY: Duration = Duration::from_millis(100);
/// Deadline of a request to the loop: a round of a full node takes well below a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running driver. Clones are handles of the same one; when the last is dropped, it stops as by [`Driver::stop`].
#[derive(Debug, Clone)]
pub struct Driver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Arc<Status>>,
    pins: Pins,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Request {
    /// A sandbox was opened; be done with a round before the answer.
    Opened(oneshot::Sender<Result<()>>),
    Close(String, oneshot::Sender<Result<()>>),
    Stop,
}

impl Driver {
    /// Starts the loop. The node's namespace is that of `config.node_ns`, else of the calling thread. Whatever an earlier
    /// driver left is taken over as it is; as long as `desired` has generation 0, nothing is changed.
    ///
    /// # Errors
    /// A configuration that can't work, or a namespace or directory that can't be opened.
    pub async fn start(config: Config, desired: watch::Receiver<Arc<Desired>>) -> Result<Self> {
        let (reconciler, pins) = open(&config)?;
        let (requests, incoming) = mpsc::channel(64);
        let (status, status_rx) = watch::channel(Arc::default());
        let task = tokio::spawn(run(reconciler, desired, incoming, status));
        let inner = Inner { requests, status: status_rx, pins, task: Mutex::new(Some(task)) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The state of the wires; the latest value counts.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<Status>> {
        self.inner.status.clone()
    }

    /// Makes or finds the namespace of a sandbox, with its loopback up, and gives the path it is pinned at. What it is
    /// attached to comes with the desired state.
    ///
    /// # Errors
    /// An id that is no file name, or a namespace that can't be made.
    pub async fn open_sandbox(&self, id: &str) -> Result<PathBuf> {
        let path = self.inner.pins.sandbox(id)?;
        drop(pins::open_or_create(path.clone()).await?);
        self.ask(Request::Opened).await?;
        Ok(path)
    }

    /// Removes the namespace of a sandbox with all its links; one that isn't there is fine.
    ///
    /// # Errors
    /// A namespace or link that can't be removed.
    pub async fn close_sandbox(&self, id: &str) -> Result<()> {
        self.ask(|answer| Request::Close(id.to_owned(), answer)).await
    }

    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Result<()>>) -> Request) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.inner.requests.send(request(answer)).await.map_err(|_| Error::Stopped)?;
            answered.await.map_err(|_| Error::Stopped)?
        };
        timeout(DEADLINE, asked).await.map_err(|_| Error::Stopped)?
    }

    /// Ends the loop and the resolvers. The kernel stays as it is: containers and their traffic outlive the daemon.
    pub async fn stop(self) {
        let task = self.inner.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A loop that is gone has stopped already.
        let _ = self.inner.requests.send(Request::Stop).await;
        if let Some(mut task) = task
            && timeout(DEADLINE, &mut task).await.is_err()
        {
            task.abort();
        }
    }

    /// Removes everything that drivers with this configuration made on this node: sandboxes, balancers, links, the nft
    /// table. Goes on after a failure and reports the first one. No driver may be running.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn teardown(config: &Config) -> Result<()> {
        let (reconciler, _) = open(config)?;
        reconciler.teardown().await
    }
}

fn open(config: &Config) -> Result<(Reconciler, Pins)> {
    let names = config.names()?;
    let pins = Pins::new(&config.run_dir);
    pins.prepare()?;
    let node = match &config.node_ns {
        Some(node) => node.clone(),
        None => Namespace::current()?,
    };
    Ok((Reconciler::new(names, pins.clone(), node)?, pins))
}

/// The loop. Ends on request, and when nobody holds the driver any more.
async fn run(
    mut reconciler: Reconciler,
    mut desired: watch::Receiver<Arc<Desired>>,
    mut requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Status>>,
) {
    let mut next = Instant::now();
    let mut patience = RETRY;
    let mut verify = true;
    let mut waiting = Vec::new();
    // Once the desired state can't change any more, its channel is always "ready": don't spin on it.
    let mut changing = true;
    loop {
        let latest = desired.borrow_and_update().clone();
        let outcome = reconciler.round(latest, verify).await;
        publish(&status, reconciler.status());
        for answer in waiting.drain(..) {
            // Whoever asked may have given up.
            let _ = oneshot::Sender::<Result<()>>::send(answer, Ok(()));
        }
        match outcome {
            Outcome::Settled if verify => next = Instant::now() + VERIFY,
            Outcome::Settled => {}
            Outcome::Again => {
                next = Instant::now() + patience;
                patience = (patience * 2).min(VERIFY);
            }
        }
        if outcome == Outcome::Settled {
            patience = RETRY;
        }
        verify = false;
        tokio::select! {
            biased;
            changed = desired.changed(), if changing => changing = changed.is_ok(),
            request = requests.recv() => match request {
                None | Some(Request::Stop) => return,
                Some(Request::Opened(answer)) => waiting.push(answer),
                Some(Request::Close(id, answer)) => {
                    let closed = reconciler.close(&id).await;
                    match closed {
                        Ok(()) => waiting.push(answer),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
            },
            () = sleep_until(next) => verify = true,
        }
        while let Ok(request) = requests.try_recv() {
            match request {
                Request::Stop => return,
                Request::Opened(answer) => waiting.push(answer),
                Request::Close(id, answer) => match reconciler.close(&id).await {
                    Ok(()) => waiting.push(answer),
                    Err(error) => drop(answer.send(Err(error))),
                },
            }
        }
    }
}

fn publish(sender: &watch::Sender<Arc<Status>>, status: &Status) {
    sender.send_if_modified(|held| {
        let changed = **held != *status;
        if changed {
            *held = Arc::new(status.clone());
        }
        changed
    });
}
