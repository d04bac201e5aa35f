//! One node: settings, identity, role, and the Engine HTTP API in front of the rooms.
//!
//! The only crate that knows both manager and worker. It starts and stops them and translates between them and the
//! API; what they do is theirs. The command line calls [`run`].
#![forbid(unsafe_code)]

mod addresses;
pub mod api;
pub mod config;
mod facilities;
mod founding;
pub mod identity;
mod lock;
mod logging;
mod machine;
mod member;
mod membership;
mod node;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, LogFormat, Options};

use api::{Api, Backend, EventHub};
use node::Node;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How long a daemon that was killed may take to let go of its data directory.
const LOCK_WITHIN: Duration = Duration::from_secs(2);

/// How long an orderly stop may take before it is forced.
const STOP_WITHIN: Duration = Duration::from_secs(18);

/// Runs the daemon until a signal ends it. SIGTERM and SIGINT drain and return; a second one forces; SIGHUP reads the
/// settings again and takes the log level from them.
pub fn run(options: Options) -> Result<()> {
    let config = config::load(&options)?;
    let level = logging::init(config.log_format, &config.log_level)?;
    let _lock = lock::take(&config.data_dir, LOCK_WITHIN)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
    let ended = runtime.block_on(serve(config, options, level));
    // What still runs has had its time.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn serve(config: Config, options: Options, level: logging::Level) -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hup = signal(SignalKind::hangup())?;
    let sockets = config.sockets.clone();
    let reload = Reload { options, running: config.clone(), level };
    let events = EventHub::new();
    let node = Node::open(config, Arc::new(facilities::EventsFacility(Arc::clone(&events))))?;
    let (stop, servers) = (CancellationToken::new(), TaskTracker::new());
    let api = Api::new(backend(&node, &events), stop.clone());
    for path in &sockets {
        let listener = listen(path)?;
        let api = api.clone();
        servers.spawn(async move {
            if let Err(error) = api::serve(api, listener).await {
                tracing::error!(error = %error, "the API is served no more");
            }
        });
    }
    servers.spawn(api::follow_cluster(api));
    let removals = Arc::clone(&node).heed_removals();
    servers.spawn(stop.clone().run_until_cancelled_owned(removals));
    let begun = tokio::select! {
        () = node.resume() => true,
        _ = term.recv() => false,
        _ = int.recv() => false,
    };
    if begun {
        tracing::info!(version = VERSION, "daemon ready");
        let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        wait(&mut term, &mut int, &mut hup, &reload).await;
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; containers run on");
    let orderly = async {
        node.shutdown().await;
        stop.cancel();
        servers.close();
        servers.wait().await;
    };
    tokio::select! {
        () = orderly => tracing::info!("stopped"),
        () = tokio::time::sleep(STOP_WITHIN) => tracing::warn!("the stop took too long and was forced"),
        _ = term.recv() => tracing::warn!("a second signal forced the stop"),
        _ = int.recv() => tracing::warn!("a second signal forced the stop"),
    }
    for path in &sockets {
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// What reading the settings again needs.
struct Reload {
    options: Options,
    /// What the daemon was started with.
    running: Config,
    level: logging::Level,
}

impl Reload {
    /// Reads the settings again. The log level is taken from them at once; what else differs is said to need a restart.
    fn reload(&self) {
        let read = config::load(&self.options).map_err(anyhow::Error::from).and_then(|config| {
            self.level.set(&config.log_level)?;
            Ok(config)
        });
        match read {
            Ok(config) => {
                tracing::info!(log_level = config.log_level, "settings read again; the log level is in force");
                let waiting = self.running.fixed_differences(&config);
                if !waiting.is_empty() {
                    tracing::warn!(
                        settings = waiting.join(", "),
                        "these settings are in force once the daemon is restarted"
                    );
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "settings can't be read again; nothing changed"),
        }
    }
}

/// Returns at the signal to stop; reads the settings again at every SIGHUP before it.
async fn wait(term: &mut Signal, int: &mut Signal, hup: &mut Signal, reload: &Reload) {
    loop {
        tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            _ = hup.recv() => reload.reload(),
        }
    }
}

fn backend(node: &Arc<Node>, events: &Arc<EventHub>) -> Backend {
    Backend {
        node: Arc::new(facilities::InfoFacility(Arc::clone(node))),
        cluster: Arc::new(facilities::ClusterFacility(Arc::clone(node))),
        images: Arc::new(facilities::ImagesFacility {
            store: Arc::clone(node.images()),
            node: Arc::clone(node),
            events: Arc::clone(events),
        }),
        containers: Arc::new(facilities::ContainersFacility {
            node: Arc::clone(node),
            runtime: Arc::clone(node.runtime()),
        }),
        logs: Arc::new(facilities::LogsFacility(Arc::clone(node))),
        events: Arc::clone(events) as _,
    }
}

/// Binds a unix socket for root and its group. What an earlier daemon left at the path gives way: the lock on the data
/// directory says that it is gone.
fn listen(path: &Path) -> Result<UnixListener> {
    let shown = path.display();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("{} can't be made", dir.display()))?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another process serves {shown}; give this daemon another --host");
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("{shown} can't be listened on"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}
