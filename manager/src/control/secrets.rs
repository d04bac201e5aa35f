//! Secrets and configs: data that never changes once accepted; only labels do. A secret's data never leaves through
//! this API.

use skep_plan::validate;
use skep_proto::v1::{
    Config, CreateConfigRequest, CreateSecretRequest, Empty, GetRequest, ListConfigsRequest, ListConfigsResponse,
    ListSecretsRequest, ListSecretsResponse, ObjectKind, Secret, UpdateConfigRequest, UpdateSecretRequest, object,
};
use skep_state::State;
use tonic::Status;

use super::{Control, errors};
use crate::action::{put, remove};

fn without_data(secret: &Secret) -> Secret {
    let mut shown = secret.clone();
    if let Some(spec) = &mut shown.spec {
        spec.data = prost::bytes::Bytes::new();
    }
    shown
}

/// The calls of one kind; the two kinds differ in names only, but for what they show.
macro_rules! kept_data {
    (
        $kind:ident, $object:ident, $create:ident($create_request:ident), $get:ident,
        $list:ident($list_request:ident) -> $list_response:ident.$field:ident,
        $update:ident($update_request:ident), $remove:ident;
        $validate:path, $validate_update:path, $validate_removal:path, $find:ident, $by_id:ident, $all:ident, $show:expr
    ) => {
        /// Accepts a new one.
        pub(super) async fn $create(control: &Control, request: $create_request) -> Result<$object, Status> {
            let view = control.current().await?;
            if view.state.$by_id(&request.id).is_none() {
                let spec = request.spec.ok_or_else(|| Status::invalid_argument("a spec is missing"))?;
                let spec = $validate(&view.state, spec).map_err(errors::invalid)?;
                let object = $object { id: request.id.clone(), spec: Some(spec), meta: None };
                let is_there = |state: &State| state.$by_id(&request.id).is_some();
                control.create(put(object::Kind::$object(object)), is_there).await?;
            }
            let stored = control.store.view().state.$by_id(&request.id);
            stored.map(|o| $show(o.as_ref())).ok_or_else(|| Status::aborted("it was removed again at once"))
        }

        /// One by id, prefix or name.
        pub(super) async fn $get(control: &Control, request: GetRequest) -> Result<$object, Status> {
            let view = control.current().await?;
            let found = view.state.$find(&request.reference);
            let found = found.map_err(|e| errors::find(ObjectKind::$kind, &request.reference, &e))?;
            Ok($show(found.as_ref()))
        }

        /// All of them.
        pub(super) async fn $list(control: &Control, _: $list_request) -> Result<$list_response, Status> {
            let view = control.current().await?;
            Ok($list_response { $field: view.state.$all().map(|o| $show(o.as_ref())).collect() })
        }

        /// Changes the labels.
        pub(super) async fn $update(control: &Control, request: $update_request) -> Result<$object, Status> {
            let view = control.current().await?;
            let found = view.state.$find(&request.reference);
            let found = found.map_err(|e| errors::find(ObjectKind::$kind, &request.reference, &e))?;
            let spec = request.spec.ok_or_else(|| Status::invalid_argument("a spec is missing"))?;
            let mut next = found.as_ref().clone();
            next.spec = Some($validate_update(&found, spec).map_err(errors::invalid)?);
            next.meta.get_or_insert_default().version = request.version;
            control.change(vec![put(object::Kind::$object(next))]).await?;
            let stored = control.store.view().state.$by_id(&found.id);
            stored.map(|o| $show(o.as_ref())).ok_or_else(|| Status::aborted("it was removed meanwhile"))
        }

        /// Removes one that no service uses.
        pub(super) async fn $remove(control: &Control, request: GetRequest) -> Result<Empty, Status> {
            let plan = |state: &State| {
                let found = state.$find(&request.reference);
                let found = found.map_err(|e| errors::find(ObjectKind::$kind, &request.reference, &e))?;
                $validate_removal(state, &found).map_err(errors::invalid)?;
                let version = found.meta.as_ref().map_or(0, |m| m.version);
                Ok(vec![remove(ObjectKind::$kind, &found.id, version)])
            };
            control.change_current(plan).await.map(|()| Empty {})
        }
    };
}

kept_data! {
    Secret, Secret, create_secret(CreateSecretRequest), get_secret,
    list_secrets(ListSecretsRequest) -> ListSecretsResponse.secrets,
    update_secret(UpdateSecretRequest), remove_secret;
    validate::secret, validate::secret_update, validate::secret_removal, find_secret, secret, secrets, without_data
}

kept_data! {
    Config, Config, create_config(CreateConfigRequest), get_config,
    list_configs(ListConfigsRequest) -> ListConfigsResponse.configs,
    update_config(UpdateConfigRequest), remove_config;
    validate::config, validate::config_update, validate::config_removal, find_config, config, configs, Config::clone
}
