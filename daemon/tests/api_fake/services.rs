//! Services and their tasks. Nothing runs: each look at a task takes it one step further.

use skep_proto::v1::{self, service_spec};
use tonic::Status;

use super::{Fake, State, annotations_name, find, fresh, now_ns};

impl State {
    /// Makes the tasks of a service what its spec says.
    fn reconcile(&mut self, service_id: &str) {
        let service = self.services[service_id].clone();
        let spec = service.spec.clone().unwrap_or_default();
        let wanted = match spec.mode {
            Some(service_spec::Mode::Global(_)) => self.nodes.len() as u64,
            Some(service_spec::Mode::Replicated(r)) => r.replicas,
            None => 1,
        };
        for task in self.tasks.values_mut().filter(|t| t.service_id == service_id) {
            if task.desired_state() <= v1::TaskState::Running
                && (task.slot > wanted || task.spec_version != service.spec_version)
            {
                task.set_desired_state(v1::TaskState::Shutdown);
                task.status.get_or_insert_default().set_state(v1::TaskState::Shutdown);
            }
        }
        let name = spec.annotations.unwrap_or_default().name;
        for slot in 1..=wanted {
            let live = |t: &&v1::Task| t.service_id == service_id && t.slot == slot && t.in_service();
            if self.tasks.values().any(|t| live(&t)) {
                continue;
            }
            let id = skep_proto::id::new();
            let meta = self.meta(None);
            let status = v1::TaskStatus { at_ns: now_ns(), ..Default::default() };
            let task = v1::Task {
                name: format!("{name}.{slot}.{id}"),
                meta,
                id: id.clone(),
                service_id: service_id.to_owned(),
                spec_version: service.spec_version,
                slot,
                status: Some(status),
                desired_state: v1::TaskState::Running.into(),
                networks: vec![v1::TaskNetwork {
                    network_id: "ingress0000000000000000000".to_owned(),
                    address: format!("10.0.0.{}", slot + 10),
                    aliases: Vec::new(),
                }],
                ..Default::default()
            };
            self.tasks.insert(id, task);
        }
    }

    /// Every task takes one step.
    fn step(&mut self) {
        use v1::TaskState::*;
        let node = self.nodes.keys().next().cloned().unwrap_or_default();
        for task in self.tasks.values_mut().filter(|t| t.in_service()) {
            let next = match task.observed() {
                New => Pending,
                Pending => Assigned,
                Assigned => Preparing,
                Preparing => Starting,
                _ => Running,
            };
            if next >= Assigned {
                task.node_id = node.clone();
            }
            let status = task.status.get_or_insert_default();
            if status.state() != next {
                status.set_state(next);
                status.at_ns = now_ns();
                status.message = next.word().to_owned();
            }
        }
        for service in self.services.values_mut() {
            let all = self.tasks.values().filter(|t| t.service_id == service.id && t.in_service());
            let ready = all.clone().all(|t| t.is_ready());
            if let Some(status) = &mut service.update_status
                && status.state() == v1::UpdateState::Updating
                && ready
            {
                status.set_state(v1::UpdateState::Completed);
                status.completed_ns = now_ns();
                status.message = "update completed".to_owned();
            }
        }
    }

    fn view(&self, task: &v1::Task) -> v1::TaskView {
        let service = self.services.get(&task.service_id).and_then(|s| s.spec.clone()).unwrap_or_default();
        let annotations = service.annotations.unwrap_or_default();
        v1::TaskView {
            task: Some(task.clone()),
            spec: self.specs.get(&(task.service_id.clone(), task.spec_version)).cloned(),
            service_name: annotations.name,
            service_labels: annotations.labels,
        }
    }
}

impl Fake {
    /// The spec as it is accepted, and what is warned of.
    fn judged(
        &self,
        spec: v1::ServiceSpec,
        old: Option<&v1::Service>,
    ) -> Result<(v1::ServiceSpec, Vec<String>), Status> {
        let judge = self.judge();
        judge.map_or_else(|| Ok((spec.clone(), Vec::new())), |judge| judge.service(self.objects(), spec.clone(), old))
    }

