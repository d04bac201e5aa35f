//! What happens to this node's containers and images, in the words of the Engine API's events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use skep_proto::time::unix_ns;
use skep_worker::{ContainerAction, ContainerEvent, Observer};

use crate::api::EventHub;
use crate::api::backend::{Event, LocalEvents, Scope};

/// Publishes what the worker sees of its containers.
pub(crate) struct EventsFacility(pub(crate) Arc<EventHub>);

impl Observer for EventsFacility {
    fn saw(&self, event: ContainerEvent) {
        self.0.publish(of_container(event));
    }
}

/// Something happened to an image: `action` is `load`, `import`, `tag`, `untag` or `delete`, `name` what it is called.
pub(super) fn of_image(action: &str, id: &str, name: &str) -> Event {
    Event {
        at_ns: unix_ns(SystemTime::now()),
        kind: "image".to_owned(),
        action: action.to_owned(),
        id: id.to_owned(),
        attributes: BTreeMap::from([("name".to_owned(), name.to_owned())]),
        scope: Scope::Local,
    }
}

fn of_container(event: ContainerEvent) -> Event {
    let mut attributes = BTreeMap::new();
    if let (Some(task), Some(spec)) = (&event.task.task, skep_worker::container::spec(&event.task)) {
        attributes = skep_worker::container::labels(task, &event.task, spec);
        attributes.insert("image".to_owned(), spec.image.clone());
        attributes.insert("name".to_owned(), task.name.clone());
    }
    let action = match event.action {
        ContainerAction::Create => "create",
        ContainerAction::Start => "start",
        ContainerAction::Kill { signal } => {
            attributes.insert("signal".to_owned(), signal.to_string());
            "kill"
        }
        ContainerAction::Oom => "oom",
        ContainerAction::Die { exit_code } => {
            attributes.insert("exitCode".to_owned(), exit_code.to_string());
            "die"
        }
        ContainerAction::Stop => "stop",
        ContainerAction::Destroy => "destroy",
    };
    Event {
        at_ns: event.at_ns,
        kind: "container".to_owned(),
        action: action.to_owned(),
        id: event.container_id,
        attributes,
        scope: Scope::Local,
    }
}

#[cfg(test)]
mod tests {
    use skep_proto::v1::{ContainerSpec, Task, TaskAssignment, TaskSpec};

    use super::*;

    #[test]
    fn a_container_s_end_is_told_with_its_code_and_its_task() {
        let container = ContainerSpec { image: "whoami:latest".to_owned(), ..ContainerSpec::default() };
        let task = TaskAssignment {
            task: Some(Task { id: "t1".to_owned(), name: "web.1.t1".to_owned(), ..Task::default() }),
            spec: Some(TaskSpec { container: Some(container), ..TaskSpec::default() }),
            service_name: "web".to_owned(),
            ..TaskAssignment::default()
        };
        let event = of_container(ContainerEvent {
            at_ns: 7,
            container_id: "c".to_owned(),
            task: Arc::new(task),
            action: ContainerAction::Die { exit_code: 137 },
        });
        assert_eq!((event.kind.as_str(), event.action.as_str(), event.scope), ("container", "die", Scope::Local));
        let told = |name: &str| event.attributes.get(name).map(String::as_str);
        assert_eq!(told("exitCode"), Some("137"));
        assert_eq!(told("image"), Some("whoami:latest"));
        assert_eq!(told("name"), Some("web.1.t1"));
        assert_eq!(told("com.docker.swarm.service.name"), Some("web"));
    }

    #[test]
    fn what_nobody_assigns_any_more_is_told_by_its_id() {
        let event = of_container(ContainerEvent {
            at_ns: 7,
            container_id: "c".to_owned(),
            task: Arc::default(),
            action: ContainerAction::Destroy,
        });
        assert_eq!((event.id.as_str(), event.action.as_str()), ("c", "destroy"));
        assert!(event.attributes.is_empty());
    }
}
