//! The lab itself: side by side, after a crash, and gone without a trace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use anyhow::Result;
use skep_deploy::lab::{Lab, Plan, Stage, leftovers};
use skep_tests::{Cluster, program};

#[test]
fn labs_stand_side_by_side_and_leave_nothing() -> Result<()> {
    let (one, two) = (Cluster::up("side1", 1, 1)?, Cluster::up("side2", 1, 1)?);
    for cluster in [&one, &two] {
        cluster.web(1)?;
        cluster.reachable(1)?;
    }
    one.down()?;
    two.reachable(1)?;
    two.down()
}

#[test]
fn a_lab_that_crashed_is_found_and_taken_down() -> Result<()> {
    let name = format!("crash-{}", std::process::id());
    let plan = Plan { name: name.clone(), nodes: 2, managers: 1, stage: Stage::Swarm };
    let lab = Lab::up(&plan, &program("skep")?, &mut |_| {})?;
    // What a crash may leave: a machine dead, a record half written.
    lab.kill("n2")?;
    std::fs::write(format!("/run/skep-lab/{name}/lab.json"), "{")?;
    assert!(Lab::open(&name).is_err());
    let again = Lab::up(&plan, &program("skep")?, &mut |_| {})?;
    assert_eq!(again.status()?.iter().filter(|n| n.state == "up").count(), 2);
    Lab::down(&name)?;
    Lab::down(&name)?;
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}

/// The lab's own words about what it lacks, none when it is whole.
fn lacks(lab: &Lab) -> Vec<String> {
    lab.lacks().iter().map(ToString::to_string).collect()
}

/// Takes a lab down with its test.
struct Ends(String);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = Lab::down(&self.0);
    }
}

/// Waits until the first node sees so many nodes ready.
fn ready(lab: &Lab, nodes: usize) -> Result<()> {
    skep_tests::eventually(&format!("{nodes} nodes ready"), || {
        let seen = lab.skep_ok("n1", &["node", "ls", "--format", "{{.Status}}"])?;
        anyhow::ensure!(seen.matches("Ready").count() == nodes, "{seen}");
        Ok(())
    })
}

#[test]
fn an_interrupted_up_and_a_dead_switch_are_put_right_and_said() -> Result<()> {
    let name = format!("half-{}", std::process::id());
    let _ends = Ends(name.clone());
    let run = std::path::PathBuf::from(format!("/run/skep-lab/{name}"));
    let program = program("skep")?;
    let mut up = std::process::Command::new(&program);
    up.args(["lab", "up", "--name", &name, "--nodes", "2", "--managers", "1"]);
    let mut killed = up.stdout(std::process::Stdio::null()).spawn()?;
    // Half way: the first node has a daemon, the second not yet everything.
    skep_tests::eventually("a lab half made", || Ok(std::fs::metadata(run.join("n1/daemon")).map(drop)?))?;
    killed.kill()?;
    killed.wait()?;
    let half = Lab::open(&name)?;
    assert!(!lacks(&half).is_empty(), "the lab was whole before it was interrupted");

    let plan = Plan { name: name.clone(), nodes: 2, managers: 1, stage: Stage::Swarm };
    let mut said = Vec::new();
    let lab = Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    let told = said.join("; ");
    assert!(told.contains("not whole") && told.contains("the swarm is not complete"), "{told}");
    assert_eq!(lacks(&lab), Vec::<String>::new());
    let roles: Vec<String> = lab.status()?.iter().map(|n| format!("{} {}", n.state, n.role)).collect();
    assert_eq!(roles, ["up manager", "up worker"]);

    // Nothing is done to a whole lab, and a switch that died is replaced without losing what the nodes run.
    let daemons: Vec<_> = lab.nodes().iter().map(|n| lab.daemon_pid(n)).collect();
    lab.kill("switch").expect_err("the switch is no machine of the user's");
    lab.init("switch")?.kill()?;
    assert!(lab.status()?.iter().all(|n| n.state == "no network"), "{:?}", lab.status());
    // Without its cable, the first node does not reach its own address either.
    ready(&lab, 0)?;
    let mut said = Vec::new();
    let lab = Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    assert!(said.join("; ").contains("the switch is off"), "{said:?}");
    assert_eq!(daemons, lab.nodes().iter().map(|n| lab.daemon_pid(n)).collect::<Vec<_>>());
    ready(&lab, 2)?;
    let mut said = Vec::new();
    Lab::up(&plan, &program, &mut |line| said.push(line.to_owned()))?;
    assert!(said.join("; ").contains("up already"), "{said:?}");
    Lab::down(&name)?;
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}
