//! Changing the lists of a service's spec: what is added, what is taken away, and the names that have to become ids.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::flags::CONTAINER;
use crate::client::{Client, escape};
use crate::parse::{self, FileReference};
use crate::value::At;

/// The lists that flags speak about, whole for a creation, as additions for an update.
#[derive(Debug, Default)]
pub(super) struct Lists {
    pub(super) env: Vec<String>,
    pub(super) env_files: Vec<String>,
    pub(super) labels: Vec<String>,
    pub(super) container_labels: Vec<String>,
    pub(super) constraints: Vec<String>,
    pub(super) preferences: Vec<String>,
    pub(super) ports: Vec<String>,
    pub(super) mounts: Vec<String>,
    pub(super) networks: Vec<String>,
    pub(super) secrets: Vec<String>,
    pub(super) configs: Vec<String>,
    pub(super) hosts: Vec<String>,
    pub(super) dns: Vec<String>,
    pub(super) dns_options: Vec<String>,
    pub(super) dns_search: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) cap_add: Vec<String>,
    pub(super) cap_drop: Vec<String>,
    pub(super) sysctls: Vec<String>,
    pub(super) ulimits: Vec<String>,
}

fn in_container(name: &str) -> String {
    format!("{CONTAINER}.{name}")
}

/// Appends what is not there yet.
pub(super) fn append(spec: &mut Value, path: &str, items: impl IntoIterator<Item = Value>) {
    let items: Vec<Value> = items.into_iter().collect();
    if items.is_empty() {
        return;
    }
    spec.with_list(path, |list| {
        for item in items {
            if !list.contains(&item) {
                list.push(item);
            }
        }
    });
}

/// Takes away what the predicate finds; a list that is not there stays so.
pub(super) fn take(spec: &mut Value, path: &str, found: impl Fn(&Value) -> bool) {
    if spec.at(path).is_array() {
        spec.with_list(path, |list| list.retain(|item| !found(item)));
    }
}

fn extend(spec: &mut Value, path: &str, flags: &[String]) {
    if !flags.is_empty() {
        spec.with_map(path, |map| map.extend(parse::pairs(flags)));
    }
}

impl Lists {
    /// Puts everything into the spec; asks the node for ids of networks, secrets and configs.
    pub(super) async fn add(&self, client: &Client, spec: &mut Value) -> Result<()> {
        extend(spec, "Labels", &self.labels);
        extend(spec, &in_container("Labels"), &self.container_labels);
        extend(spec, &in_container("Sysctls"), &self.sysctls);
        self.add_env(spec)?;
        for (path, texts) in [
            ("TaskTemplate.Placement.Constraints".to_owned(), &self.constraints),
            (in_container("Groups"), &self.groups),
            (in_container("DNSConfig.Nameservers"), &self.dns),
            (in_container("DNSConfig.Options"), &self.dns_options),
            (in_container("DNSConfig.Search"), &self.dns_search),
        ] {
            append(spec, &path, texts.iter().map(|t| json!(t)));
        }
        append(spec, &in_container("CapabilityAdd"), self.cap_add.iter().map(|c| json!(capability(c))));
        append(spec, &in_container("CapabilityDrop"), self.cap_drop.iter().map(|c| json!(capability(c))));
        append(spec, &in_container("Hosts"), self.hosts.iter().map(|h| host(h)).collect::<Result<Vec<_>>>()?);
        for ulimit in &self.ulimits {
            let ulimit = parse::ulimit(ulimit)?;
            take(spec, &in_container("Ulimits"), |old| old["Name"] == ulimit["Name"]);
            append(spec, &in_container("Ulimits"), [ulimit]);
        }
        for mount in &self.mounts {
            let mount = parse::mount(mount)?;
            take(spec, &in_container("Mounts"), |old| old["Target"] == mount["Target"]);
            append(spec, &in_container("Mounts"), [mount]);
        }
        let preferences = self.preferences.iter().map(|p| parse::preference(p)).collect::<Result<Vec<_>>>()?;
        append(spec, "TaskTemplate.Placement.Preferences", preferences);
        for port in self.ports.iter().map(|p| parse::publish(p)).collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            take(spec, "EndpointSpec.Ports", |old| {
                ["TargetPort", "Protocol", "PublishMode"].iter().all(|field| old[field] == port[field])
            });
            append(spec, "EndpointSpec.Ports", [port]);
        }
        self.add_resolved(client, spec).await
    }

    fn add_env(&self, spec: &mut Value) -> Result<()> {
        let mut env = Vec::new();
        for file in &self.env_files {
            let text = std::fs::read_to_string(file).with_context(|| format!("env file {file} can't be read"))?;
            env.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
        }
        env.extend(self.env.iter().cloned());
        for variable in env {
            // A bare name takes its value from here, and is left out where it has none.
            let variable = match variable.split_once('=') {
                Some(_) => variable,
                None => match std::env::var(&variable) {
                    Ok(value) => format!("{variable}={value}"),
                    Err(_) => continue,
                },
            };
            remove_env(spec, variable.split('=').next().unwrap_or_default());
            append(spec, &in_container("Env"), [json!(variable)]);
        }
        Ok(())
    }

    async fn add_resolved(&self, client: &Client, spec: &mut Value) -> Result<()> {
        for network in &self.networks {
            let mut attachment = parse::network(network)?;
            attachment.set("Target", json!(network_id(client, attachment.text("Target")).await?));
            take(spec, "TaskTemplate.Networks", |old| old["Target"] == attachment["Target"]);
            append(spec, "TaskTemplate.Networks", [attachment]);
        }
        for (kind, texts, path, id, name) in [
            ("secrets", &self.secrets, in_container("Secrets"), "SecretID", "SecretName"),
            ("configs", &self.configs, in_container("Configs"), "ConfigID", "ConfigName"),
        ] {
            for text in texts {
                let FileReference { source, file } = parse::file_reference(text)?;
                let found = client.get(&format!("/{kind}/{}", escape(&source)), &[]).await?;
                let reference = json!({ "File": file, id: found.text("ID"), name: found.text("Spec.Name") });
                take(spec, &path, |old| {
                    old[name] == reference[name] && old["File"]["Name"] == reference["File"]["Name"]
                });
                append(spec, &path, [reference]);
            }
        }
        Ok(())
    }
}

