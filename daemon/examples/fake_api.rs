//! The Engine API over a node that exists in memory only, on a unix socket: for trying clients by hand.
//!
//! `cargo run -p skep-daemon --example fake_api -- /tmp/fake.sock`, then `DOCKER_HOST=unix:///tmp/fake.sock docker …`.
//! Every request is logged.

#[path = "../tests/api_fake/mod.rs"]
mod api_fake;

use anyhow::Context as _;
use skep_daemon::api::{follow_cluster, serve};
use tokio::net::UnixListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).context("give the path of the socket")?;
    tracing_subscriber::fmt().with_env_filter("skep_daemon=debug").with_writer(std::io::stderr).init();
    let (api, fake) = api_fake::api();
    fake.add_image("busybox:latest");
    fake.add_container("web.1.abc");
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("can't listen on {path}"))?;
    let follower = tokio::spawn(follow_cluster(api.clone()));
    serve(api, listener).await?;
    follower.abort();
    Ok(())
}
