//! Networks: those of the swarm, and those that every node has.

use bollard_stubs::models;
use serde_json::{Value, json};
use skep_proto::v1;

use super::{Error, lossless, map_in, map_out, read, some_map, some_text, write};
use crate::api::clock::rfc3339;

/// The driver of the swarm's networks.
const OVERLAY: &str = "overlay";

/// Under this option clients look for a network's VNI.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// A network that a client wants.
///
/// # Errors
/// Wrong shape, drivers and fields that we don't have.
pub fn request_in(given: &Value) -> Result<v1::NetworkSpec, Error> {
    let given = normalised(given);
    if given.is_object() && given["Name"].as_str().is_none_or(str::is_empty) {
        return Err(Error::value("Name", "give the network a name"));
    }
    let model: models::NetworkCreateRequest = read("network", &given)?;
    let driver = model.driver.clone().unwrap_or_default();
    if driver != OVERLAY {
        let value = if driver.is_empty() { "bridge" } else { &driver };
        return Err(Error::Value {
            field: "Driver".to_owned(),
            message: format!("{value:?} is no driver of this node; networks are made with driver {OVERLAY:?}"),
        });
    }
    if model.enable_ipv4 == Some(false) {
        return Err(Error::Unsupported { field: "EnableIPv4".to_owned(), value: "false".to_owned() });
    }
    let spec = v1::NetworkSpec {
        annotations: super::annotations(Some(model.name), model.labels),
        driver: Some(v1::Driver { name: driver, options: map_in(model.options) }),
        ipam: model.ipam.map(ipam_in),
        internal: model.internal.unwrap_or(false),
        attachable: model.attachable.unwrap_or(false),
        ingress: model.ingress.unwrap_or(false),
        ipv6: model.enable_ipv6.unwrap_or(false),
    };
    lossless::check(&given, &write(&request_model(&spec)))?;
    Ok(spec)
}

/// Takes out what has one meaning only, and what older clients add.
fn normalised(given: &Value) -> Value {
    let mut given = given.clone();
    if let Some(members) = given.as_object_mut() {
        members.remove("CheckDuplicate");
        if let Some(ipam) = members.get_mut("IPAM").and_then(Value::as_object_mut) {
            for config in ipam.get_mut("Config").and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(config) = config.as_object_mut() else { continue };
                // The name that the command line's own type has for it.
                if let Some(reserved) = config.remove("AuxAddress") {
                    config.insert("AuxiliaryAddresses".to_owned(), reserved);
                }
            }
        }
    }
    given
}

fn request_model(spec: &v1::NetworkSpec) -> models::NetworkCreateRequest {
    let annotations = spec.annotations.clone().unwrap_or_default();
    models::NetworkCreateRequest {
        name: annotations.name,
        driver: Some(OVERLAY.to_owned()),
        scope: Some("swarm".to_owned()),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        ingress: Some(spec.ingress),
        ipam: spec.ipam.as_ref().map(ipam_out),
        enable_ipv4: Some(true),
        enable_ipv6: Some(spec.ipv6),
        options: spec.driver.as_ref().and_then(|d| some_map(&d.options)),
        labels: some_map(&annotations.labels),
        ..Default::default()
    }
}

fn ipam_in(model: models::Ipam) -> v1::Ipam {
    let config = |config: models::IpamConfig| v1::IpamConfig {
        subnet: config.subnet.unwrap_or_default(),
        range: config.ip_range.unwrap_or_default(),
        gateway: config.gateway.unwrap_or_default(),
        reserved: map_in(config.auxiliary_addresses),
    };
    v1::Ipam {
        driver: model.driver.unwrap_or_default(),
        options: map_in(model.options),
        configs: model.config.unwrap_or_default().into_iter().map(config).collect(),
    }
}

fn ipam_out(ipam: &v1::Ipam) -> models::Ipam {
    let config = |config: &v1::IpamConfig| models::IpamConfig {
        subnet: some_text(&config.subnet),
        ip_range: some_text(&config.range),
        gateway: some_text(&config.gateway),
        auxiliary_addresses: some_map(&config.reserved),
    };
    models::Ipam {
        driver: Some(if ipam.driver.is_empty() { "default".to_owned() } else { ipam.driver.clone() }),
        options: some_map(&ipam.options),
        config: Some(ipam.configs.iter().map(config).collect()),
    }
}

/// A network of the swarm as clients read it.
pub fn network_out(network: &v1::Network) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.clone().unwrap_or_default();
    let mut options = spec.driver.as_ref().map(|d| d.options.clone()).unwrap_or_default();
    options.insert(VNI_OPTION.to_owned(), network.vni.to_string());
    let mut ipam = ipam_out(spec.ipam.as_ref().unwrap_or(&v1::Ipam::default()));
    let in_force = models::IpamConfig {
        subnet: some_text(&network.subnet),
        gateway: some_text(&network.gateway),
        ..ipam.config.as_ref().and_then(|c| c.first()).cloned().unwrap_or_default()
    };
    ipam.config = Some(vec![in_force]);
    write(&models::NetworkInspect {
        name: Some(annotations.name),
        id: Some(network.id.clone()),
        created: Some(rfc3339(network.meta.as_ref().map_or(0, |m| m.created_ns))),
        scope: Some("swarm".to_owned()),
        driver: Some(OVERLAY.to_owned()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(ipam),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        ingress: Some(spec.ingress),
        config_from: Some(models::ConfigReference { network: Some(String::new()) }),
        config_only: Some(false),
        containers: Some(Default::default()),
        options: Some(map_out(&options)),
        labels: Some(map_out(&annotations.labels)),
        ..Default::default()
    })
}

/// A network that every node has, as clients read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNetwork {
    /// Name.
    pub name: String,
    /// `bridge`, `host` or `null`.
    pub driver: &'static str,
    /// CIDR and gateway, if it has addresses.
    pub subnet: Option<(String, String)>,
    /// When the node made it, Unix nanoseconds.
    pub created_ns: i64,
}

impl LocalNetwork {
    /// Its id: made of its name, because there is one of each on a node.
    pub fn id(&self) -> String {
        // FNV-1a over the name, four times with other seeds: no secret, only stable and 64 digits long.
        (0_u64..4)
            .map(|seed| {
                let start = 0xcbf2_9ce4_8422_2325_u64 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let hash =
                    self.name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
                format!("{hash:016x}")
            })
            .collect()
    }

    /// As clients read it.
    pub fn out(&self) -> Value {
        let config: Vec<Value> =
            self.subnet.iter().map(|(subnet, gateway)| json!({ "Subnet": subnet, "Gateway": gateway })).collect();
        json!({
            "Name": self.name, "Id": self.id(), "Created": rfc3339(self.created_ns), "Scope": "local",
            "Driver": self.driver, "EnableIPv4": true, "EnableIPv6": false,
            "IPAM": { "Driver": "default", "Options": null, "Config": config },
            "Internal": false, "Attachable": false, "Ingress": false,
            "ConfigFrom": { "Network": "" }, "ConfigOnly": false,
            "Containers": {}, "Options": {}, "Labels": {},
        })
    }
}
