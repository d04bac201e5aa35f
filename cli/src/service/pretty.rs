//! A service as `service inspect --pretty` shows it.

use anyhow::Result;
use serde_json::Value;

use super::flags::CONTAINER;
use crate::human;
use crate::output::line;
use crate::value::At;

/// Prints a service for people.
pub(super) fn print(service: &Value) -> Result<()> {
    let spec = &service["Spec"];
    line(format!("\nID:\t\t{}", service.text("ID")))?;
    line(format!("Name:\t\t{}", spec.text("Name")))?;
    map("Labels:", spec.at("Labels"))?;
    match spec.at("Mode.Replicated") {
        Value::Null => line("Service Mode:\tGlobal")?,
        replicated => line(format!("Service Mode:\tReplicated\n Replicas:\t{}", replicated.number("Replicas")))?,
    }
    if service["UpdateStatus"].is_object() {
        line("UpdateStatus:")?;
        line(format!(" State:\t\t{}", service.text("UpdateStatus.State")))?;
        for (label, path) in [("Started", "UpdateStatus.StartedAt"), ("Completed", "UpdateStatus.CompletedAt")] {
            if !service.text(path).is_empty() {
                line(format!(" {label}:\t{}", human::ago(service.at(path)).to_lowercase()))?;
            }
        }
        line(format!(" Message:\t{}", service.text("UpdateStatus.Message")))?;
    }
    placement(spec.at("TaskTemplate.Placement"))?;
    update("UpdateConfig", "Update", spec.at("UpdateConfig"))?;
    update("RollbackConfig", "Rollback", spec.at("RollbackConfig"))?;
    container(spec.at(CONTAINER))?;
    resources(spec.at("TaskTemplate.Resources"))?;
    let networks: Vec<&str> = spec.list("TaskTemplate.Networks").iter().map(|n| n.text("Target")).collect();
    if !networks.is_empty() {
        line(format!("Networks: {} ", networks.join(" ")))?;
    }
    line(format!("Endpoint Mode:\t{}", service.text("Endpoint.Spec.Mode")))?;
    let ports = service.list("Endpoint.Ports");
    if !ports.is_empty() {
        line("Ports:")?;
    }
    for port in ports {
        line(format!(" PublishedPort = {}", port.number("PublishedPort")))?;
        line(format!("  Protocol = {}", port.text("Protocol")))?;
        line(format!("  TargetPort = {}", port.number("TargetPort")))?;
        line(format!("  PublishMode = {}", port.text("PublishMode")))?;
    }
    line("")
}

fn map(title: &str, labels: &Value) -> Result<()> {
    let Some(labels) = labels.as_object().filter(|l| !l.is_empty()) else { return Ok(()) };
    line(title)?;
    labels.iter().try_for_each(|(name, value)| line(format!(" {name}={}", value.as_str().unwrap_or_default())))
}

fn words(value: &Value, path: &str) -> String {
    value.list(path).iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
}

fn placement(placement: &Value) -> Result<()> {
    line("Placement:")?;
    if !placement.list("Constraints").is_empty() {
        line(format!(" Constraints:\t[{}]", words(placement, "Constraints")))?;
    }
    for preference in placement.list("Preferences") {
        line(format!(" Preferences:\tspread={}", preference.text("Spread.SpreadDescriptor")))?;
    }
    match placement.number("MaxReplicas") {
        0 => Ok(()),
        max => line(format!(" Max Replicas Per Node:\t{max}")),
    }
}

fn update(title: &str, word: &str, config: &Value) -> Result<()> {
    if !config.is_object() {
        return Ok(());
    }
    line(format!("{title}:"))?;
    line(format!(" Parallelism:\t{}", config.number("Parallelism")))?;
    if config.number("Delay") != 0 {
        line(format!(" Delay:\t\t{}", human::duration(config.number("Delay"))))?;
    }
    line(format!(" On failure:\t{}", config.text("FailureAction")))?;
    if config.number("Monitor") != 0 {
        line(format!(" Monitoring Period: {}", human::duration(config.number("Monitor"))))?;
    }
    line(format!(" Max failure ratio: {}", config.at("MaxFailureRatio").as_f64().unwrap_or(0.0)))?;
    line(format!(" {:<19}{}", format!("{word} order:"), config.text("Order")))
}

fn container(container: &Value) -> Result<()> {
    line("ContainerSpec:")?;
    line(format!(" Image:\t\t{}", container.text("Image")))?;
    for (label, path) in [("Args", "Args"), ("Env", "Env"), ("Groups", "Groups")] {
        if !container.list(path).is_empty() {
            line(format!(" {label}:\t\t{} ", words(container, path)))?;
        }
    }
    for (label, path) in [("Dir", "Dir"), ("User", "User"), ("Hostname", "Hostname")] {
        if !container.text(path).is_empty() {
            line(format!(" {label}:\t\t{}", container.text(path)))?;
        }
    }
    for mount in container.list("Mounts") {
        line(" Mounts:")?;
        for field in ["Target", "Source", "Type"] {
            line(format!("  {field}:\t{}", mount.text(field)))?;
        }
        line(format!("  ReadOnly:\t{}", mount["ReadOnly"].as_bool().unwrap_or(false)))?;
    }
    for (label, path, name) in [("Secrets", "Secrets", "SecretName"), ("Configs", "Configs", "ConfigName")] {
        for reference in container.list(path) {
            line(format!(
                " {label}:\n  Target:\t{}\n  Source:\t{}",
                reference.text("File.Name"),
                reference.text(name)
            ))?;
        }
    }
    line(format!(" Init:\t\t{}", container["Init"].as_bool().unwrap_or(false)))
}

fn resources(resources: &Value) -> Result<()> {
    line("Resources:")?;
    for group in ["Reservations", "Limits"] {
        let group_value = &resources[group];
        let (cpus, memory) = (group_value.number("NanoCPUs"), group_value.number("MemoryBytes"));
        if cpus == 0 && memory == 0 {
            continue;
        }
        line(format!(" {group}:"))?;
        if cpus != 0 {
            line(format!("  CPU:\t\t{}", cpus as f64 / 1e9))?;
        }
        if memory != 0 {
            line(format!("  Memory:\t{}", human::binary_size(memory as f64)))?;
        }
    }
    Ok(())
}
