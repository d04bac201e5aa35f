//! What this node has to say of its tasks, until a manager has heard it. The newest status of a task replaces an older
//! one that was not sent yet, so the size is bounded by the number of tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use skep_proto::v1::{TaskState, TaskStatus, TaskStatusReport};
use tokio::sync::watch;

/// The newest status of every task, and which of them are news.
#[derive(Debug)]
pub(crate) struct Statuses {
    book: Mutex<Book>,
    news: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Book {
    latest: BTreeMap<String, TaskStatus>,
    unsent: BTreeSet<String>,
}

impl Default for Statuses {
    fn default() -> Self {
        Self { book: Mutex::default(), news: watch::Sender::new(0) }
    }
}

impl Statuses {
    /// Notes a task's status; only a real change is news.
    pub(crate) fn set(&self, task_id: &str, status: TaskStatus) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let same = book.latest.get(task_id).is_some_and(|old| {
            old.state == status.state
                && old.message == status.message
                && old.error == status.error
                && old.container == status.container
        });
        if same {
            return;
        }
        book.latest.insert(task_id.to_owned(), status);
        book.unsent.insert(task_id.to_owned());
        drop(book);
        self.news.send_modify(|n| *n += 1);
    }

    /// The newest status of a task.
    pub(crate) fn get(&self, task_id: &str) -> Option<TaskStatus> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).latest.get(task_id).cloned()
    }

    /// The task is gone; nobody asks for it any more.
    pub(crate) fn forget(&self, task_id: &str) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.latest.remove(task_id);
        book.unsent.remove(task_id);
    }

    /// Another manager listens now: everything is news.
    pub(crate) fn retell(&self) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.unsent = book.latest.keys().cloned().collect();
        drop(book);
        self.news.send_modify(|n| *n += 1);
    }

    /// At most `limit` pieces of news, taken as sent; on failure give them to [`Statuses::retell`].
    pub(crate) fn take(&self, limit: usize) -> Vec<TaskStatusReport> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let ids: Vec<String> = book.unsent.iter().take(limit).cloned().collect();
        ids.into_iter()
            .filter_map(|task_id| {
                book.unsent.remove(&task_id);
                let status = book.latest.get(&task_id).cloned();
                status.map(|s| TaskStatusReport { node_id: String::new(), task_id, status: Some(s) })
            })
            .collect()
    }

    /// Until no task is on its way to running.
    pub(crate) async fn settled(&self) {
        let mut news = self.news.subscribe();
        while self.on_the_way() && news.changed().await.is_ok() {}
    }

    fn on_the_way(&self) -> bool {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.latest.values().any(|status| status.state() < TaskState::Running)
    }

    /// Wakes when there is news.
    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state: state.into(), ..TaskStatus::default() }
    }

    #[tokio::test]
    async fn settled_is_a_node_whose_tasks_all_run_or_have_ended() {
        let statuses = Statuses::default();
        statuses.settled().await;
        statuses.set("a", status(TaskState::Preparing));
        statuses.set("b", status(TaskState::Failed));
        let waiting = statuses.settled();
        tokio::pin!(waiting);
        assert!(futures::poll!(&mut waiting).is_pending());
        statuses.set("a", status(TaskState::Starting));
        assert!(futures::poll!(&mut waiting).is_pending());
        statuses.set("a", status(TaskState::Running));
        waiting.await;
    }

    #[test]
    fn each_news_is_told_once_and_all_of_it_to_a_new_manager() {
        let statuses = Statuses::default();
        statuses.set("a", status(TaskState::Preparing));
        statuses.set("a", status(TaskState::Running));
        statuses.set("b", status(TaskState::Running));
        statuses.set("b", status(TaskState::Running));
        assert_eq!(statuses.take(10).len(), 2);
        assert!(statuses.take(10).is_empty());
        statuses.retell();
        statuses.forget("b");
        let told = statuses.take(10);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].status.as_ref().map(TaskStatus::state), Some(TaskState::Running));
    }
}
