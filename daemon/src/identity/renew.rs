//! Keeps the certificate fresh: asks for the next one at a random moment between 50 and 80 % of its life, so that a big
//! cluster does not ask all at once; at once when the node's role changes. A failure is tried again, later each time.
//!
//! A node whose certificate is not valid any more can ask nobody. The only manager of a cluster, who could not have asked
//! anybody else before, signs for itself then.

use std::time::{Duration, SystemTime};

use rand::Rng as _;
use skep_manager::ca::{Reason, RootCa, certificate};
use skep_proto::v1::IssueCertificateRequest;
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Dialer, Error, Holder, Identity, dial};

const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
const ISSUE_DEADLINE: Duration = Duration::from_secs(20);

/// The wall clock may jump (suspend, NTP): it is looked at again this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Shortest pause after a success. A clock that is far ahead makes every new certificate look due.
const REST: Duration = Duration::from_secs(1);

/// First and longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no manager's address is known")]
    NobodyToAsk,
    #[error("manager {address} did not renew the certificate: {why}")]
    Refused { address: String, why: String },
    #[error("manager {address}: {why}")]
    Removed { address: String, why: String },
    #[error(transparent)]
    Identity(#[from] Error),
}

/// What a node signs its own certificate with, and how long that is valid.
pub type Authority = (RootCa, Duration);

/// Renews the certificate for as long as the node is a member. `managers` tells the addresses to try, in that order;
/// `alone` the root to sign with when this node is the cluster's only manager. Ends when `stop` is cancelled, or with
/// the words of a manager that has asked its quorum: this node was removed.
pub async fn renew(
    holder: Holder,
    managers: impl Fn() -> Vec<String> + Send + Sync,
    alone: impl Fn() -> Option<Authority> + Send + Sync,
    stop: CancellationToken,
) -> Option<String> {
    stop.run_until_cancelled(run(&holder, managers, alone)).await
}

async fn run(
    holder: &Holder,
    managers: impl Fn() -> Vec<String> + Send + Sync,
    alone: impl Fn() -> Option<Authority> + Send + Sync,
) -> String {
    let mut fraction = rand::rng().random_range(0.5..0.8);
    let mut failures = 0_u32;
    let mut urgent = false;
    let mut rest = Duration::ZERO;
    loop {
        let now = holder.clock().now();
        let due = holder.current().renewal_at(fraction);
        let valid = holder.current().check(now).is_ok();
        let pause = match due.duration_since(now) {
            _ if failures > 0 => back_off(failures, rand::rng().random_range(0.5..1.0)),
            Ok(left) if !urgent && valid => left.min(LOOK_AGAIN),
            _ if urgent => Duration::ZERO,
            _ => rest,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = holder.asked_to_renew() => urgent = true,
        }
        let now = holder.clock().now();
        if !urgent && failures == 0 && now < due && holder.current().check(now).is_ok() {
            continue;
        }
        let useless = holder.current().check(now).is_err();
        let renewed = match if useless { alone() } else { None } {
            Some(authority) => sign(holder, &authority).await,
            None => once(holder, &managers()).await,
        };
        match renewed {
            Ok(identity) => {
                let role = certificate::role_name(identity.subject.role);
                let until = super::clock::text(identity.not_after);
                tracing::info!(node.id = identity.subject.node_id, role, until, "certificate renewed");
                (failures, urgent) = (0, false);
                rest = after_renewal(identity.not_after, holder.clock().now());
                fraction = rand::rng().random_range(0.5..0.8);
            }
            Err(error @ Failure::Removed { .. }) => return error.to_string(),
            Err(error) => {
                failures = failures.saturating_add(1);
                report(holder, &error, holder.clock().now());
            }
        }
    }
}

fn report(holder: &Holder, error: &Failure, now: SystemTime) {
    let identity = holder.current();
    let (id, until) = (identity.subject.node_id.as_str(), super::clock::text(identity.not_after));
    if identity.check(now).is_err() {
        tracing::error!(node.id = id, until, error = %error, "certificate expired and not renewed");
    } else {
        tracing::warn!(node.id = id, until, error = %error, "certificate not renewed yet");
    }
}

