//! Dockerfile instructions that change a config, as `docker import --change` and `commit --change` take
//! them. Pure.

use crate::config::{Empty, Healthcheck, RunConfig};
use crate::error::{Error, Result};

/// Applies one instruction.
pub(crate) fn apply(config: &mut RunConfig, change: &str) -> Result<()> {
    let bad = |why: &str| Error::Change { change: change.chars().take(200).collect(), why: why.to_owned() };
    let (instruction, rest) = change.trim().split_once(char::is_whitespace).unwrap_or((change.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err(bad("it has no value"));
    }
    match instruction.to_ascii_uppercase().as_str() {
        "CMD" => config.cmd = Some(command(rest)),
        "ENTRYPOINT" => {
            config.entrypoint = Some(command(rest));
            // The old arguments were meant for another program.
            config.cmd = None;
        }
        "ENV" => {
            for (name, value) in pairs(rest).map_err(bad)? {
                let prefix = format!("{name}=");
                config.env.retain(|old| !old.starts_with(&prefix));
                config.env.push(format!("{prefix}{value}"));
            }
        }
        "LABEL" => config.labels.extend(pairs(rest).map_err(bad)?),
        "EXPOSE" => {
            for port in rest.split_whitespace() {
                config.exposed_ports.insert(exposed(port).map_err(bad)?, Empty {});
            }
        }
        "VOLUME" => {
            let paths = list(rest).unwrap_or_else(|| rest.split_whitespace().map(str::to_owned).collect());
            config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        }
        "USER" => config.user = rest.to_owned(),
        "WORKDIR" => {
            config.working_dir = if rest.starts_with('/') {
                rest.to_owned()
            } else {
                format!("{}/{rest}", config.working_dir.trim_end_matches('/'))
            }
        }
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        "ONBUILD" => config.on_build.push(rest.to_owned()),
        "HEALTHCHECK" => config.healthcheck = Some(healthcheck(rest).map_err(bad)?),
        _ => {
            return Err(bad(
                "only CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR are possible",
            ));
        }
    }
    Ok(())
}

/// A JSON list is taken as it is; anything else is a line for the shell.
fn command(text: &str) -> Vec<String> {
    list(text).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

fn list(text: &str) -> Option<Vec<String>> {
    text.starts_with('[').then(|| serde_json::from_str(text).ok())?
}

/// `80` or `80/udp`, or a range of ports.
fn exposed(text: &str) -> Result<String, &'static str> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && matches!(protocol, "tcp" | "udp" | "sctp") => {
            Ok(format!("{ports}/{protocol}"))
        }
        _ => Err("a port is a number from 1 to 65535, with /tcp, /udp or /sctp"),
    }
}

/// `A=b C="d e"`, or the old form `A b c`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let words = words(text)?;
    let Some(first) = words.first() else {
        return Err("it has no value");
    };
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or("a name needs a value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err("each word must be NAME=VALUE"),
        })
        .collect()
}

/// Splits at blanks; quotes and backslashes protect them.
fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let (mut words, mut word, mut started, mut quote) = (Vec::new(), String::new(), false, None);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if std::mem::take(&mut started) {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None | Some('"'), '\\') => word.push(chars.next().ok_or("it ends with a backslash")?),
            (_, c) => word.push(c),
        }
        started = true;
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    if started {
        words.push(word);
    }
    Ok(words)
}

fn healthcheck(text: &str) -> Result<Healthcheck, &'static str> {
    let mut check = Healthcheck::default();
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).ok_or("CMD or NONE is missing")?;
        let (name, value) = option.split_once('=').ok_or("an option must be --name=value")?;
        match name {
            "interval" => check.interval = duration(value)?,
            "timeout" => check.timeout = duration(value)?,
            "start-period" => check.start_period = duration(value)?,
            "start-interval" => check.start_interval = duration(value)?,
            "retries" => check.retries = value.parse().map_err(|_| "retries is a number")?,
            _ => {
                return Err("the options are interval, timeout, start-period, start-interval and retries");
            }
        }
        rest = after.trim_start();
    }
    if rest.eq_ignore_ascii_case("NONE") {
        check.test = vec!["NONE".to_owned()];
        return Ok(check);
    }
    let (word, line) = rest.split_once(char::is_whitespace).ok_or("CMD needs a command")?;
    if !word.eq_ignore_ascii_case("CMD") {
        return Err("CMD or NONE is missing");
    }
    check.test = match list(line.trim()) {
        Some(command) => std::iter::once("CMD".to_owned()).chain(command).collect(),
        None => vec!["CMD-SHELL".to_owned(), line.trim().to_owned()],
    };
    Ok(check)
}

/// `1m30s` and the like, in nanoseconds.
fn duration(text: &str) -> Result<u64, &'static str> {
    const BAD: &str = "a duration is like 500ms, 30s or 1m30s";
    let (mut total, mut rest) = (0_u64, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(BAD)?;
        let number: u64 = rest[..digits].parse().map_err(|_| BAD)?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let nanos = match &rest[..unit] {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(BAD),
        };
        total = number.checked_mul(nanos).and_then(|n| total.checked_add(n)).ok_or(BAD)?;
        rest = &rest[unit..];
    }
    if text.is_empty() { Err(BAD) } else { Ok(total) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn instructions_change_the_config() {
        let mut config = RunConfig::default();
        for change in [
            "CMD [\"a\", \"b c\"]",
            "env A=1 B=\"two words\" C=three\\ words",
            "ENV A 9 8",
            "LABEL x.y='z'",
            "EXPOSE 80 53/udp 1000-1002",
            "VOLUME [\"/a\"]",
            "VOLUME /b /c",
            "USER 1:2",
            "WORKDIR /w/",
            "WORKDIR sub",
            "STOPSIGNAL SIGUSR1",
            "HEALTHCHECK --interval=1m30s --retries=4 CMD curl -f x",
        ] {
            apply(&mut config, change).unwrap();
        }
        assert_eq!(config.cmd, Some(vec!["a".to_owned(), "b c".to_owned()]));
        assert_eq!(config.env, ["B=two words", "C=three words", "A=9 8"]);
        assert_eq!(config.labels["x.y"], "z");
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["1000-1002/tcp", "53/udp", "80/tcp"]);
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/a", "/b", "/c"]);
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1:2", "/w/sub"));
        let check = config.healthcheck.clone().unwrap();
        assert_eq!((check.interval, check.retries), (90_000_000_000, 4));
        assert_eq!(check.test, ["CMD-SHELL", "curl -f x"]);
        apply(&mut config, "ENTRYPOINT run it").unwrap();
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "run it"]);
        assert_eq!(config.cmd, None);
    }

    #[test]
    fn what_is_no_instruction_is_refused() {
        for change in [
            "",
            "CMD",
            "RUN x",
            "ENV A",
            "ENV =x",
            "ENV A=\"x",
            "EXPOSE 0",
            "EXPOSE 80/icmp",
            "EXPOSE 9-8",
            "HEALTHCHECK x",
            "HEALTHCHECK --interval=5 CMD x",
            "HEALTHCHECK --interval=1s",
        ] {
            assert!(apply(&mut RunConfig::default(), change).is_err(), "{change}");
        }
    }
}
