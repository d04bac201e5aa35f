//! What every request on a manager's port passes first: it gets its caller's [`Peer`] and [`Address`] put beside it, and
//! without a valid certificate of this cluster it reaches the certificate authority and nothing else.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use futures::future::Either;
use skep_manager::peer::{Address, Peer};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::Clock;

/// The calls that a stranger may make.
const OPEN: &str = "/skep.v1.CertificateAuthority/";

/// A further say in who may call: an error is the answer to every call of that peer. Asked at every request, so it has to
/// be quick; it never sees strangers.
pub type Gate = Arc<dyn Fn(&Peer) -> Result<(), Status> + Send + Sync>;

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) address: Option<SocketAddr>,
    /// With the end of its certificate's validity; a connection may outlive it.
    pub(super) peer: Option<(Peer, SystemTime)>,
}

/// Makes [`Guard`]s.
#[derive(Clone)]
pub(super) struct GuardLayer {
    pub(super) clock: Clock,
    pub(super) gate: Option<Gate>,
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, rules: self.clone() }
    }
}

/// The services behind the check.
#[derive(Clone)]
pub(super) struct Guard<S> {
    inner: S,
    rules: GuardLayer,
}

impl GuardLayer {
    fn check(&self, caller: Option<&Caller>, path: &str) -> Result<Option<Peer>, Status> {
        let Some((peer, until)) = caller.and_then(|c| c.peer.as_ref()) else {
            return if path.starts_with(OPEN) {
                Ok(None)
            } else {
                Err(Status::unauthenticated("this call needs a node's certificate: join the cluster first"))
            };
        };
        if self.clock.now() > *until {
            return Err(Status::unauthenticated(format!(
                "the certificate of node {} expired since it connected; connect again with the new one",
                peer.node_id
            )));
        }
        if let Some(gate) = &self.gate {
            gate(peer)?;
        }
        Ok(Some(peer.clone()))
    }
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let caller = request.extensions_mut().remove::<Caller>();
        match self.rules.check(caller.as_ref(), request.uri().path()) {
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
            Ok(peer) => {
                if let Some(peer) = peer {
                    request.extensions_mut().insert(peer);
                }
                if let Some(address) = caller.and_then(|c| c.address) {
                    request.extensions_mut().insert(Address(address));
                }
                Either::Left(self.inner.call(request))
            }
        }
    }
}
