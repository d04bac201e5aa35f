//! Published ports and virtual addresses.

use bollard_stubs::models;
use skep_proto::v1;

use super::{Error, some_text};

/// Ports and resolution that a client wants.
pub(super) fn spec_in(model: models::EndpointSpec) -> Result<v1::EndpointSpec, Error> {
    let mode = match model.mode {
        Some(models::EndpointSpecModeEnum::DNSRR) => v1::ResolutionMode::Dnsrr,
        Some(models::EndpointSpecModeEnum::VIP | models::EndpointSpecModeEnum::EMPTY) | None => v1::ResolutionMode::Vip,
    };
    let ports = model.ports.unwrap_or_default().into_iter().map(port_in).collect::<Result<_, _>>()?;
    Ok(v1::EndpointSpec { mode: mode.into(), ports })
}

pub(super) fn spec_out(spec: &v1::EndpointSpec) -> models::EndpointSpec {
    models::EndpointSpec {
        mode: Some(match spec.mode() {
            v1::ResolutionMode::Vip => models::EndpointSpecModeEnum::VIP,
            v1::ResolutionMode::Dnsrr => models::EndpointSpecModeEnum::DNSRR,
        }),
        ports: (!spec.ports.is_empty()).then(|| spec.ports.iter().map(port_out).collect()),
    }
}

fn port_in(model: models::EndpointPortConfig) -> Result<v1::PortConfig, Error> {
    use models::{EndpointPortConfigProtocolEnum as Protocol, EndpointPortConfigPublishModeEnum as Mode};
    let number = |field: &str, value: Option<i64>| {
        u16::try_from(value.unwrap_or(0))
            .map(u32::from)
            .map_err(|_| Error::value(&format!("EndpointSpec.Ports.{field}"), "a port lies between 1 and 65535"))
    };
    let protocol = match model.protocol {
        Some(Protocol::UDP) => v1::Protocol::Udp,
        Some(Protocol::SCTP) => v1::Protocol::Sctp,
        Some(Protocol::TCP | Protocol::EMPTY) | None => v1::Protocol::Tcp,
    };
    let mode = match model.publish_mode {
        Some(Mode::HOST) => v1::PublishMode::Host,
        Some(Mode::INGRESS | Mode::EMPTY) | None => v1::PublishMode::Ingress,
    };
    let target_port = number("TargetPort", model.target_port)?;
    if target_port == 0 {
        return Err(Error::value("EndpointSpec.Ports.TargetPort", "a port lies between 1 and 65535"));
    }
    Ok(v1::PortConfig {
        name: model.name.unwrap_or_default(),
        protocol: protocol.into(),
        target_port,
        published_port: number("PublishedPort", model.published_port)?,
        mode: mode.into(),
    })
}

pub(super) fn port_out(port: &v1::PortConfig) -> models::EndpointPortConfig {
    use models::{EndpointPortConfigProtocolEnum as Protocol, EndpointPortConfigPublishModeEnum as Mode};
    models::EndpointPortConfig {
        name: some_text(&port.name),
        protocol: Some(match port.protocol() {
            v1::Protocol::Tcp => Protocol::TCP,
            v1::Protocol::Udp => Protocol::UDP,
            v1::Protocol::Sctp => Protocol::SCTP,
        }),
        target_port: Some(i64::from(port.target_port)),
        published_port: (port.published_port != 0).then_some(i64::from(port.published_port)),
        publish_mode: Some(match port.mode() {
            v1::PublishMode::Ingress => Mode::INGRESS,
            v1::PublishMode::Host => Mode::HOST,
        }),
    }
}

/// What the allocator gave. Ports that are published on each host are no one's to allocate, so the spec's are shown.
pub(super) fn out(endpoint: Option<&v1::Endpoint>, spec: Option<&v1::ServiceSpec>) -> models::ServiceEndpoint {
    let Some(endpoint) = endpoint else {
        return models::ServiceEndpoint { spec: Some(Default::default()), ports: None, virtual_ips: None };
    };
    let mut ports: Vec<_> = endpoint.ports.iter().map(port_out).collect();
    let asked = spec.and_then(|s| s.endpoint.as_ref()).map(|e| e.ports.as_slice()).unwrap_or_default();
    for port in asked.iter().filter(|p| p.mode() == v1::PublishMode::Host) {
        if !endpoint.ports.iter().any(|p| p.mode() == v1::PublishMode::Host && p.target_port == port.target_port) {
            ports.push(port_out(port));
        }
    }
    let addresses: Vec<_> = endpoint
        .virtual_ips
        .iter()
        .map(|vip| models::ServiceEndpointVirtualIps {
            network_id: Some(vip.network_id.clone()),
            addr: some_text(&vip.address),
        })
        .collect();
    models::ServiceEndpoint {
        spec: Some(endpoint.spec.as_ref().or(spec.and_then(|s| s.endpoint.as_ref())).map(spec_out).unwrap_or_default()),
        ports: (!ports.is_empty()).then_some(ports),
        virtual_ips: (!addresses.is_empty()).then_some(addresses),
    }
}
