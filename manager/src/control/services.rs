//! Services: what a client may do to one. Tasks follow by themselves.

use skep_plan::validate;
use skep_proto::v1::{
    CreateServiceRequest, CreateServiceResponse, Empty, GetRequest, ListServicesRequest, ListServicesResponse,
    ObjectKind, Service, ServiceView, TaskState, UpdateServiceRequest, UpdateServiceResponse, object, service_spec,
};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};
use crate::action::put;

/// Accepts a new service.
pub(super) async fn create(control: &Control, request: CreateServiceRequest) -> Result<CreateServiceResponse, Status> {
    let view = control.current().await?;
    if view.state.service(&request.id).is_some() {
        // The same creation, tried again after its first answer was lost.
        return Ok(CreateServiceResponse { id: request.id, warnings: Vec::new() });
    }
    let spec = request.spec.ok_or_else(|| Status::invalid_argument("a service needs a spec"))?;
    let spec = validate::service(&view.state, spec, None).map_err(errors::invalid)?;
    let warnings = validate::warnings(&spec);
    let service = Service { id: request.id.clone(), spec: Some(spec), ..Service::default() };
    let is_there = |state: &State| state.service(&request.id).is_some();
    control.create(put(object::Kind::Service(service)), is_there).await?;
    Ok(CreateServiceResponse { id: request.id, warnings })
}

/// Changes a service, or takes it back to its previous spec.
pub(super) async fn update(control: &Control, request: UpdateServiceRequest) -> Result<UpdateServiceResponse, Status> {
    let view = control.current().await?;
    let service = find(&view.state, &request.reference)?;
    errors::versioned(ObjectKind::Service, &request.reference, request.version)?;
    let wanted = if request.rollback {
        service.previous_spec.clone().ok_or_else(|| {
            Status::failed_precondition(format!("service {} has no previous spec to go back to", request.reference))
        })?
    } else {
        request.spec.ok_or_else(|| Status::invalid_argument("a service needs a spec"))?
    };
    let spec = validate::service(&view.state, wanted, Some(&service)).map_err(errors::invalid)?;
    let warnings = validate::warnings(&spec);
    let mut next = service.as_ref().clone();
    next.meta.get_or_insert_default().version = request.version;
    next.previous_spec = next.spec.replace(spec);
    next.previous_spec_version = next.spec_version;
    next.update_status = if request.rollback { Some(validate::rollback_started(super::now_ns())) } else { None };
    control.change(vec![put(object::Kind::Service(next))]).await?;
    Ok(UpdateServiceResponse { warnings })
}

/// Begins the removal: the orchestrator drains the tasks, then the service goes.
pub(super) async fn remove(control: &Control, request: GetRequest) -> Result<Empty, Status> {
    let plan = |state: &State| {
        let mut next = find(state, &request.reference)?.as_ref().clone();
        next.removing = true;
        Ok(vec![put(object::Kind::Service(next))])
    };
    control.change_current(plan).await.map(|()| Empty {})
}

/// One service by id, prefix or name.
pub(super) async fn get(control: &Control, request: GetRequest) -> Result<Service, Status> {
    let view = control.current().await?;
    Ok(find(&view.state, &request.reference)?.as_ref().clone())
}

/// All services with the counts that lists show.
pub(super) async fn list(control: &Control, _: ListServicesRequest) -> Result<ListServicesResponse, Status> {
    let view = control.current().await?;
    let services = view.state.services().filter(|s| !s.removing).map(|s| count(&view.state, s)).collect();
    Ok(ListServicesResponse { services })
}

fn count(state: &State, service: &Service) -> ServiceView {
    let mut shown = ServiceView { service: Some(service.clone()), ..ServiceView::default() };
    for task in state.tasks_of_service(&service.id) {
        let wanted = task.in_service();
        shown.running += u64::from(wanted && task.observed() == TaskState::Running);
        shown.completed += u64::from(task.observed() == TaskState::Complete);
        shown.desired += u64::from(wanted);
    }
    if let Some(service_spec::Mode::Replicated(replicated)) = service.spec.as_ref().and_then(|s| s.mode.as_ref()) {
        shown.desired = replicated.replicas;
    }
    shown
}

fn find(state: &State, reference: &str) -> Result<std::sync::Arc<Service>, Status> {
    let service = state.find_service(reference).map_err(|e| errors::find(ObjectKind::Service, reference, &e))?;
    if service.removing {
        return Err(Status::not_found(format!("service {reference} not found")));
    }
    Ok(service)
}
