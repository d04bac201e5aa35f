//! Flags that `service create` and `service update` share: values that are set as a whole. Lists, which an update adds
//! to and takes from, are in the two commands' own files.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::parse;
use crate::value::At;

/// Where in a spec the container is described.
pub(super) const CONTAINER: &str = "TaskTemplate.ContainerSpec";

/// The shared flags.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Shared {
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long)]
    entrypoint: Option<String>,
    /// Endpoint mode: vip or dnsrr
    #[arg(long)]
    endpoint_mode: Option<String>,
    /// Container hostname
    #[arg(long)]
    hostname: Option<String>,
    /// Use an init inside each service container
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    init: Option<bool>,
    /// Limit CPUs
    #[arg(long)]
    limit_cpu: Option<String>,
    /// Limit memory
    #[arg(long)]
    limit_memory: Option<String>,
    /// Limit maximum number of processes
    #[arg(long)]
    limit_pids: Option<i64>,
    /// Logging driver for service
    #[arg(long)]
    log_driver: Option<String>,
    /// Logging driver options, name=value
    #[arg(long = "log-opt")]
    log_options: Vec<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long, conflicts_with = "health_cmd")]
    no_healthcheck: bool,
    /// Command to run to check health
    #[arg(long)]
    health_cmd: Option<String>,
    /// Time between running the check
    #[arg(long)]
    health_interval: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long)]
    health_retries: Option<i64>,
    /// Start period for the container to initialize before counting retries towards unstable
    #[arg(long)]
    health_start_period: Option<String>,
    /// Time between running the check during the start period
    #[arg(long)]
    health_start_interval: Option<String>,
    /// Maximum time to allow one check to run
    #[arg(long)]
    health_timeout: Option<String>,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, allow_negative_numbers = true)]
    oom_score_adj: Option<i64>,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    read_only: Option<bool>,
    /// Number of tasks
    #[arg(long)]
    replicas: Option<u64>,
    /// Maximum number of tasks per node (0: unlimited)
    #[arg(long)]
    replicas_max_per_node: Option<u64>,
    /// Reserve CPUs
    #[arg(long)]
    reserve_cpu: Option<String>,
    /// Reserve memory
    #[arg(long)]
    reserve_memory: Option<String>,
    /// Restart when condition is met: none, on-failure, any
    #[arg(long)]
    restart_condition: Option<String>,
    /// Delay between restart attempts
    #[arg(long)]
    restart_delay: Option<String>,
    /// Maximum number of restarts before giving up
    #[arg(long)]
    restart_max_attempts: Option<u64>,
    /// Window used to evaluate the restart policy
    #[arg(long)]
    restart_window: Option<String>,
    /// Delay between task rollbacks
    #[arg(long)]
    rollback_delay: Option<String>,
    /// Action on rollback failure: pause, continue
    #[arg(long)]
    rollback_failure_action: Option<String>,
    /// Failure rate to tolerate during a rollback
    #[arg(long)]
    rollback_max_failure_ratio: Option<f64>,
    /// Duration after each task rollback to monitor for failure
    #[arg(long)]
    rollback_monitor: Option<String>,
    /// Rollback order: start-first, stop-first
    #[arg(long)]
    rollback_order: Option<String>,
    /// Maximum number of tasks rolled back simultaneously (0: all at once)
    #[arg(long)]
    rollback_parallelism: Option<u64>,
    /// Time to wait before force killing a container
    #[arg(long)]
    stop_grace_period: Option<String>,
    /// Signal to stop the container
    #[arg(long)]
    stop_signal: Option<String>,
    /// Allocate a pseudo-TTY
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    tty: Option<bool>,
    /// Delay between updates
    #[arg(long)]
    update_delay: Option<String>,
    /// Action on update failure: pause, continue, rollback
    #[arg(long)]
    update_failure_action: Option<String>,
    /// Failure rate to tolerate during an update
    #[arg(long)]
    update_max_failure_ratio: Option<f64>,
    /// Duration after each task update to monitor for failure
    #[arg(long)]
    update_monitor: Option<String>,
    /// Update order: start-first, stop-first
    #[arg(long)]
    update_order: Option<String>,
    /// Maximum number of tasks updated simultaneously (0: all at once)
    #[arg(long)]
    update_parallelism: Option<u64>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long)]
    workdir: Option<String>,
    /// Accepted for compatibility; images are never looked up on a registry
    #[arg(long, hide = true)]
    no_resolve_image: bool,
    /// Accepted for compatibility; there are no registry credentials to send
    #[arg(long, hide = true)]
    with_registry_auth: bool,
}

