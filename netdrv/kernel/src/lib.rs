//! The only room that talks to the kernel's network: namespaces, links and addresses (rtnetlink), nftables and
//! connection tracking (netfilter netlink).
//!
//! Decides nothing: it turns plain values into kernel calls and kernel answers into plain values, with typed errors. What
//! should exist is decided by the pure plan, and carried out by the driver's reconcile loop, the only caller.
//!
//! Must never: change the network namespace of a thread that it did not start (a runtime worker would drag other tasks
//! along), wait without a deadline, or touch an object that the caller did not name.

pub mod conntrack;
pub mod link;
mod netlink;
pub mod nft;
pub mod ns;
pub mod watch;
