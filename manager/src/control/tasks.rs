//! Tasks are made by the orchestrators; the API only shows them.

use skep_proto::v1::{GetRequest, ListTasksRequest, ListTasksResponse, ObjectKind, Task, TaskView};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};

/// One task by id, prefix or name.
pub(super) async fn get(control: &Control, request: GetRequest) -> Result<TaskView, Status> {
    let view = control.current().await?;
    let task =
        view.state.find_task(&request.reference).map_err(|e| errors::find(ObjectKind::Task, &request.reference, &e))?;
    Ok(show(&view.state, &task))
}

/// All tasks, or those of one service or node.
pub(super) async fn list(control: &Control, request: ListTasksRequest) -> Result<ListTasksResponse, Status> {
    let view = control.current().await?;
    let state = &view.state;
    let wanted = |task: &Task| {
        (request.service_id.is_empty() || task.service_id == request.service_id)
            && (request.node_id.is_empty() || task.node_id == request.node_id)
    };
    let tasks = if !request.service_id.is_empty() {
        state.tasks_of_service(&request.service_id).filter(|t| wanted(t)).map(|t| show(state, t)).collect()
    } else if !request.node_id.is_empty() {
        state.tasks_of_node(&request.node_id).filter(|t| wanted(t)).map(|t| show(state, t)).collect()
    } else {
        state.tasks().map(|t| show(state, t)).collect()
    };
    Ok(ListTasksResponse { tasks })
}

/// The task together with the spec that it shares with its siblings.
fn show(state: &State, task: &Task) -> TaskView {
    let service = state.service(&task.service_id);
    let annotations = service.as_ref().and_then(|s| s.spec.as_ref()).and_then(|s| s.annotations.as_ref());
    TaskView {
        task: Some(task.clone()),
        spec: state.task_spec(&task.service_id, task.spec_version).map(|spec| spec.as_ref().clone()),
        service_name: annotations.map(|a| a.name.clone()).unwrap_or_default(),
        service_labels: annotations.map(|a| a.labels.clone()).unwrap_or_default(),
    }
}