/// The pause after a success, should the new certificate be due already: half of what is left of it, for it must not end
/// meanwhile.
fn after_renewal(not_after: SystemTime, now: SystemTime) -> Duration {
    (not_after.duration_since(now).unwrap_or_default() / 2).max(REST)
}

/// The pause after so many failures in a row; `spread` in 0.5..1 keeps nodes apart.
fn back_off(failures: u32, spread: f64) -> Duration {
    let (first, longest) = BACK_OFF;
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1).min(16))).min(longest).mul_f64(spread)
}

/// Asks one manager after the other for a certificate for a new key, and takes it into use.
async fn once(holder: &Holder, managers: &[String]) -> Result<std::sync::Arc<Identity>, Failure> {
    let mut last = Failure::NobodyToAsk;
    for address in managers {
        match ask(holder, address).await {
            Ok(identity) => return take(holder, identity).await,
            // The others would say the same.
            Err(error @ Failure::Removed { .. }) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Signs a certificate of the same subject.
async fn sign(holder: &Holder, (root, life): &Authority) -> Result<std::sync::Arc<Identity>, Failure> {
    let identity = Identity::found(root, &holder.current().subject, *life, holder.clock())?;
    take(holder, identity).await
}

async fn take(holder: &Holder, identity: Identity) -> Result<std::sync::Arc<Identity>, Failure> {
    let to = holder.clone();
    // Writing waits for the disk.
    let replaced = tokio::task::spawn_blocking(move || to.replace(identity)).await;
    replaced.unwrap_or(Err(Error::Unfit { why: "writing it was interrupted" }))?;
    Ok(holder.current())
}

async fn ask(holder: &Holder, address: &str) -> Result<Identity, Failure> {
    let refused = |why: String| Failure::Refused { address: address.to_owned(), why };
    holder.current().check(holder.clock().now())?;
    let channel = Dialer::new(holder.clone()).channel(address, CONNECT_DEADLINE).map_err(|e| refused(e.to_string()))?;
    let (key_pem, csr) = certificate::request().map_err(Error::from)?;
    let request = IssueCertificateRequest {
        csr: csr.into(),
        now_ns: holder.clock().unix_ns(),
        ..IssueCertificateRequest::default()
    };
    let mut client = CertificateAuthorityClient::new(channel);
    let answer = timeout(ISSUE_DEADLINE, client.issue_certificate(request))
        .await
        .map_err(|_| refused(format!("no answer within {ISSUE_DEADLINE:?}")))?
        .map_err(|status| match (Reason::of(&status), dial::explain(&status)) {
            (Some(Reason::NodeRemoved), _) => {
                Failure::Removed { address: address.to_owned(), why: status.message().to_owned() }
            }
            (_, explained) => refused(explained.unwrap_or_else(|| status.message().to_owned())),
        })?
        .into_inner();
    let identity = Identity::new(&answer.root_pem, &answer.chain_pem, &key_pem, holder.clock())?;
    identity.check(holder.clock().now())?;
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::renewal_at;
    use skep_manager::ca::BACKDATE;

    #[test]
    fn a_certificate_is_renewed_between_half_and_four_fifths_of_its_life() {
        let made = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (life, fraction, after) in [(100, 0.5, 50), (100, 0.8, 80), (7_776_000, 0.5, 3_888_000), (2, 0.75, 1)] {
            let due = renewal_at(made - BACKDATE, made + Duration::from_secs(life), fraction);
            assert_eq!(due.duration_since(made).map(|d| d.as_secs()).ok(), Some(after), "{life} s, {fraction}");
        }
        // A certificate that is not backdated is due at once rather than never.
        assert_eq!(renewal_at(made, made + Duration::from_secs(10), 0.5), made + Duration::from_secs(10));
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let (first, longest) = BACK_OFF;
        assert_eq!(back_off(1, 1.0), first);
        assert_eq!(back_off(2, 1.0), first * 2);
        assert_eq!(back_off(40, 1.0), longest);
        assert_eq!(back_off(u32::MAX, 0.5), longest / 2);
    }
}
