//! `skep lab`: clusters of many nodes on one machine. The lab itself is `skep-deploy`'s; here are its words.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use skep_deploy::lab::{Lab, NodeStatus, Plan, Stage, demo, leftovers, machine};

use crate::output;

/// What can be done with labs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Args {
    /// Make a lab: nodes in namespaces on a virtual switch, with a swarm; give one that is there what it lacks
    Up {
        #[command(flatten)]
        lab: Name,
        /// Number of nodes [default: 3, or what the lab has]
        #[arg(long)]
        nodes: Option<usize>,
        /// How many of them are managers [default: 3 or all if there are fewer, or what the lab has]
        #[arg(long)]
        managers: Option<usize>,
        /// Start the daemons only; make no swarm
        #[arg(long)]
        no_swarm: bool,
    },
    /// Show the nodes of a lab
    Status {
        #[command(flatten)]
        lab: Name,
        /// table or json
        #[arg(long, default_value = "table")]
        format: String,
    },
    /// Run a command on a machine of a lab (n1, n2, … or outside), told where its daemon is
    Exec {
        #[command(flatten)]
        lab: Name,
        /// The machine
        node: String,
        /// Command and arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Pull the plug of nodes: everything on them ends at once
    Kill {
        #[command(flatten)]
        lab: Name,
        /// The nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        /// Kill their daemons only
        #[arg(long)]
        daemon: bool,
    },
    /// Start nodes that are off; one that is on loses its daemon and gets a new one
    Restart {
        #[command(flatten)]
        lab: Name,
        /// The nodes
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Cut the network between groups of machines, for instance: n1,n2 n3; one group alone is cut off from all others
    Partition {
        #[command(flatten)]
        lab: Name,
        /// Groups; machines that are named nowhere stay with the first
        #[arg(required = true)]
        groups: Vec<String>,
    },
    /// Undo every partition
    Heal {
        #[command(flatten)]
        lab: Name,
    },
    /// Take a lab down and leave nothing
    Down {
        #[command(flatten)]
        lab: Name,
    },
    /// Show what Skep does, on a lab of its own, in a minute
    Demo {
        /// Number of nodes
        #[arg(long, default_value_t = 3)]
        nodes: usize,
        /// Archive of the whoami image [default: whoami.tar beside this program]
        #[arg(long, value_name = "FILE")]
        image: Option<PathBuf>,
    },
}

/// Which lab.
#[derive(Debug, clap::Args)]
pub(crate) struct Name {
    /// Name of the lab
    #[arg(long = "name", env = "SKEP_LAB", default_value = "lab")]
    name: String,
}

/// Does it.
pub(crate) fn run(args: Args) -> Result<ExitCode> {
    match args {
        Args::Up { lab, nodes, managers, no_swarm } => {
            let there = Lab::open(&lab.name).ok().map(|lab| lab.size());
            let nodes = nodes.or(there.map(|(nodes, _)| nodes)).unwrap_or(3);
            let of_there = there.filter(|(there, _)| *there == nodes).map(|(_, managers)| managers);
            let managers = managers.or(of_there).unwrap_or(nodes.min(3));
            let stage = if no_swarm { Stage::Daemons } else { Stage::Swarm };
            let plan = Plan { name: lab.name.clone(), nodes, managers, stage };
            let made = Lab::up(&plan, &std::env::current_exe()?, &mut |line| output::note(line))?;
            show(&made)?;
            // Who left, or was removed, is the user's business: it is not taken back unasked.
            let is_out = |node: &NodeStatus| !no_swarm && node.state == "up" && node.role == "-";
            let out: Vec<String> = made.status()?.into_iter().filter(is_out).map(|node| node.name).collect();
            if !out.is_empty() {
                output::note(format!("\nin no swarm: {}; `skep swarm join` takes them in again", out.join(", ")));
            }
            let first = if no_swarm { "swarm init" } else { "node ls" };
            output::note(format!("\nA node's daemon: skep lab exec --name {} n1 -- skep {first}", lab.name));
            output::note(format!("What it logs:    {}", made.log("n1").display()));
        }
        Args::Status { lab: Name { name }, format } => {
            let lab = Lab::open(&name)?;
            match format.as_str() {
                "json" => output::line(serde_json::to_string_pretty(&serde_json::to_value(lab.status()?)?)?)?,
                "table" => {
                    show(&lab)?;
                    let lacks: Vec<String> = lab.lacks().iter().map(ToString::to_string).collect();
                    if !lacks.is_empty() {
                        let lacks = lacks.join(", ");
                        output::note(format!("\nnot whole: {lacks}; to put that right: skep lab up --name {name}"));
                    }
                }
                other => bail!("format {other:?}: use table or json"),
            }
        }
        Args::Exec { lab, node, command } => return exec(&lab.name, &node, &command),
        Args::Kill { lab, nodes, daemon } => {
            let lab = Lab::open(&lab.name)?;
            nodes.iter().try_for_each(|node| if daemon { lab.known_node(node) } else { lab.known(node) })?;
            nodes.iter().try_for_each(|node| if daemon { lab.kill_daemon(node) } else { lab.kill(node) })?;
        }
        Args::Restart { lab, nodes } => {
            let lab = Lab::open(&lab.name)?;
            nodes.iter().try_for_each(|node| lab.known(node))?;
            nodes.iter().try_for_each(|node| lab.restart(node))?;
        }
        Args::Partition { lab, groups } => {
            output::line(sides(&lab.name, &Lab::open(&lab.name)?.partition(&groups)?))?;
        }
        Args::Heal { lab } => output::line(sides(&lab.name, &[Lab::open(&lab.name)?.heal()?]))?,
        Args::Down { lab } => {
            if leftovers(&lab.name).is_empty() {
                output::note(format!("there is no lab {}, nor anything left of one", lab.name));
            }
            Lab::down(&lab.name)?;
        }
        Args::Demo { nodes, image } => {
            let exe = std::env::current_exe()?;
            let image = image.unwrap_or_else(|| exe.with_file_name("whoami.tar"));
            demo::run(&exe, &image, "demo", nodes, &mut |text| {
                // The demonstration goes on to its end, and takes its lab down, whoever reads.
                let _ = output::line(text);
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who reaches whom after a partition.
fn sides(lab: &str, sides: &[BTreeSet<String>]) -> String {
    let names = |side: &BTreeSet<String>| side.iter().cloned().collect::<Vec<_>>().join(", ");
    match sides {
        [all] => format!("together again: {}", names(all)),
        parted => {
            let groups: Vec<String> = parted.iter().filter(|side| !side.is_empty()).map(names).collect();
            format!("cut off from each other: {}\nundo with: skep lab heal --name {lab}", groups.join("  |  "))
        }
    }
}

fn exec(name: &str, node: &str, command: &[String]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("give a command")?;
    // `skep` on a machine is this very program, wherever it lies.
    let program =
        if program == "skep" { std::env::current_exe()?.to_string_lossy().into_owned() } else { program.clone() };
    let status = Lab::open(name)?.exec(node, &program)?.args(args).status()?;
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1)))
}

fn show(lab: &Lab) -> Result<()> {
    output::line(format!("{:<6} {:<16} {:<9} {:<12} SOCKET", "NAME", "ADDRESS", "ROLE", "STATE"))?;
    lab.status()?.into_iter().try_for_each(|node| {
        let socket = node.socket.display();
        output::line(format!("{:<6} {:<16} {:<9} {:<12} {socket}", node.name, node.address, node.role, node.state))
    })
}

/// The helper processes of a lab; `None` when the arguments ask for none. Called before any thread exists.
pub(crate) fn helper(args: &[String]) -> Option<Result<u8>> {
    let (verb, rest) = args.split_first()?;
    match verb.as_str() {
        machine::INIT => Some(machine::init_main(rest).map(|()| 0)),
        machine::ENTER => Some(machine::enter_main(rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_told() {
        let side = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
        let parted = sides("x", &[side(&["n1"]), side(&["n2", "n3", "outside"])]);
        assert_eq!(parted, "cut off from each other: n1  |  n2, n3, outside\nundo with: skep lab heal --name x");
        assert_eq!(sides("x", &[side(&["n1", "n2"])]), "together again: n1, n2");
    }
}
