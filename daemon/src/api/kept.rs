//! `/secrets` and `/configs`: two resources with the same calls. What a secret holds never goes out again.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Value, json};
use skep_proto::v1;

use super::body::JsonBody;
use super::convert::secret as convert;
use super::filters::Filters;
use super::params::{Params, Path};
use super::{Api, ApiError};

const FILTERS: [&str; 4] = ["id", "label", "name", "names"];

fn fits(id: &str, annotations: Option<&v1::Annotations>, filters: &Filters) -> bool {
    let annotations = annotations.cloned().unwrap_or_default();
    filters.prefix("id", id)
        && filters.prefix("name", &annotations.name)
        && filters.exact("names", &annotations.name)
        && filters.labels("label", &annotations.labels)
}

/// The routes of one of the two: the calls of the cluster's API behind them, and how its objects come in and go out.
macro_rules! kept {
    (
        $kind:ident at $path:literal: $list:ident($list_request:ident), $create:ident($create_request:ident), $get:ident,
        $update:ident($update_request:ident), $remove:ident; $spec_in:path, $out:path
    ) => {
        #[doc = concat!("`", $path, "`.")]
        pub(super) mod $kind {
            use super::*;

            pub(in crate::api) fn routes() -> Router<Api> {
                Router::new()
                    .route($path, get(list))
                    .route(concat!($path, "/create"), post(create))
                    .route(concat!($path, "/{id}"), get(inspect).delete(remove))
                    .route(concat!($path, "/{id}/update"), post(update))
            }

            async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
                let filters = params.filters(&FILTERS)?;
                let answer = api.control().await?.$list(api.call(v1::$list_request {})).await?.into_inner();
                let chosen = answer
                    .$kind
                    .iter()
                    .filter(|o| fits(&o.id, o.spec.as_ref().and_then(|s| s.annotations.as_ref()), &filters));
                Ok(Json(chosen.map($out).collect()))
            }

            async fn create(
                State(api): State<Api>,
                JsonBody(body): JsonBody<Value>,
            ) -> Result<(StatusCode, Json<Value>), ApiError> {
                let control = api.control().await?;
                let request = v1::$create_request { spec: Some($spec_in(&body)?), id: skep_proto::id::new() };
                let created = control.$create(api.call(request)).await?.into_inner();
                Ok((StatusCode::CREATED, Json(json!({ "ID": created.id }))))
            }

            async fn inspect(State(api): State<Api>, Path(reference): Path) -> Result<Json<Value>, ApiError> {
                let found = api.control().await?.$get(api.call(v1::GetRequest { reference })).await?.into_inner();
                Ok(Json($out(&found)))
            }

            async fn update(
                State(api): State<Api>,
                Path(reference): Path,
                params: Params,
                JsonBody(body): JsonBody<Value>,
            ) -> Result<StatusCode, ApiError> {
                let control = api.control().await?;
                let (version, spec) = (params.number("version")?, Some($spec_in(&body)?));
                control.$update(api.call(v1::$update_request { reference, version, spec })).await?;
                Ok(StatusCode::OK)
            }

            async fn remove(State(api): State<Api>, Path(reference): Path) -> Result<StatusCode, ApiError> {
                let (control, request) = (api.control().await?, v1::GetRequest { reference });
                api.once_drained(|| control.$remove(api.call(request.clone()))).await?;
                Ok(StatusCode::NO_CONTENT)
            }
        }
    };
}

kept! {
    secrets at "/secrets": list_secrets(ListSecretsRequest), create_secret(CreateSecretRequest), get_secret,
    update_secret(UpdateSecretRequest), remove_secret; convert::secret_in, convert::secret_out
}

kept! {
    configs at "/configs": list_configs(ListConfigsRequest), create_config(CreateConfigRequest), get_config,
    update_config(UpdateConfigRequest), remove_config; convert::config_in, convert::config_out
}
