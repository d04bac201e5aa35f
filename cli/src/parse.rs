//! Values of flags as people write them: durations, sizes, CPUs, ports, comma-separated options. Pure.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// `1h30m`, `500ms`, `2.5s` in nanoseconds.
pub(crate) fn duration(text: &str) -> Result<i64> {
    let hint = || format!("invalid duration {text:?}: write it like 1h30m, 10s or 500ms");
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut total) = (text, 0.0);
    if rest.is_empty() {
        bail!(hint());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(hint)?;
        let number: f64 = rest[..digits].parse().with_context(hint)?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => bail!(hint()),
            };
        rest = &rest[end..];
    }
    if total > i64::MAX as f64 {
        bail!(hint());
    }
    Ok(total as i64)
}

/// `64M`, `1g`, `512` in bytes.
pub(crate) fn bytes(text: &str) -> Result<i64> {
    let hint = || format!("invalid size {text:?}: write it like 64M or 1g");
    let lower = text.trim().to_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let number: f64 = lower[..end].parse().with_context(hint)?;
    let unit = lower[end..].trim().trim_end_matches('b').trim_end_matches('i');
    let factor = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => bail!(hint()),
    };
    Ok((number * (1_u64 << factor) as f64) as i64)
}

/// `0.5` CPUs in billionths.
pub(crate) fn cpus(text: &str) -> Result<i64> {
    let number: f64 = text.parse().with_context(|| format!("invalid number of CPUs {text:?}: write it like 0.5"))?;
    if !(0.0..=1e6).contains(&number) {
        bail!("invalid number of CPUs {text:?}");
    }
    Ok((number * 1e9).round() as i64)
}

/// `name=value` pairs as a map; without `=` the value is empty.
pub(crate) fn pairs(flags: &[String]) -> Map<String, Value> {
    flags
        .iter()
        .map(|flag| {
            let (name, value) = flag.split_once('=').unwrap_or((flag, ""));
            (name.to_owned(), Value::from(value))
        })
        .collect()
}

/// `a=1,b,c=2`: names in lower case, and what stands after each.
pub(crate) fn options(text: &str) -> Vec<(String, Option<String>)> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| match part.split_once('=') {
            Some((name, value)) => (name.trim().to_lowercase(), Some(value.trim().to_owned())),
            None => (part.to_lowercase(), None),
        })
        .collect()
}

/// `true`, `1`, or the bare name.
fn truth(name: &str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("true" | "1") => Ok(true),
        Some("false" | "0") => Ok(false),
        Some(other) => bail!("invalid value for {name}: {other:?}: give true or false"),
    }
}

fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => bail!("invalid port {text:?}: it lies between 1 and 65535"),
    }
}

/// The port to publish at; 0 has the cluster choose one.
fn published(text: &str) -> Result<u16> {
    if text == "0" { Ok(0) } else { port(text) }
}

fn range(text: &str) -> Result<(u16, u16)> {
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (port(low)?, port(high)?),
        None => (port(text)?, port(text)?),
    };
    if high < low {
        bail!("invalid range of ports {text:?}");
    }
    Ok((low, high))
}

/// `8080:80/udp`, `80`, `8000-8002:80-82`, or `published=8080,target=80,protocol=tcp,mode=host`.
pub(crate) fn publish(text: &str) -> Result<Vec<Value>> {
    if text.contains('=') {
        return Ok(vec![publish_long(text)?]);
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        bail!("invalid protocol {protocol:?} in {text:?}: give tcp, udp or sctp");
    }
    let whole = || format!("in {text:?}");
    let entry = |published: u16, target: u16| {
        json!({
            "Protocol": protocol, "TargetPort": target, "PublishedPort": published, "PublishMode": "ingress",
        })
    };
    let Some((published, target)) = ports.rsplit_once(':') else {
        let (low, high) = range(ports).with_context(whole)?;
        return Ok((low..=high).map(|target| entry(0, target)).collect());
    };
    if published.contains(':') || published.contains('.') {
        bail!("hostip is not supported in {text:?}: a published port is reached on every node and address");
    }
    let (published, target) = match (published, range(target).with_context(whole)?) {
        ("0", (target, end)) if target == end => ((0, 0), (target, target)),
        (published, target) => (range(published).with_context(whole)?, target),
    };
    if published.1 - published.0 != target.1 - target.0 {
        bail!("the two ranges of {text:?} differ in length");
    }
    Ok((published.0..=published.1).zip(target.0..=target.1).map(|(p, t)| entry(p, t)).collect())
}

