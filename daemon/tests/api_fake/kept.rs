//! Secrets and configs: the same calls twice.

use skep_proto::v1;
use tonic::Status;

use super::{Fake, annotations_name, find, fresh};

macro_rules! kept {
    ($object:ident in $table:ident, $word:literal: $create:ident($create_request:ident), $get:ident,
     $list:ident($list_request:ident) -> $list_response:ident, $update:ident($update_request:ident), $remove:ident) => {
        impl Fake {
            pub(super) fn $create(&self, request: v1::$create_request) -> Result<v1::$object, Status> {
                let mut state = self.state();
                let object = v1::$object { id: request.id, meta: state.meta(None), spec: request.spec };
                state.$table.insert(object.id.clone(), object.clone());
                Ok(object)
            }

            pub(super) fn $get(&self, request: v1::GetRequest) -> Result<v1::$object, Status> {
                let state = self.state();
                let name = |o: &v1::$object| annotations_name(o.spec.as_ref().and_then(|s| s.annotations.as_ref()));
                let id = find($word, &state.$table, &request.reference, name)?;
                Ok(state.$table[&id].clone())
            }

            pub(super) fn $list(&self, _: v1::$list_request) -> Result<v1::$list_response, Status> {
                Ok(v1::$list_response { $table: self.state().$table.values().cloned().collect() })
            }

            pub(super) fn $update(&self, request: v1::$update_request) -> Result<v1::$object, Status> {
                let mut object = self.$get(v1::GetRequest { reference: request.reference })?;
                fresh(request.version, object.meta.as_ref())?;
                let mut state = self.state();
                object.meta = state.meta(object.meta.as_ref());
                object.spec = request.spec;
                state.$table.insert(object.id.clone(), object.clone());
                Ok(object)
            }

            pub(super) fn $remove(&self, request: v1::GetRequest) -> Result<v1::Empty, Status> {
                let id = self.$get(request)?.id;
                self.state().$table.remove(&id);
                Ok(v1::Empty {})
            }
        }
    };
}

kept! { Secret in secrets, "secret": create_secret(CreateSecretRequest), get_secret,
list_secrets(ListSecretsRequest) -> ListSecretsResponse, update_secret(UpdateSecretRequest), remove_secret }
kept! { Config in configs, "config": create_config(CreateConfigRequest), get_config,
list_configs(ListConfigsRequest) -> ListConfigsResponse, update_config(UpdateConfigRequest), remove_config }
