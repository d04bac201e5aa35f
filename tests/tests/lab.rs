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
    let lab = Lab::up(&plan, &program("skep")?)?;
    // What a crash may leave: a machine dead, a record half written.
    lab.kill("n2")?;
    std::fs::write(format!("/run/skep-lab/{name}/lab.json"), "{")?;
    assert!(Lab::open(&name).is_err());
    let again = Lab::up(&plan, &program("skep")?)?;
    assert_eq!(again.status()?.iter().filter(|n| n.state == "up").count(), 2);
    Lab::down(&name)?;
    Lab::down(&name)?;
    assert_eq!(leftovers(&name), Vec::<String>::new());
    Ok(())
}