fn publish_long(text: &str) -> Result<Value> {
    let mut entry = json!({ "Protocol": "tcp", "PublishMode": "ingress" });
    for (name, value) in options(text) {
        let value = value.with_context(|| format!("{name} in {text:?} needs a value"))?;
        match name.as_str() {
            "published" => entry["PublishedPort"] = json!(published(&value)?),
            "target" => entry["TargetPort"] = json!(port(&value)?),
            "protocol" if matches!(value.as_str(), "tcp" | "udp" | "sctp") => entry["Protocol"] = json!(value),
            "mode" if matches!(value.as_str(), "ingress" | "host") => entry["PublishMode"] = json!(value),
            "protocol" | "mode" => bail!("invalid {name} {value:?} in {text:?}"),
            other => bail!("unknown option {other:?} in {text:?}: there are published, target, protocol, mode"),
        }
    }
    if entry.get("TargetPort").is_none() {
        bail!("{text:?} names no target port");
    }
    Ok(entry)
}

/// `type=bind,source=/a,target=/b,readonly`.
pub(crate) fn mount(text: &str) -> Result<Value> {
    let mut mount = json!({ "Type": "volume" });
    for (name, value) in options(text) {
        let given = || value.clone().with_context(|| format!("{name} in {text:?} needs a value"));
        match name.as_str() {
            "type" => mount["Type"] = json!(given()?.to_lowercase()),
            "source" | "src" => mount["Source"] = json!(given()?),
            "target" | "dst" | "destination" => mount["Target"] = json!(given()?),
            "readonly" | "ro" => mount["ReadOnly"] = json!(truth(&name, value.as_deref())?),
            "bind-propagation" => mount["BindOptions"]["Propagation"] = json!(given()?),
            "tmpfs-size" => mount["TmpfsOptions"]["SizeBytes"] = json!(bytes(&given()?)?),
            "tmpfs-mode" => {
                let mode = given()?;
                let mode = u32::from_str_radix(&mode, 8).with_context(|| format!("invalid mode {mode:?}"))?;
                mount["TmpfsOptions"]["Mode"] = json!(mode);
            }
            "consistency" => {}
            other => bail!("unknown or unsupported option {other:?} of mount {text:?}"),
        }
    }
    if mount.get("Target").is_none() {
        bail!("mount {text:?} names no target");
    }
    Ok(mount)
}

/// A secret or config that a service gets: `name`, or `source=name,target=file,uid=0,gid=0,mode=0444`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileReference {
    /// Name of the secret or config.
    pub(crate) source: String,
    /// The `File` of the API.
    pub(crate) file: Value,
}

/// Reads a [`FileReference`].
pub(crate) fn file_reference(text: &str) -> Result<FileReference> {
    if !text.contains('=') && !text.contains(',') {
        let file = json!({ "Name": text, "UID": "0", "GID": "0", "Mode": 0o444 });
        return Ok(FileReference { source: text.to_owned(), file });
    }
    let (mut source, mut file) = (String::new(), json!({ "UID": "0", "GID": "0", "Mode": 0o444 }));
    for (name, value) in options(text) {
        let value = value.with_context(|| format!("{name} in {text:?} needs a value"))?;
        match name.as_str() {
            "source" | "src" => source = value,
            "target" => file["Name"] = json!(value),
            "uid" => file["UID"] = json!(value),
            "gid" => file["GID"] = json!(value),
            "mode" => {
                let mode = u32::from_str_radix(&value, 8).with_context(|| format!("invalid mode {value:?}"))?;
                file["Mode"] = json!(mode);
            }
            other => bail!("unknown option {other:?} in {text:?}: there are source, target, uid, gid, mode"),
        }
    }
    if source.is_empty() {
        bail!("{text:?} names no source");
    }
    if file.get("Name").is_none() {
        file["Name"] = json!(source);
    }
    Ok(FileReference { source, file })
}

/// A network that a service joins: `name`, or `name=x,alias=y,driver-opt=k=v`.
pub(crate) fn network(text: &str) -> Result<Value> {
    if !text.contains('=') {
        return Ok(json!({ "Target": text }));
    }
    let (mut target, mut aliases, mut driver_options) = (String::new(), Vec::new(), Vec::new());
    for (name, value) in options(text) {
        let value = value.with_context(|| format!("{name} in {text:?} needs a value"))?;
        match name.as_str() {
            "name" => target = value,
            "alias" => aliases.push(value),
            "driver-opt" => driver_options.push(value),
            other => bail!("unknown option {other:?} in {text:?}: there are name, alias, driver-opt"),
        }
    }
    if target.is_empty() {
        bail!("{text:?} names no network");
    }
    Ok(json!({ "Target": target, "Aliases": aliases, "DriverOpts": pairs(&driver_options) }))
}

/// The reference with its tag: `busybox` is `busybox:latest`. Digests and ids stay as they are.
pub(crate) fn image(reference: &str) -> String {
    let tagged = reference.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    let id = reference.len() == 64 && reference.bytes().all(|b| b.is_ascii_hexdigit());
    if tagged || id || reference.is_empty() { reference.to_owned() } else { format!("{reference}:latest") }
}

/// `spread=node.labels.zone`.
pub(crate) fn preference(text: &str) -> Result<Value> {
    match text.split_once('=') {
        Some(("spread", descriptor)) if !descriptor.is_empty() => {
            Ok(json!({ "Spread": { "SpreadDescriptor": descriptor } }))
        }
        _ => bail!("invalid placement preference {text:?}: write it like spread=node.labels.zone"),
    }
}

