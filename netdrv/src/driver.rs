//! The handle that the worker holds, and the loop behind it: woken by a new desired state, by a request, by what the
//! kernel tells of others' changes, and by a timer that makes it verify.

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
use crate::pins::{self, Opened, Opening, OpeningGuard, Pins};
use crate::reconcile::{Look, Outcome, Reconciler};
use crate::status::Status;

/// The first wait after a failure, and the longest: it doubles.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Entries for which verification rests one period more, and the longest rest: reading them takes the kernel some
/// microseconds each, in which no change comes into force. What is told by the kernel doesn't wait for that.
const REST: (usize, Duration) = (1000, Duration::from_secs(60));
/// How long more notifications are waited for after the first one, and the shortest time from one look because of them to
/// the next: whoever changes things all the time must not keep us busy all the time.
const NOTICE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
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
    opening: Opening,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Request {
    /// A sandbox was opened; be done with a round before the answer.
    Opened(Box<Hand>, oneshot::Sender<Result<()>>),
    Close(String, oneshot::Sender<Result<()>>),
    Stop,
}

/// A sandbox on its way from its opener to the loop.
#[derive(Debug)]
struct Hand {
    id: String,
    opened: Opened,
    /// Ends once the loop has it, or nobody.
    _opening: OpeningGuard,
}

impl Driver {
    /// Starts the loop. The node's namespace is that of `config.node_ns`, else of the calling thread. Whatever an earlier
    /// driver left is taken over as it is; as long as `desired` has generation 0, nothing is changed.
    ///
    /// Needs the async runtime, and is not async itself: what it spawns is compiled with this crate, and not again with
    /// each one that would await it.
    ///
    /// # Errors
    /// A configuration that can't work, or a namespace or directory that can't be opened.
    pub fn start(config: Config, desired: watch::Receiver<Arc<Desired>>) -> Result<Self> {
        let opening = Opening::default();
        let (reconciler, pins) = open(&config, opening.clone())?;
        let (requests, incoming) = mpsc::channel(64);
        let (status, status_rx) = watch::channel(Arc::default());
        let task = tokio::spawn(run(reconciler, desired, incoming, status, config.verify));
        let inner = Inner { requests, status: status_rx, pins, opening, task: Mutex::new(Some(task)) };
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
        let opening = self.inner.opening.begin(id);
        let opened = pins::open_or_create(path.clone()).await?;
        let hand = Box::new(Hand { id: id.to_owned(), opened, _opening: opening });
        self.ask(|answer| Request::Opened(hand, answer)).await?;
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
        let (reconciler, _) = open(config, Opening::default())?;
        reconciler.teardown().await
    }
}

fn open(config: &Config, opening: Opening) -> Result<(Reconciler, Pins)> {
    let names = config.names()?;
    let pins = Pins::new(&config.run_dir);
    pins.prepare()?;
    let node = match &config.node_ns {
        Some(node) => node.clone(),
        None => Namespace::current()?,
    };
    Ok((Reconciler::new(names, pins.clone(), opening, node)?, pins))
}

/// When to look at the kernel next.
struct Timer {
    every: Duration,
    next: Instant,
    patience: Duration,
    /// When to look because of notifications; `None` = there were none.
    notice: Option<Instant>,
    /// The earliest time for that.
    rested: Instant,
}

impl Timer {
    fn new(every: Duration) -> Self {
        let now = Instant::now();
        Self { every, next: now, patience: RETRY.0, notice: None, rested: now }
    }

    /// After a round that read so many entries. `disturbed`: it looked at what the kernel had told.
    fn after(&mut self, read: usize, look: Look, disturbed: bool, outcome: Outcome) {
        let now = Instant::now();
        match outcome {
            Outcome::Settled => {
                self.patience = RETRY.0;
                if look == Look::Around {
                    let periods = u32::try_from(read / REST.0).unwrap_or(u32::MAX).saturating_add(1);
                    self.next = now + self.every.saturating_mul(periods).min(REST.1.max(self.every));
                }
            }
            Outcome::Again => {
                // Where somebody changes things all the time, a look is cut short now and then: the next is no sooner.
                self.next = now + if disturbed { self.patience.max(NOTICE.1) } else { self.patience };
                self.patience = (self.patience * 2).min(RETRY.1);
            }
        }
        if look != Look::Nowhere {
            self.notice = None;
            self.rested = now + NOTICE.1;
        }
    }

    /// Something was told.
    fn notice(&mut self) {
        self.notice.get_or_insert_with(|| (Instant::now() + NOTICE.0).max(self.rested));
    }

    /// What is due already, however busy the loop is with other things.
    fn overdue(&self) -> Look {
        let now = Instant::now();
        if self.next <= now {
            Look::Around
        } else if self.notice.is_some_and(|notice| notice <= now) {
            Look::Disturbed
        } else {
            Look::Nowhere
        }
    }

    /// Waits for what comes first, and tells where to look then.
    async fn due(&self) -> Look {
        match self.notice.filter(|notice| *notice < self.next) {
            Some(notice) => {
                sleep_until(notice).await;
                Look::Disturbed
            }
            None => {
                sleep_until(self.next).await;
                Look::Around
            }
        }
    }
}

/// The loop. Ends on request, and when nobody holds the driver any more.
async fn run(
    mut reconciler: Reconciler,
    mut desired: watch::Receiver<Arc<Desired>>,
    mut requests: mpsc::Receiver<Request>,
    status: watch::Sender<Arc<Status>>,
    every: Duration,
) {
    let mut timer = Timer::new(every);
    let mut look = Look::Around;
    let mut waiting = Vec::new();
    // Once the desired state can't change any more, its channel is always "ready": don't spin on it.
    let mut changing = true;
    loop {
        let latest = desired.borrow_and_update().clone();
        let woken = reconciler.status().woken;
        let outcome = reconciler.round(latest, look).await;
        let disturbed = reconciler.status().woken != woken;
        publish(&status, reconciler.status());
        for answer in waiting.drain(..) {
            // Whoever asked may have given up.
            let _ = oneshot::Sender::<Result<()>>::send(answer, Ok(()));
        }
        timer.after(reconciler.entries_read(), look, disturbed, outcome);
        look = loop {
            if reconciler.is_disturbed() {
                timer.notice();
            }
            tokio::select! {
                biased;
                changed = desired.changed(), if changing => {
                    changing = changed.is_ok();
                    break timer.overdue();
                }
                request = requests.recv() => match request {
                    None | Some(Request::Stop) => return,
                    Some(request) => {
                        serve(&mut reconciler, request, &mut waiting).await;
                        break timer.overdue();
                    }
                },
                look = timer.due() => break look,
                // While a look is due already, what more is told waits for it in the sockets.
                () = reconciler.told(), if timer.notice.is_none() => reconciler.hear(),
            }
        };
        while let Ok(request) = requests.try_recv() {
            if matches!(request, Request::Stop) {
                return;
            }
            serve(&mut reconciler, request, &mut waiting).await;
        }
    }
}

/// Does what was asked for; who is to be answered after the next round goes into `waiting`.
async fn serve(reconciler: &mut Reconciler, request: Request, waiting: &mut Vec<oneshot::Sender<Result<()>>>) {
    match request {
        Request::Opened(hand, answer) => {
            let hand = *hand;
            reconciler.take(&hand.id, hand.opened);
            waiting.push(answer);
        }
        Request::Close(id, answer) => match reconciler.close(&id).await {
            Ok(()) => waiting.push(answer),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::Stop => {}
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