/// The id of a network of the swarm.
pub(super) async fn network_id(client: &Client, name: &str) -> Result<String> {
    let network = client.get(&format!("/networks/{}", escape(name)), &[("scope", "swarm")]).await?;
    Ok(network.text("Id").to_owned())
}

/// Takes a variable out of the environment.
pub(super) fn remove_env(spec: &mut Value, name: &str) {
    take(spec, &in_container("Env"), |old| old.as_str().and_then(|o| o.split('=').next()) == Some(name));
}

/// `NET_ADMIN` and `cap_net_admin` are `CAP_NET_ADMIN`.
fn capability(name: &str) -> String {
    let upper = name.to_uppercase();
    if upper == "ALL" || upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

/// `name:address` as the line of a hosts file that the API has.
fn host(text: &str) -> Result<Value> {
    let (name, address) =
        text.split_once(':').with_context(|| format!("invalid host {text:?}: write it like name:address"))?;
    Ok(json!(format!("{address} {name}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn lists_grow_and_are_replaced_by_their_keys() {
        let client = Client::new("unix:///nowhere").unwrap();
        let mut spec = json!({});
        let strings = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
        let first = Lists {
            env: strings(&["A=1", "B=2"]),
            ports: strings(&["8080:80"]),
            mounts: strings(&["type=tmpfs,target=/t"]),
            cap_add: strings(&["net_admin"]),
            hosts: strings(&["a:1.2.3.4"]),
            labels: strings(&["x=1"]),
            ..Lists::default()
        };
        first.add(&client, &mut spec).await.unwrap();
        let second = Lists { env: strings(&["A=9"]), ports: strings(&["9090:80"]), ..Lists::default() };
        second.add(&client, &mut spec).await.unwrap();
        let container = spec.at(CONTAINER);
        assert_eq!(container["Env"], json!(["B=2", "A=9"]));
        assert_eq!(spec.list("EndpointSpec.Ports").len(), 1);
        assert_eq!(spec.at("EndpointSpec.Ports")[0]["PublishedPort"], json!(9090));
        assert_eq!(container["CapabilityAdd"], json!(["CAP_NET_ADMIN"]));
        assert_eq!(container["Hosts"], json!(["1.2.3.4 a"]));
        remove_env(&mut spec, "A");
        assert_eq!(spec.at(CONTAINER)["Env"], json!(["B=2"]));
    }
}
