//! The replicated state as this manager has applied it, and the one way to change it.
//!
//! Decides nothing: commands are applied by `skep-state`, ordered by Raft. Everybody who reads takes a [`View`], which
//! is a clone of the tables and never changes under the reader. A wake-up says only that something changed.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prost::Message;
use skep_proto::v1::{Action, Command, CommandReply, Refusal, RefusalReason};
use skep_state::{Change, State};
use tokio::sync::{broadcast, watch};

use crate::raft;

/// Changes that a slow reader of events may fall behind before it is cut off.
const EVENT_BACKLOG: usize = 4096;

/// Largest command in bytes that is proposed in one piece; the Raft room refuses larger ones.
const COMMAND_BYTES: usize = 1024 * 1024;

/// What was applied at one index.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Log index of the command.
    pub index: u64,
    /// When its proposer made it, Unix nanoseconds.
    pub at_ns: i64,
    /// What it changed, in order.
    pub changes: Arc<Vec<Change>>,
}

/// The tables at one log index.
#[derive(Debug, Clone)]
pub struct View {
    /// Log index up to which everything is applied.
    pub index: u64,
    /// The tables.
    pub state: State,
}

/// The state machine under Raft.
#[derive(Debug)]
pub struct Store {
    current: RwLock<View>,
    applied: watch::Sender<u64>,
    events: RwLock<broadcast::Sender<Applied>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            current: RwLock::new(View { index: 0, state: State::default() }),
            applied: watch::Sender::new(0),
            events: RwLock::new(broadcast::Sender::new(EVENT_BACKLOG)),
        }
    }
}

impl Store {
    /// The state as of now: a clone that costs nanoseconds.
    pub fn view(&self) -> View {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Wakes whenever something was applied; carries the newest index.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Every change from now on, in order. A reader that falls 4096 commands behind gets `Lagged`. It ends when changes
    /// were left out: this manager was behind and took over the state of another one.
    pub fn events(&self) -> broadcast::Receiver<Applied> {
        self.events.read().unwrap_or_else(PoisonError::into_inner).subscribe()
    }
}

impl raft::StateMachine for Store {
    fn apply(&self, index: u64, command: &[u8]) -> Vec<u8> {
        // An undecodable entry is refused the same way on every member: that keeps apply deterministic.
        let command = match Command::decode(command) {
            Ok(command) => command,
            Err(error) => {
                let refusal = Refusal {
                    reason: RefusalReason::Invalid.into(),
                    message: format!("log entry {index} is no command this version knows: {error}"),
                    ..Refusal::default()
                };
                return CommandReply { index, refusal: Some(refusal), ..CommandReply::default() }.encode_to_vec();
            }
        };
        let (reply, changes) = {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let outcome = current.state.apply(index, &command);
            current.index = index;
            outcome
        };
        self.applied.send_replace(index);
        if !changes.is_empty() {
            // No reader at all is fine.
            let applied = Applied { index, at_ns: command.at_ns, changes: Arc::new(changes) };
            let _ = self.events.read().unwrap_or_else(PoisonError::into_inner).send(applied);
        }
        reply.encode_to_vec()
    }

    fn snapshot(&self) -> Box<dyn FnOnce(&mut dyn std::io::Write) -> std::io::Result<()> + Send> {
        let view = self.view();
        Box::new(move |out| view.state.encode_snapshot(view.index, out).map_err(std::io::Error::other))
    }