impl Shared {
    /// Puts what was given into a spec.
    pub(super) fn apply(&self, spec: &mut Value) -> Result<()> {
        self.container(spec)?;
        self.health(spec)?;
        self.resources(spec)?;
        self.restart(spec)?;
        self.updates(spec)?;
        if let Some(mode) = &self.endpoint_mode {
            spec.set("EndpointSpec.Mode", json!(mode));
        }
        if let Some(replicas) = self.replicas {
            if spec.at("Mode.Global").is_object() {
                bail!("replicas can only be used with replicated mode");
            }
            spec.set("Mode.Replicated.Replicas", json!(replicas));
        }
        if let Some(max) = self.replicas_max_per_node {
            spec.set("TaskTemplate.Placement.MaxReplicas", json!(max));
        }
        if let Some(driver) = &self.log_driver {
            spec.set("TaskTemplate.LogDriver.Name", json!(driver));
        }
        if !self.log_options.is_empty() {
            spec.with_map("TaskTemplate.LogDriver.Options", |o| o.extend(parse::pairs(&self.log_options)));
        }
        Ok(())
    }

    fn container(&self, spec: &mut Value) -> Result<()> {
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec.set(&format!("{CONTAINER}.{name}"), value);
            }
        };
        let words = |text: &String| json!(text.split_whitespace().collect::<Vec<_>>());
        set("Command", self.entrypoint.as_ref().map(words));
        set("Hostname", self.hostname.as_ref().map(|v| json!(v)));
        set("Init", self.init.map(|v| json!(v)));
        set("OomScoreAdj", self.oom_score_adj.map(|v| json!(v)));
        set("ReadOnly", self.read_only.map(|v| json!(v)));
        set("StopSignal", self.stop_signal.as_ref().map(|v| json!(v)));
        set("StopGracePeriod", duration(&self.stop_grace_period)?);
        set("TTY", self.tty.map(|v| json!(v)));
        set("User", self.user.as_ref().map(|v| json!(v)));
        set("Dir", self.workdir.as_ref().map(|v| json!(v)));
        Ok(())
    }

    fn health(&self, spec: &mut Value) -> Result<()> {
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec.set(&format!("{CONTAINER}.Healthcheck.{name}"), value);
            }
        };
        set("Test", self.no_healthcheck.then(|| json!(["NONE"])));
        set("Test", self.health_cmd.as_ref().map(|command| json!(["CMD-SHELL", command])));
        set("Interval", duration(&self.health_interval)?);
        set("Timeout", duration(&self.health_timeout)?);
        set("StartPeriod", duration(&self.health_start_period)?);
        set("StartInterval", duration(&self.health_start_interval)?);
        set("Retries", self.health_retries.map(|v| json!(v)));
        Ok(())
    }

    fn resources(&self, spec: &mut Value) -> Result<()> {
        for (group, cpu, memory) in
            [("Limits", &self.limit_cpu, &self.limit_memory), ("Reservations", &self.reserve_cpu, &self.reserve_memory)]
        {
            if let Some(cpu) = cpu {
                spec.set(&format!("TaskTemplate.Resources.{group}.NanoCPUs"), json!(parse::cpus(cpu)?));
            }
            if let Some(memory) = memory {
                spec.set(&format!("TaskTemplate.Resources.{group}.MemoryBytes"), json!(parse::bytes(memory)?));
            }
        }
        if let Some(pids) = self.limit_pids {
            spec.set("TaskTemplate.Resources.Limits.Pids", json!(pids));
        }
        Ok(())
    }

    fn restart(&self, spec: &mut Value) -> Result<()> {
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec.set(&format!("TaskTemplate.RestartPolicy.{name}"), value);
            }
        };
        set("Condition", self.restart_condition.as_ref().map(|v| json!(v)));
        set("Delay", duration(&self.restart_delay)?);
        set("MaxAttempts", self.restart_max_attempts.map(|v| json!(v)));
        set("Window", duration(&self.restart_window)?);
        Ok(())
    }

    fn updates(&self, spec: &mut Value) -> Result<()> {
        let groups = [
            (
                "UpdateConfig",
                duration(&self.update_delay)?,
                &self.update_failure_action,
                self.update_max_failure_ratio,
                duration(&self.update_monitor)?,
                &self.update_order,
                self.update_parallelism,
            ),
            (
                "RollbackConfig",
                duration(&self.rollback_delay)?,
                &self.rollback_failure_action,
                self.rollback_max_failure_ratio,
                duration(&self.rollback_monitor)?,
                &self.rollback_order,
                self.rollback_parallelism,
            ),
        ];
        for (group, delay, action, ratio, monitor, order, parallelism) in groups {
            let fields = [
                ("Delay", delay),
                ("FailureAction", action.as_ref().map(|v| json!(v))),
                ("MaxFailureRatio", ratio.map(|v| json!(v))),
                ("Monitor", monitor),
                ("Order", order.as_ref().map(|v| json!(v))),
                ("Parallelism", parallelism.map(|v| json!(v))),
            ];
            let given: Vec<_> = fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
            if !given.is_empty() && !spec[group].is_object() {
                // What is not given keeps the meaning that it has where the whole group is absent: one at a time.
                spec.set(&format!("{group}.Parallelism"), json!(1));
            }
            for (name, value) in given {
                spec.set(&format!("{group}.{name}"), value);
            }
        }
        Ok(())
    }
}

fn duration(text: &Option<String>) -> Result<Option<Value>> {
    text.as_deref().map(|t| parse::duration(t).map(|ns| json!(ns))).transpose()
}
