//! What a container costs: `cargo run --release -p skep-runtime --example spawn-cost [rounds]`, as root.
//!
//! Prints wall time of each step, the processor time of the machine (which should have nothing else to do), and the
//! memory of an idle supervisor. Build the supervisor first: `cargo build --release -p skep-runtime --bins`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use skep_runtime::{Config, ContainerSpec, Runtime};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let rounds: u32 = std::env::args().nth(1).map_or(Ok(50), |text| text.parse())?;
    let name = format!("skep-cost-{}", std::process::id());
    let root = std::env::temp_dir().join(&name);
    let layer = root.join("layer");
    fs::create_dir_all(layer.join("bin"))?;
    fs::copy("/usr/bin/busybox", layer.join("bin/true"))?;
    fs::copy("/usr/bin/busybox", layer.join("bin/sleep"))?;
    let config = Config {
        run_dir: Path::new("/dev/shm").join(&name),
        state_dir: root.join("state"),
        shim_exe: supervisor()?,
        cgroup_parent: name,
    };
    let runtime = Runtime::new(config.clone())?;
    let result = measure(&runtime, &config, &layer, rounds).await;
    for id in runtime.list().await? {
        runtime.remove(&id).await?;
    }
    fs::remove_dir_all(&root)?;
    fs::remove_dir_all(&config.run_dir)?;
    result
}

async fn measure(runtime: &Runtime, config: &Config, layer: &Path, rounds: u32) -> Result<()> {
    let mut out = io::stdout().lock();
    let spec = |id: String, args: &[&str]| ContainerSpec {
        id,
        layers: vec![layer.to_owned()],
        args: args.iter().map(ToString::to_string).collect(),
        ..ContainerSpec::default()
    };
    let mut steps = [Duration::ZERO; 4];
    let mut slowest = Duration::ZERO;
    let before = processor_time()?;
    for round in 0..rounds {
        let spec = spec(format!("c{round}"), &["/bin/true"]);
        let mut clock = Instant::now();
        let mut lap = |step: &mut Duration| {
            let spent = clock.elapsed();
            *step += spent;
            clock = Instant::now();
            spent
        };
        runtime.create(&spec).await?;
        let create = lap(&mut steps[0]);
        runtime.start(&spec.id).await?;
        slowest = slowest.max(create + lap(&mut steps[1]));
        runtime.wait(&spec.id).await?;
        lap(&mut steps[2]);
        runtime.remove(&spec.id).await?;
        lap(&mut steps[3]);
    }
    let spent = processor_time()?.saturating_sub(before);
    let each = |total: Duration| total.as_secs_f64() * 1000.0 / f64::from(rounds);
    writeln!(
        out,
        "create {:.2} ms, start {:.2} ms, wait {:.2} ms, remove {:.2} ms",
        each(steps[0]),
        each(steps[1]),
        each(steps[2]),
        each(steps[3])
    )?;
    writeln!(
        out,
        "create to start {:.2} ms (slowest {:.2} ms)",
        each(steps[0] + steps[1]),
        slowest.as_secs_f64() * 1000.0
    )?;
    writeln!(out, "processor time of a whole life {:.2} ms of one core", each(spent))?;

    let count = 20;
    for n in 0..count {
        let spec = spec(format!("idle{n}"), &["/bin/sleep", "1000"]);
        runtime.create(&spec).await?;
        runtime.start(&spec.id).await?;
    }
    let mut total = 0;
    for n in 0..count {
        total += proportional_kb(&config.run_dir.join(format!("idle{n}/shim.json")))?;
    }
    writeln!(out, "idle supervisor, {count} at once: {} KiB proportional", total / count)?;
    Ok(())
}

/// Of the whole machine: nobody waits for supervisors, so nobody is charged for them.
fn processor_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields: Vec<u64> =
        text.lines().next().unwrap_or_default().split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // User, nice, system; then idle and waiting; interrupts, soft interrupts. In hundredths of a second.
    let busy: u64 =
        fields.iter().enumerate().filter(|(at, _)| ![3, 4].contains(at) && *at < 7).map(|(_, ticks)| ticks).sum();
    Ok(Duration::from_millis(busy.saturating_mul(10)))
}

fn proportional_kb(file: &Path) -> Result<u64> {
    let value: serde_json::Value = serde_json::from_str(&fs::read_to_string(file)?)?;
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", value["pid"]))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Beside the directory of examples.
fn supervisor() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().and_then(Path::parent).ok_or("no target directory")?.join("skep-shim-test");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is missing: cargo build -p skep-runtime --bins", path.display()).into())
    }
}