    fn restore(&self, snapshot: &mut dyn std::io::Read) -> std::io::Result<()> {
        let (index, state) = State::decode_snapshot(snapshot).map_err(std::io::Error::other)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = View { index, state };
        *self.events.write().unwrap_or_else(PoisonError::into_inner) = broadcast::Sender::new(EVENT_BACKLOG);
        self.applied.send_replace(index);
        Ok(())
    }
}

/// Why a change did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state would not have it.
    #[error("{}", .0.message)]
    Refused(Refusal),
    /// Consensus failed.
    #[error(transparent)]
    Raft(#[from] raft::Error),
    /// The reply could not be read.
    #[error("the store's reply at this manager is damaged; its version differs from the leader's: {0}")]
    Reply(#[from] prost::DecodeError),
}

/// Proposes a command as it stands, and returns the state's reply once it is committed and applied here.
pub async fn propose_command(raft: &raft::Raft, command: &Command, deadline: Duration) -> Result<CommandReply, Error> {
    let committed = raft.propose(command.encode_to_vec(), deadline).await?;
    Ok(CommandReply::decode(committed.reply.as_slice())?)
}

/// Proposes one all-or-nothing command and waits until it is committed and applied here.
///
/// Returns the index of the command. Fails with [`Error::Refused`] when the state refuses it: nothing has changed then.
pub async fn propose(raft: &raft::Raft, at_ns: i64, actions: Vec<Action>, deadline: Duration) -> Result<u64, Error> {
    let command = Command { at_ns, actions, best_effort: false };
    accepted(propose_command(raft, &command, deadline).await?)
}

/// The index of a command that the state took, or its refusal.
pub fn accepted(reply: CommandReply) -> Result<u64, Error> {
    match reply.refusal {
        Some(refusal) => Err(Error::Refused(refusal)),
        None => Ok(reply.index),
    }
}

/// Proposes what a loop has planned, in pieces that the log accepts. What no longer fits is left out: the loop plans
/// again from the newer state. Returns the refusals, for the log.
pub async fn propose_plan(
    raft: &raft::Raft,
    at_ns: i64,
    actions: Vec<Action>,
    deadline: Duration,
) -> Result<Vec<Refusal>, Error> {
    let mut left_out = Vec::new();
    for piece in pieces(actions, COMMAND_BYTES) {
        let command = Command { at_ns, actions: piece, best_effort: true };
        left_out.extend(propose_command(raft, &command, deadline).await?.left_out);
    }
    Ok(left_out)
}

/// Cuts a list of actions into runs of at most `bytes` encoded bytes; an action larger than that stands alone.
fn pieces(actions: Vec<Action>, bytes: usize) -> Vec<Vec<Action>> {
    let mut all: Vec<Vec<Action>> = Vec::new();
    let mut size = 0;
    for action in actions {
        // The tag and the length prefix of a repeated field.
        let len = action.encoded_len() + 6;
        match all.last_mut() {
            Some(piece) if size + len <= bytes => {
                size += len;
                piece.push(action);
            }
            _ => {
                size = len;
                all.push(vec![action]);
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_proto::v1::{TaskChange, action::Kind};

    fn action(id: &str) -> Action {
        Action { kind: Some(Kind::Task(TaskChange { id: id.into(), ..TaskChange::default() })) }
    }

    #[test]
    fn whoever_listens_is_told_that_a_snapshot_left_changes_out() {
        let store = Store::default();
        let mut image = Vec::new();
        assert!(raft::StateMachine::snapshot(&store)(&mut image).is_ok());
        let mut before = store.events();
        assert!(raft::StateMachine::restore(&store, &mut image.as_slice()).is_ok());
        let mut after = store.events();
        let node = skep_proto::v1::Node { id: "n".into(), ..skep_proto::v1::Node::default() };
        let put = crate::action::put(skep_proto::v1::object::Kind::Node(node));
        let command = Command { at_ns: 1, actions: vec![put], best_effort: false };
        raft::StateMachine::apply(&store, 1, &command.encode_to_vec());
        assert_eq!(before.try_recv().err(), Some(broadcast::error::TryRecvError::Closed));
        assert_eq!(after.try_recv().map(|applied| applied.index), Ok(1));
    }

    #[test]
    fn pieces_keep_order_and_bound() {
        let actions: Vec<Action> = (0..100).map(|i| action(&format!("task-{i:03}"))).collect();
        let cut = pieces(actions.clone(), 100);
        assert!(cut.len() > 1);
        assert!(cut.iter().all(|piece| piece.iter().map(|a| a.encoded_len() + 6).sum::<usize>() <= 100));
        assert_eq!(cut.into_iter().flatten().collect::<Vec<_>>(), actions);
        assert_eq!(pieces(vec![action(&"x".repeat(500))], 100).len(), 1);
        assert!(pieces(Vec::new(), 100).is_empty());
    }
}