/// `nofile=1024:2048`.
pub(crate) fn ulimit(text: &str) -> Result<Value> {
    let hint = || format!("invalid ulimit {text:?}: write it like nofile=1024:2048");
    let (name, limits) = text.split_once('=').with_context(hint)?;
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| text.parse::<i64>().with_context(hint);
    Ok(json!({ "Name": name, "Soft": number(soft)?, "Hard": number(hard)? }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_sizes_and_cpus() {
        for (text, ns) in [
            ("10s", 10_000_000_000),
            ("1m30s", 90_000_000_000),
            ("500ms", 500_000_000),
            ("0", 0),
            ("1.5s", 1_500_000_000),
        ] {
            assert_eq!(duration(text).unwrap(), ns, "{text}");
        }
        for text in ["", "10", "s", "5x", "-1s", "1s2"] {
            assert!(duration(text).is_err(), "{text}");
        }
        for (text, expected) in [("512", 512), ("64M", 64 << 20), ("1g", 1 << 30), ("1GiB", 1 << 30), ("1.5k", 1536)] {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        assert!(bytes("x").is_err() && bytes("1z").is_err());
        assert_eq!(cpus("0.5").unwrap(), 500_000_000);
        assert!(cpus("-1").is_err());
    }

    #[test]
    fn ports() {
        for (text, expected) in [
            ("8080:80", vec![(8080, 80, "tcp", "ingress")]),
            ("53:5353/udp", vec![(53, 5353, "udp", "ingress")]),
            ("80", vec![(0, 80, "tcp", "ingress")]),
            ("0:80", vec![(0, 80, "tcp", "ingress")]),
            ("published=0,target=80", vec![(0, 80, "tcp", "ingress")]),
            ("8000-8001:80-81", vec![(8000, 80, "tcp", "ingress"), (8001, 81, "tcp", "ingress")]),
            ("published=8080,target=80,mode=host,protocol=udp", vec![(8080, 80, "udp", "host")]),
        ] {
            let expected: Vec<Value> = expected
                .into_iter()
                .map(|(p, t, protocol, mode)| {
                    json!({
                        "Protocol": protocol, "TargetPort": t, "PublishedPort": p, "PublishMode": mode,
                    })
                })
                .collect();
            assert_eq!(publish(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "x",
            "80:0",
            "0:80-81",
            "0-1:80-81",
            "1:2/icmp",
            "127.0.0.1:80:80",
            "1-3:1-2",
            "published=1",
            "target=1,mode=x",
        ] {
            assert!(publish(text).is_err(), "{text}");
        }
        for text in [":80", "80:", "a:80", "70000"] {
            let said = format!("{:#}", publish(text).unwrap_err());
            assert!(said.starts_with(&format!("in {text:?}: invalid port")), "{said}");
        }
    }

    #[test]
    fn mounts_files_networks_and_the_rest() {
        assert_eq!(
            mount("type=bind,src=/a,dst=/b,ro").unwrap(),
            json!({ "Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true })
        );
        assert_eq!(
            mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777").unwrap()["TmpfsOptions"],
            json!({ "SizeBytes": 1 << 20, "Mode": 0o1777 })
        );
        assert!(mount("type=bind").is_err() && mount("target=/a,volume-nocopy").is_err());
        let file = file_reference("source=s,target=t,mode=0400").unwrap();
        assert_eq!((file.source.as_str(), &file.file["Mode"]), ("s", &json!(0o400)));
        assert_eq!(file_reference("s").unwrap().file["Name"], json!("s"));
        assert_eq!(network("name=n,alias=a").unwrap()["Aliases"], json!(["a"]));
        assert_eq!(ulimit("nofile=1:2").unwrap(), json!({ "Name": "nofile", "Soft": 1, "Hard": 2 }));
        assert!(ulimit("nofile").is_err() && preference("zone").is_err());
    }

    #[test]
    fn what_the_help_texts_show_is_understood() {
        for port in ["8080:80", "8000-8002:80-82/udp", "published=8080,target=80,protocol=tcp,mode=host"] {
            publish(port).unwrap();
        }
        for text in ["type=bind,source=/srv,target=/data,readonly", "type=tmpfs,target=/tmp,tmpfs-size=64m"] {
            mount(text).unwrap();
        }
        for file in
            ["source=name,target=file,uid=0,gid=0,mode=0400", "source=name,target=/etc/app.conf,uid=0,gid=0,mode=0444"]
        {
            file_reference(file).unwrap();
        }
        network("name=net,alias=db").unwrap();
        preference("spread=node.labels.zone").unwrap();
        ulimit("nofile=1024:2048").unwrap();
    }

    #[test]
    fn images_get_their_tag() {
        for (given, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1", "busybox:1"),
            ("r:5000/a", "r:5000/a:latest"),
            ("a@sha256:00", "a@sha256:00"),
            ("", ""),
        ] {
            assert_eq!(image(given), expected);
        }
    }
}
