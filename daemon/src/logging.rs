//! Log lines: text for people or JSON for machines, to standard error; the level can change while the daemon runs.

use anyhow::{Context, Result};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::config::LogFormat;

/// Changes the level of a running daemon.
#[derive(Debug, Clone)]
pub(crate) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Takes a new filter into use, such as `info` or `skep_netdrv=debug,info`.
    pub(crate) fn set(&self, filter: &str) -> Result<()> {
        Ok(self.0.reload(parse(filter)?)?)
    }
}

/// Sets logging up for the whole process.
pub(crate) fn init(format: LogFormat, filter: &str) -> Result<Level> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init(),
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    }
    .context("logging was set up before")?;
    Ok(Level(handle))
}

/// What stands in front of every filter, which may overrule it. The consensus library calls it an error when it is asked
/// something after its end, as happens at every stop and demotion. Why it ended, if that was not on purpose, is told
/// elsewhere, by its core and by our own monitor.
const QUIET: &str = "openraft::raft=off";

fn parse(filter: &str) -> Result<EnvFilter> {
    let advice = || format!("log level {filter:?}: give off, error, warn, info, debug or trace, or crate=level pairs");
    // A word that is no level would be taken for a crate, of which everything is logged, and of all others nothing.
    if !filter.contains('[') && !filter.split(',').all(names_level) {
        anyhow::bail!(advice());
    }
    EnvFilter::try_new(format!("{QUIET},{filter}")).with_context(advice)
}

/// Whether a part of a filter is a level, or gives one to a crate.
fn names_level(part: &str) -> bool {
    let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
    !level.is_empty() && level.parse::<LevelFilter>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_and_overrules_what_is_quiet() -> Result<()> {
        for wrong in
            ["no=such=thing", "infoo", "", " ", "info,", "skep_daemon", "skep_daemon=", "info,skep_netdrv=loud"]
        {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
        for right in ["off", "WARN", "skep_netdrv=debug,info", "info,skep_daemon::api=trace", "info,[span{x=1}]=debug"]
        {
            assert!(parse(right).is_ok(), "{right:?}");
        }
        assert!(parse("info")?.to_string().contains(QUIET));
        let asked = parse("info,openraft::raft=debug")?.to_string();
        assert!(asked.contains("openraft::raft=debug") && !asked.contains(QUIET), "{asked}");
        Ok(())
    }
}
