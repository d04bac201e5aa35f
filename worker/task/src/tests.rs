//! A table of the life cycle, and the properties that hold on every path through it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn facts(image: bool, sandbox: Sandbox, container: Container) -> Facts {
    Facts { image, sandbox, container, ..Facts::default() }
}

#[test]
fn the_straight_path() {
    let exit = Exit { code: 0, ..Exit::default() };
    let table = [
        (
            Desired::Running,
            facts(false, Sandbox::Absent, Container::Absent),
            TaskState::Preparing,
            Command::EnsureImage,
        ),
        (Desired::Running, facts(true, Sandbox::Absent, Container::Absent), TaskState::Preparing, Command::OpenSandbox),
        (Desired::Running, facts(true, Sandbox::Open, Container::Absent), TaskState::Preparing, Command::AwaitNetworks),
        (
            Desired::Running,
            facts(true, Sandbox::Attached, Container::Absent),
            TaskState::Preparing,
            Command::CreateContainer,
        ),
        (Desired::Ready, facts(true, Sandbox::Attached, Container::Created), TaskState::Ready, Command::Rest),
        (
            Desired::Running,
            facts(true, Sandbox::Attached, Container::Created),
            TaskState::Starting,
            Command::StartContainer,
        ),
        (Desired::Running, facts(true, Sandbox::Attached, Container::Running), TaskState::Running, Command::AwaitExit),
        (
            Desired::Running,
            facts(true, Sandbox::Attached, Container::Exited(exit.clone())),
            TaskState::Running,
            Command::CloseSandbox,
        ),
        (Desired::Running, facts(true, Sandbox::Closed, Container::Exited(exit)), TaskState::Complete, Command::Rest),
    ];
    for (desired, facts, state, command) in table {
        assert_eq!(next(desired, &facts), Next { state, command }, "{desired:?} {facts:?}");
    }
}

#[test]
fn how_a_task_ends_says_why() {
    let ended = |desired, code, stop_sent| {
        let container = Container::Exited(Exit { code, ..Exit::default() });
        next(desired, &Facts { stop_sent, ..facts(true, Sandbox::Closed, container) }).state
    };
    assert_eq!(ended(Desired::Running, 0, false), TaskState::Complete);
    assert_eq!(ended(Desired::Running, 1, false), TaskState::Failed);
    assert_eq!(ended(Desired::Stopped, 143, true), TaskState::Shutdown);
    assert_eq!(ended(Desired::Stopped, 1, false), TaskState::Failed, "it failed before it was asked to stop");
    let refused = |rejected| {
        let failure = Some(Failure { message: "no such image".into(), rejected });
        next(Desired::Running, &Facts { failure, ..Facts::default() }).state
    };
    assert_eq!(refused(true), TaskState::Rejected);
    assert_eq!(refused(false), TaskState::Failed);
}

#[test]
fn without_managers_the_node_follows_the_restart_policy_itself() {
    let told = |restart, code, alone, restarts, rested| {
        let container = Container::Exited(Exit { code, ..Exit::default() });
        let policy = Policy { restart, attempts: Some(3) };
        next(Desired::Running, &Facts { alone, policy, restarts, rested, ..facts(true, Sandbox::Attached, container) })
    };
    let table = [
        // The managers are there: they replace the task.
        ((Restart::Always, 1, false, 0, false), Command::CloseSandbox),
        ((Restart::Always, 1, true, 0, false), Command::AwaitRestart),
        ((Restart::Always, 0, true, 0, true), Command::RenewContainer),
        ((Restart::OnFailure, 0, true, 0, false), Command::CloseSandbox),
        ((Restart::OnFailure, 1, true, 2, false), Command::AwaitRestart),
        ((Restart::OnFailure, 1, true, 3, false), Command::CloseSandbox),
        ((Restart::Never, 1, true, 0, false), Command::CloseSandbox),
        // They came back during the pause.
        ((Restart::Always, 1, false, 1, true), Command::CloseSandbox),
    ];
    for ((restart, code, alone, restarts, rested), command) in table {
        let next = told(restart, code, alone, restarts, rested);
        assert_eq!(next, Next { state: TaskState::Running, command }, "{restart:?} {code} {alone} {restarts} {rested}");
    }
    let mut again = facts(true, Sandbox::Attached, Container::Exited(Exit { code: 1, ..Exit::default() }));
    again.rested = true;
    again.renewed();
    assert_eq!((again.restarts, again.rested), (1, false));
    let said = next(Desired::Running, &again);
    assert_eq!(said, Next { state: TaskState::Running, command: Command::StartContainer }, "the same sandbox is used");
}