    pub(super) fn create_service(
        &self,
        request: v1::CreateServiceRequest,
    ) -> Result<v1::CreateServiceResponse, Status> {
        let spec = request.spec.ok_or_else(|| Status::invalid_argument("a service needs a spec"))?;
        let (spec, warnings) = self.judged(spec, None)?;
        let mut state = self.state();
        let name = annotations_name(spec.annotations.as_ref());
        if state.services.values().any(|s| service_name(s) == name) {
            return Err(Status::already_exists(format!("name conflicts with an existing object: service {name}")));
        }
        let meta = state.meta(None);
        let version = state.version;
        let endpoint = spec.endpoint.clone().unwrap_or_default();
        let ports = endpoint.ports.iter().map(|p| v1::PortConfig {
            published_port: if p.published_port == 0 { 30_000 } else { p.published_port },
            ..p.clone()
        });
        let service = v1::Service {
            id: request.id.clone(),
            meta,
            endpoint: Some(v1::Endpoint {
                ports: ports.collect(),
                spec: Some(endpoint),
                virtual_ips: vec![v1::VirtualIp {
                    network_id: "ingress0000000000000000000".to_owned(),
                    address: "10.0.0.5".to_owned(),
                }],
            }),
            spec_version: version,
            spec: Some(spec.clone()),
            ..Default::default()
        };
        state.specs.insert((request.id.clone(), version), spec.task.unwrap_or_default());
        state.services.insert(request.id.clone(), service);
        state.reconcile(&request.id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Create, &request.id, name);
        Ok(v1::CreateServiceResponse { id: request.id, warnings })
    }

    pub(super) fn update_service(
        &self,
        request: v1::UpdateServiceRequest,
    ) -> Result<v1::UpdateServiceResponse, Status> {
        let mut service = self.get_service(v1::GetRequest { reference: request.reference })?;
        let id = service.id.clone();
        {
            let mut state = self.state();
            if state.others > 0 {
                state.others -= 1;
                service.meta = state.meta(service.meta.as_ref());
                state.services.insert(id.clone(), service.clone());
            }
        }
        fresh(request.version, service.meta.as_ref())?;
        let spec = if request.rollback { service.previous_spec.clone() } else { request.spec };
        let spec = spec.ok_or_else(|| Status::failed_precondition(format!("service {id} has no previous spec")))?;
        let (spec, warnings) = self.judged(spec, Some(&service))?;
        let mut state = self.state();
        service.meta = state.meta(service.meta.as_ref());
        if service.spec.as_ref().and_then(|s| s.task.as_ref()) != spec.task.as_ref() {
            service.spec_version = state.version;
            let status = service.update_status.insert(v1::UpdateStatus { started_ns: now_ns(), ..Default::default() });
            status.set_state(v1::UpdateState::Updating);
            state.specs.insert((id.clone(), service.spec_version), spec.task.clone().unwrap_or_default());
        }
        service.previous_spec = service.spec.replace(spec);
        let name = service_name(&service);
        state.services.insert(id.clone(), service);
        state.reconcile(&id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Update, &id, name);
        Ok(v1::UpdateServiceResponse { warnings })
    }

    pub(super) fn remove_service(&self, request: v1::GetRequest) -> Result<v1::Empty, Status> {
        let mut state = self.state();
        let id = find("service", &state.services, &request.reference, service_name)?;
        let service = state.services.remove(&id).unwrap_or_default();
        state.tasks.retain(|_, task| task.service_id != id);
        drop(state);
        self.tell(v1::ObjectKind::Service, v1::EventAction::Remove, &id, service_name(&service));
        Ok(v1::Empty {})
    }

    pub(super) fn get_service(&self, request: v1::GetRequest) -> Result<v1::Service, Status> {
        let mut state = self.state();
        state.step();
        let id = find("service", &state.services, &request.reference, service_name)?;
        Ok(state.services[&id].clone())
    }

    pub(super) fn list_services(&self, _: v1::ListServicesRequest) -> Result<v1::ListServicesResponse, Status> {
        let mut state = self.state();
        state.step();
        let views = state.services.values().map(|service| {
            let tasks = || state.tasks.values().filter(|t| t.service_id == service.id && t.in_service());
            v1::ServiceView {
                service: Some(service.clone()),
                running: tasks().filter(|t| t.is_ready()).count() as u64,
                desired: tasks().count() as u64,
                completed: 0,
            }
        });
        Ok(v1::ListServicesResponse { services: views.collect() })
    }

    pub(super) fn get_task(&self, request: v1::GetRequest) -> Result<v1::TaskView, Status> {
        let state = self.state();
        let id = find("task", &state.tasks, &request.reference, |t| t.name.clone())?;
        Ok(state.view(&state.tasks[&id]))
    }

    pub(super) fn list_tasks(&self, request: v1::ListTasksRequest) -> Result<v1::ListTasksResponse, Status> {
        let mut state = self.state();
        state.step();
        let chosen = state.tasks.values().filter(|t| {
            (request.service_id.is_empty() || t.service_id == request.service_id)
                && (request.node_id.is_empty() || t.node_id == request.node_id)
        });
        Ok(v1::ListTasksResponse { tasks: chosen.map(|t| state.view(t)).collect() })
    }
}

fn service_name(service: &v1::Service) -> String {
    annotations_name(service.spec.as_ref().and_then(|s| s.annotations.as_ref()))
}
