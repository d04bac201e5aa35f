//! What a lab lacks, and how it gets it. The same few steps build a new lab, finish one whose making was interrupted, and
//! put right one whose switch or nodes died: each step looks first, so that doing it again is harmless.
//!
//! [`lacking`] decides, purely, from what was seen. It must never touch what stands: a cable that carries traffic stays
//! in, and who is in the swarm is the user's business once the swarm was made.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::layout::{OUTSIDE, SWITCH};
use super::machine::{self, Init};
use super::{DAEMON_DEADLINE, Lab, Stage, switch, until};

/// Something that a lab should have and has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The machine that joins all others is off.
    Switch,
    /// A machine is off.
    Machine(String),
    /// A machine is on and its cable leads nowhere.
    Cable(String),
    /// A node is on and its daemon does not run.
    Daemon(String),
    /// The making of the swarm did not come to its end.
    Swarm,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Switch => f.write_str("the switch is off"),
            Self::Machine(name) => write!(f, "{name} is off"),
            Self::Cable(name) => write!(f, "{name} is not on the network"),
            Self::Daemon(name) => write!(f, "the daemon of {name} is down"),
            Self::Swarm => f.write_str("the swarm is not complete"),
        }
    }
}

/// What a look at one machine shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Its name.
    pub(super) name: String,
    /// It runs.
    pub(super) on: bool,
    /// Its cable leads to the switch that runs now.
    pub(super) cable: bool,
    /// Its daemon runs; `None` where none belongs.
    pub(super) daemon: Option<bool>,
}

/// What is lacking, in the order in which it is put right.
pub(super) fn lacking(switch: bool, machines: &[Seen], swarm: bool) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if !switch {
        lacks.push(Lack::Switch);
    }
    for seen in machines {
        let name = || seen.name.clone();
        match (seen.on, seen.cable) {
            (false, _) => lacks.push(Lack::Machine(name())),
            (true, false) => lacks.push(Lack::Cable(name())),
            (true, true) => {}
        }
        if seen.on && seen.daemon == Some(false) {
            lacks.push(Lack::Daemon(name()));
        }
    }
    if !swarm {
        lacks.push(Lack::Swarm);
    }
    lacks
}

/// Which two machines a cable joins. Either one dead, the kernel has removed it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Cable {
    switch: Init,
    machine: Init,
}

impl Lab {
    /// What this lab should have, by what was asked of it, and has not.
    pub fn lacks(&self) -> Vec<Lack> {
        let record = &self.record;
        let daemons = record.stage >= Stage::Daemons;
        let seen: Vec<Seen> = std::iter::once(OUTSIDE.to_owned())
            .chain(self.nodes())
            .map(|name| Seen {
                on: self.init(&name).is_ok(),
                cable: self.cable(&name),
                daemon: (daemons && name != OUTSIDE).then(|| self.daemon_pid(&name).is_some()),
                name,
            })
            .collect();
        lacking(self.init(SWITCH).is_ok(), &seen, record.stage < Stage::Swarm || record.swarm_made)
    }

    /// Gives the lab all that it lacks.
    pub(super) fn complete(&mut self) -> Result<()> {
        if self.init(SWITCH).is_err() {
            self.boot(SWITCH)?;
        }
        switch::make(&self.init(SWITCH)?)?;
        for machine in std::iter::once(OUTSIDE.to_owned()).chain(self.nodes()) {
            if self.init(&machine).is_err() {
                self.boot(&machine)?;
            }
            if !self.cable(&machine) {
                self.plug_in(&machine)?;
            }
            if self.record.stage >= Stage::Daemons && machine != OUTSIDE && self.daemon_pid(&machine).is_none() {
                self.start_daemon(&machine)?;
            }
        }
        if self.record.stage >= Stage::Daemons {
            for node in self.nodes() {
                self.wait_for_daemon(&node)?;
            }
        }
        if self.record.stage >= Stage::Swarm && !self.record.swarm_made {
            self.make_swarm()?;
            self.record.swarm_made = true;
            self.remember()?;
        }
        Ok(())
    }

    /// Writes down what the lab knows of itself.
    pub(super) fn remember(&self) -> Result<()> {
        machine::write_atomically(&self.layout.file(), &serde_json::to_vec_pretty(&self.record)?)
    }

