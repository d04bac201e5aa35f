//! What can go wrong when the cluster's state is read or changed, said so that an operator knows what to do.

use std::time::Duration;

use super::Leader;
use super::types::TypeConfig;

/// What to do where there is no quorum. The words of the `docker` command; `skep` puts its own name there.
pub(crate) const FORCE: &str = "nothing can be changed until more managers are back; if they are lost for good, \
                                \"docker swarm init --force-new-cluster\" on one that is left goes on with all services";

/// A refused or unfinished call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Another manager has to be asked.
    #[error("this manager does not lead the cluster; {}", match leader {
        Some(leader) => format!("ask manager {:x} at {}", leader.id, leader.address),
        None => format!(
            "no leader is known at the moment: the managers are electing one, or too few of them are reachable; {FORCE}"
        ),
    })]
    NotLeader {
        /// The leader, where one is known.
        leader: Option<Leader>,
    },
    /// Too few managers answer. Nothing was changed.
    #[error("{reachable} of {voters} managers are reachable and {needed} are needed: {FORCE}")]
    NoQuorum {
        /// Voters that answered recently, this one included.
        reachable: usize,
        /// Voters needed.
        needed: usize,
        /// All voters.
        voters: usize,
    },
    /// Another manager does not take this node for one, and no leader does either.
    #[error(
        "this node is no manager of the swarm any more ({said}): it was removed or demoted while it was away, and the swarm \
         may be well; use \"docker swarm leave --force\" and join it again"
    )]
    Removed {
        /// Who says so, and how.
        said: String,
    },
    /// The deadline passed, or the leader changed, before the outcome was known.
    #[error("no answer within {waited:?}: {why}; the change may still take effect, so look before repeating it")]
    OutcomeUnknown {
        /// Time spent.
        waited: Duration,
        /// What is known about the reason.
        why: String,
    },
    /// The deadline passed before anything was done.
    #[error("nothing was done within {waited:?}: {what}; try again")]
    Timeout {
        /// Time spent.
        waited: Duration,
        /// What was waited for.
        what: String,
    },
    /// The command exceeds the size limit of an entry.
    #[error("a change of {size} bytes is too large, {limit} are allowed; store less in one object or split the change")]
    TooLarge {
        /// Bytes of the command.
        size: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The first manager exists already.
    #[error("manager {id:x} belongs to a cluster already; leave it first")]
    AlreadyBootstrapped {
        /// This manager.
        id: u64,
    },
    /// No member has this id.
    #[error("manager {id:x} is no member of the cluster")]
    UnknownMember {
        /// The id asked for.
        id: u64,
    },
    /// Another member uses the address.
    #[error(
        "address {address} belongs to manager {id:x}: demote or remove that manager first, or give this one an address of \
         its own"
    )]
    AddressTaken {
        /// The address.
        address: String,
        /// Its owner.
        id: u64,
    },
    /// The cluster would have no manager left.
    #[error("manager {id:x} is the last one; add another one first")]
    LastMember {
        /// The id asked for.
        id: u64,
    },
    /// The managers that would remain could not decide anything.
    #[error(
        "without manager {id:x}, {reachable} of the managers that remain would be reachable and {needed} are needed: bring \
         those back that are down, or demote them first"
    )]
    WouldLoseQuorum {
        /// The id asked for.
        id: u64,
        /// Remaining voters that are reachable.
        reachable: usize,
        /// Voters needed among the remaining ones.
        needed: usize,
    },
    /// A new member does not answer at the address that it gives.
    #[error(
        "no manager can be added that the leader can't reach: it does not answer at {address} ({why}); check its \
         --advertise-addr, and that nothing between the managers blocks the port"
    )]
    NotReached {
        /// The new member.
        id: u64,
        /// Its address.
        address: String,
        /// What became of the last try.
        why: String,
    },
    /// A new member did not receive the log in time and was taken out again.
    #[error(
        "manager {id:x} at {address} did not catch up within {waited:?}; check that the managers can reach that address, \
         then add it again"
    )]
    NotCaughtUp {
        /// The new member.
        id: u64,
        /// Its address.
        address: String,
        /// Time spent.
        waited: Duration,
    },
    /// No other manager took over.
    #[error("leadership was not handed over: {reason}")]
    Transfer {
        /// Why.
        reason: String,
    },
    /// This node's consensus engine has ended.
    #[error("this manager takes no part in the cluster's decisions any more: {reason}")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// A new cluster was forced on another manager, which goes on without this one.
    #[error(
        "manager {id:x} belongs to a group that was given up: a new cluster was forced on another manager; leave the swarm \
         with --force and join it again"
    )]
    Superseded {
        /// This manager.
        id: u64,
    },
    /// The log or a snapshot cannot be used.
    #[error("{reason}")]
    Storage {
        /// What failed on which file and what to do.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("the raft configuration is not usable: {reason}")]
    Config {
        /// Which setting and why.
        reason: String,
    },
    /// The library refused a membership change.
    #[error("the managers' membership was not changed: {reason}")]
    Membership {
        /// The refusal.
        reason: String,
    },
}

/// Result of a call to the consensus room.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn storage(error: impl std::fmt::Display) -> Self {
        Self::Storage { reason: error.to_string() }
    }
}

impl From<openraft::errors::Fatal<TypeConfig>> for Error {
    fn from(fatal: openraft::errors::Fatal<TypeConfig>) -> Self {
        let reason = match fatal {
            openraft::errors::Fatal::Stopped => {
                "it was demoted, has left, or is being shut down; ask another manager".to_owned()
            }
            broken => format!("{broken}; see this node's log, then restart its daemon"),
        };
        Self::Stopped { reason }
    }
}