#[test]
fn assigned_states_become_wishes() {
    assert_eq!(Desired::from_state(TaskState::Ready), Desired::Ready);
    assert_eq!(Desired::from_state(TaskState::Running), Desired::Running);
    assert_eq!(Desired::from_state(TaskState::Shutdown), Desired::Stopped);
    assert_eq!(Desired::from_state(TaskState::Remove), Desired::Gone);
}

/// A world that carries out commands, now and then failing one or ending the process.
fn carry_out(command: Command, facts: &mut Facts, fails: bool) {
    if fails
        && matches!(
            command,
            Command::EnsureImage
                | Command::OpenSandbox
                | Command::AwaitNetworks
                | Command::CreateContainer
                | Command::StartContainer
                | Command::RenewContainer
        )
    {
        facts.failure = Some(Failure { message: "it failed".into(), rejected: false });
        return;
    }
    match command {
        Command::EnsureImage => facts.image = true,
        Command::OpenSandbox => facts.sandbox = Sandbox::Open,
        Command::AwaitNetworks => facts.sandbox = Sandbox::Attached,
        Command::CreateContainer => facts.container = Container::Created,
        Command::StartContainer => facts.container = Container::Running,
        Command::AwaitExit => facts.exited(Exit { code: i32::from(fails), ..Exit::default() }),
        Command::AwaitRestart => facts.rested = true,
        Command::StopContainer => {
            facts.stop_sent = true;
            facts.exited(Exit { code: 143, ..Exit::default() });
        }
        Command::CloseSandbox => facts.sandbox = Sandbox::Closed,
        Command::RenewContainer => facts.renewed(),
        Command::RemoveContainer => facts.container = Container::Absent,
        Command::Rest | Command::Forget => {}
    }
}

proptest! {
    #[test]
    fn states_never_go_back_and_every_wish_is_met(
        wishes in prop::collection::vec((0usize..4, any::<bool>(), any::<bool>(), 1usize..4), 1..12),
        restart in prop::sample::select(vec![Restart::Never, Restart::OnFailure, Restart::Always]),
    ) {
        let policy = Policy { restart, attempts: Some(2) };
        let all = [Desired::Ready, Desired::Running, Desired::Stopped, Desired::Gone];
        let (mut facts, mut desired, mut reported) = (Facts { policy, ..Facts::default() }, Desired::Ready, TaskState::New);
        for (wish, fails, alone, steps) in wishes {
            facts.alone = alone;
            // Wishes move forward only: the managers never take a stop back.
            desired = desired.max(all[wish]);
            for _ in 0..steps {
                let said = next(desired, &facts);
                prop_assert!(said.state >= reported || reported.is_terminal() && said.state == TaskState::Remove, "{reported:?} -> {:?}", said.state);
                if said.state.is_terminal() && desired != Desired::Gone {
                    prop_assert!(!matches!(facts.sandbox, Sandbox::Open | Sandbox::Attached), "an address of a dead task is held");
                }
                reported = said.state;
                carry_out(said.command, &mut facts, fails);
            }
        }
        prop_assert!(facts.restarts <= 2);
        for _ in 0..12 {
            let said = next(Desired::Stopped.max(desired), &facts);
            carry_out(said.command, &mut facts, false);
        }
        prop_assert!(next(Desired::Stopped.max(desired), &facts).state.is_terminal());
        for _ in 0..12 {
            let said = next(Desired::Gone, &facts);
            carry_out(said.command, &mut facts, false);
        }
        prop_assert_eq!(next(Desired::Gone, &facts).command, Command::Forget);
        prop_assert_eq!(&facts.container, &Container::Absent);
    }
}