    pub(super) fn boot(&self, name: &str) -> Result<()> {
        let file = self.layout.init_file(name);
        fs::create_dir_all(self.layout.run_dir().join(name))?;
        Init::boot(&self.record.exe, &file, name).map(|_| ())
    }

    pub(super) fn plug_in(&self, name: &str) -> Result<()> {
        let address = super::layout::address(name, self.record.nodes)?;
        let cable = Cable { switch: self.init(SWITCH)?, machine: self.init(name)? };
        switch::plug_in(&cable.switch, &cable.machine, name, address)?;
        machine::write_atomically(&self.layout.cable_file(name), &serde_json::to_vec(&cable)?)
    }

    /// Whether a machine's cable leads to the switch that runs now.
    pub(super) fn cable(&self, name: &str) -> bool {
        let file = fs::read(self.layout.cable_file(name)).ok();
        let cable: Option<Cable> = file.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (Ok(switch), Ok(machine)) = (self.init(SWITCH), self.init(name)) else { return false };
        cable == Some(Cable { switch, machine })
    }

    /// Makes one swarm of the nodes, or goes on where an interrupted making of it stopped.
    fn make_swarm(&self) -> Result<()> {
        let (managers, all) = (self.record.managers, self.nodes());
        let Some((first, others)) = all.split_first() else { return Ok(()) };
        let address = self.address(first)?;
        self.enter_swarm(first, &["swarm", "init", "--advertise-addr", &address])?;
        let token = |role: &str| -> Result<String> {
            Ok(self.skep_ok(first, &["swarm", "join-token", "--quiet", role])?.trim().to_owned())
        };
        let (manager, worker) = (token("manager")?, token("worker")?);
        for (i, node) in others.iter().enumerate() {
            let token = if i + 1 < managers { &manager } else { &worker };
            let own = self.address(node)?;
            let to = format!("{address}:2377");
            self.enter_swarm(node, &["swarm", "join", "--advertise-addr", &own, "--token", token, &to])?;
        }
        Ok(())
    }

    /// Has a node in a swarm, by this command where it is in none. A command whose caller was killed may still be under
    /// way in the daemon: that one is waited for.
    fn enter_swarm(&self, node: &str, command: &[&str]) -> Result<()> {
        if self.settled(node)? {
            return Ok(());
        }
        let Err(error) = self.skep_ok(node, command) else { return Ok(()) };
        if self.settled(node)? { Ok(()) } else { Err(error) }
    }

    /// Whether a node is in a swarm, once it knows.
    fn settled(&self, node: &str) -> Result<bool> {
        let state = until(DAEMON_DEADLINE, "the node's place in a swarm", || {
            let state = self.skep_ok(node, &["info", "--format", "{{.Swarm.LocalNodeState}}"]).ok()?;
            let state = state.trim().to_owned();
            (state != "pending").then_some(state)
        })
        .with_context(|| format!("{node} is still on its way into the swarm"))?;
        match state.as_str() {
            "active" => Ok(true),
            "inactive" => Ok(false),
            other => bail!("{node} says that its place in the swarm is {other:?}; see {}", self.log(node).display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, on: bool, cable: bool, daemon: Option<bool>) -> Seen {
        Seen { name: name.to_owned(), on, cable, daemon }
    }

    #[test]
    fn what_is_lacking_is_found_wherever_a_lab_stopped() {
        let said = |switch, machines: &[Seen], swarm| {
            lacking(switch, machines, swarm).iter().map(Lack::to_string).collect::<Vec<_>>().join("; ")
        };
        let whole = [seen("outside", true, true, None), seen("n1", true, true, Some(true))];
        assert_eq!(said(true, &whole, true), "");
        assert_eq!(said(true, &whole, false), "the swarm is not complete");
        let cut = [seen("outside", true, false, None), seen("n1", true, false, Some(true))];
        let expected = "the switch is off; outside is not on the network; n1 is not on the network";
        assert_eq!(said(false, &cut, true), expected);
        for (node, expected) in [
            (seen("n1", false, false, Some(false)), "n1 is off"),
            (seen("n1", true, false, Some(false)), "n1 is not on the network; the daemon of n1 is down"),
            (seen("n1", true, true, Some(false)), "the daemon of n1 is down"),
            (seen("n1", true, true, None), ""),
        ] {
            assert_eq!(said(true, &[node], true), expected);
        }
    }
}
