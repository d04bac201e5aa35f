//! The `skep` program against a node in memory: what users type, what they see, what it exits with.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../daemon/tests/api_fake/mod.rs"]
mod api_fake;

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use skep_daemon::api::{follow_cluster, serve};
use tokio::net::UnixListener;

/// A command that waits for a service waits five seconds for it to stay up.
const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    dir: tempfile::TempDir,
    host: String,
    fake: Arc<api_fake::Fake>,
}

struct Seen {
    code: i32,
    out: String,
    err: String,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (api, fake) = api_fake::api();
        tokio::spawn(follow_cluster(api.clone()));
        tokio::spawn(serve(api, listener));
        Self { host: format!("unix://{}", path.display()), dir, fake }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path: PathBuf = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    async fn skep(&self, line: &str) -> Seen {
        self.args(&line.split_whitespace().collect::<Vec<_>>()).await
    }

    async fn args(&self, args: &[&str]) -> Seen {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_skep"));
        command.args(args).env_remove("SKEP_HOST").env("DOCKER_HOST", &self.host);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE, command.output()).await;
        let Output { status, stdout, stderr } = output.unwrap_or_else(|_| panic!("{args:?} does not end")).unwrap();
        Seen {
            code: status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&stdout).into_owned(),
            err: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    async fn ok(&self, line: &str) -> String {
        let seen = self.skep(line).await;
        assert_eq!(seen.code, 0, "{line}: {}{}", seen.out, seen.err);
        seen.out
    }

    async fn fails(&self, line: &str, part: &str) {
        let seen = self.skep(line).await;
        assert_eq!(seen.code, 1, "{line}: {}{}", seen.out, seen.err);
        assert!(seen.err.starts_with("Error: ") && seen.err.contains(part), "{line}: {}", seen.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swarm_and_a_service_from_the_first_command_on() {
    let node = Node::start();
    node.fails("node ls", "This node is not a swarm manager. Use \"skep swarm init\" or \"skep swarm join\"").await;
    assert!(node.ok("swarm init").await.contains("skep swarm join --token SWMTKN-1-a-w 10.9.8.7:2377"));
    node.fails("swarm init", "already part of a swarm").await;
    let nodes = node.ok("node ls").await;
    assert!(
        nodes.starts_with("ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS"),
        "{nodes}"
    );
    assert!(nodes.contains(" *   fake       Ready     Active         Leader"), "{nodes}");

    let created = node.ok("service create --name web --replicas 3 -p 8080:80 busybox sleep 100").await;
    for part in ["overall progress: 3 out of 3 tasks\n", "verify: Service converged\n"] {
        assert!(created.contains(part), "{created}");
    }
    let listed = node.ok("service ls").await;
    assert!(listed.contains("web       replicated   3/3        busybox:latest   *:8080->80/tcp"), "{listed}");
    assert_eq!(node.ok("service ls -q").await.trim().len(), 25);
    assert_eq!(node.args(&["service", "ls", "--format", "{{.Name}} {{.Mode}}"]).await.out, "web replicated\n");
    assert_eq!(node.ok("service ps web").await.matches("Running").count(), 6);
    assert!(node.ok("service inspect --pretty web").await.contains(" Replicas:\t3"));
    assert_eq!(node.ok("service scale -d web=5").await, "web scaled to 5\n");
    node.fails("service scale web=x", "invalid replicas value").await;
    node.fails("service scale nope=1", "nope").await;

    // The cluster writes to a service too: what was asked for is asked for again, as long as that may help.
    for change in ["service scale -d web=4", "service update -d --label-add again=1 web", "service scale -d web=5"] {
        node.fake.others_change(3);
        node.ok(change).await;
    }
    node.fake.others_change(u32::MAX);
    node.fails("service scale -d web=6", "update out of sequence").await;
    node.fake.others_change(0);

    node.ok("service update -d --env-add A=1 --env-add B=2 --label-add x=y --limit-memory 64M web").await;
    node.ok("service update -d --env-rm A --publish-rm 80 web").await;
    let spec = node.args(&["service", "inspect", "web", "--format", "{{json .Spec}}"]).await.out;
    assert!(spec.contains(r#""Env":["B=2"]"#) && spec.contains("67108864") && !spec.contains("8080"), "{spec}");
    node.ok("service rollback -d web").await;
    assert!(node.ok("service inspect web").await.contains("A=1"));
    node.fails("service create -d --name web busybox", "name conflicts").await;

    node.ok("service create -d --name api --replicas 2 busybox").await;
    let listed = node.args(&["service", "ps", "--format", "{{.Name}}", "web", "api"]).await.out;
    let services: Vec<&str> = listed.lines().filter_map(|name| name.split('.').next()).collect();
    assert!(services.is_sorted() && services.first() == Some(&"api") && services.last() == Some(&"web"), "{listed}");
    node.ok("service rm api").await;

    let logs = node.ok("service logs --no-task-ids web").await;
    assert!(logs.contains("web.1@fake    | hello\n"), "{logs}");
    assert_eq!(node.skep("service rm web nope").await.out, "web\n");
    node.fails("service rm web", "service web not found").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_verbs() {
    let node = Node::start();
    node.ok("swarm init").await;
    assert!(node.ok("swarm join-token -q manager").await.starts_with("SWMTKN-1-"));
    assert_ne!(node.ok("swarm join-token -q worker").await, node.ok("swarm join-token --rotate -q worker").await);
    node.ok("network create --subnet 10.9.0.0/24 back").await;
    assert!(node.ok("network ls").await.contains("back            overlay   swarm"));
    node.ok("network rm back").await;
    node.fails("network rm back", "network back not found").await;
    node.fails("network create -d bridge x", "Driver").await;
    node.ok("network create --ingress mesh").await;
    node.fails("network rm mesh", "use --force").await;
    assert!(node.ok("network ls").await.contains("mesh"), "it was removed unasked");
    assert_eq!(node.ok("network rm -f mesh nowhere").await, "mesh\n");
    for verb in ["service ls", "task ls", "network ls", "node ls", "image ls", "ps", "secret ls"] {
        let words: Vec<&str> = verb.split(' ').chain(["--format", "{{.Bogus}}"]).collect();
        let seen = node.args(&words).await;
        assert!(seen.code == 1 && seen.err.contains("no field \"Bogus\"") && seen.err.contains("ID"), "{}", seen.err);
    }
    let seen = node.args(&["info", "--format", "{{.Bogus}}"]).await;
    assert!(seen.code == 1 && seen.err.contains("there are") && seen.err.contains("Swarm"), "{}", seen.err);
    let content = node.file("content", "secret words");
    for kind in ["secret", "config"] {
        node.ok(&format!("{kind} create thing {content}")).await;
        assert!(node.ok(&format!("{kind} ls")).await.contains("thing"));
    }
    node.ok("service create -d --name s --secret thing --config source=thing,target=/etc/x busybox").await;
    assert!(node.ok("service inspect s").await.contains("/etc/x"));
    node.fails("service create -d --secret absent busybox", "absent").await;
    node.ok("node update --label-add a=b --availability drain fake").await;
    node.fails("node update --label-rm nolabel fake", "key nolabel doesn't exist in node's labels").await;
    let shown = node.ok("node inspect --pretty self").await;
    for part in
        [" - a=b", "Plugins:\n Log:\t\tjson-file\n Network:\t\toverlay, bridge\n", "TLS Info:\n TrustRoot:\nPEM\n"]
    {
        assert!(shown.contains(part), "{shown}");
    }
    node.ok("node update --label-rm a fake").await;
    for verb in [
        "service rm",
        "service inspect",
        "task inspect",
        "task logs",
        "network rm",
        "secret rm",
        "image rm",
        "image inspect",
        "node rm",
    ] {
        let words: Vec<&str> = verb.split(' ').chain([""]).collect();
        let seen = node.args(&words).await;
        assert!(seen.code == 1 && seen.err.contains("is empty"), "{verb} '': {}", seen.err);
    }
    assert!(node.ok("info").await.contains("Is Manager: true"));
    assert!(node.ok("version").await.contains("API version"));
    let archive = node.file("a.tar", "archive");
    assert!(node.ok(&format!("image load -i {archive}")).await.starts_with("Loaded image: "));
    assert!(node.ok("image ls").await.contains("1.23MB"));
    let saved = node.file("saved", "");
    node.ok(&format!("image save -o {saved} loaded")).await;
    assert_eq!(std::fs::read_to_string(saved).unwrap(), "loaded");
    node.fake.add_container("web.1.x");
    assert!(node.ok("ps").await.contains("Up About a minute"));
    let logs = node.skep("logs web.1.x").await;
    assert_eq!((logs.out.as_str(), logs.err.as_str()), ("hello\n", "trouble\n"));
    let heard = async {
        for number in 0.. {
            // The follower may not listen yet when the first one is made.
            node.ok(&format!("network create e{number}")).await;
            if node.ok("events --since 10m --until 0s --filter type=network").await.contains("network create") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, heard).await.expect("no event is remembered");
    node.fails("swarm leave", "participating as a manager").await;
    assert_eq!(node.ok("swarm leave --force").await, "Node left the swarm.\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_the_whole_swarm() {
    let node = Node::start();
    node.fails("task ls", "This node is not a swarm manager").await;
    node.ok("swarm init").await;
    node.ok("service create -d --name api busybox").await;
    node.ok("service create --name web --replicas 2 busybox").await;

    let (all, web) = (node.ok("task ls").await, node.ok("service ps web").await);
    assert!(web.starts_with("ID             NAME"), "{web}");
    assert_eq!(all.lines().next(), web.lines().next(), "the columns are those of service ps");
    assert_eq!(node.args(&["task", "list", "--format", "{{.Name}} {{.Node}}"]).await.out, {
        "api.1 fake\nweb.1 fake\nweb.2 fake\n"
    });
    let ids = node.ok("task ls -q --filter service=web").await;
    assert_eq!(ids, node.ok("service ps -q web").await);
    let ids: Vec<&str> = ids.lines().collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| id.len() == 25), "{ids:?}");
    assert!(!all.contains(ids[0]) && all.contains(&ids[0][..12]), "{all}");
    assert!(node.ok("task ls --no-trunc").await.contains(ids[0]));
    let unresolved = node.args(&["task", "ls", "--no-resolve", "--format", "{{.Node}}"]).await.out;
    assert_eq!(unresolved.lines().map(str::len).collect::<Vec<_>>(), [25, 25, 25], "{unresolved}");
    assert_eq!(node.ok(&format!("task ls -q --filter id={}", ids[1])).await.trim(), ids[1]);
    assert_eq!(node.ok("task ls -q --filter name=api. --filter node=self").await.lines().count(), 1);
    assert_eq!(node.ok("task ls -q --filter desired-state=shutdown").await, "");
    node.fails("task ls --filter bogus=1", "bogus").await;

    let whole = node.ok(&format!("task inspect {}", ids[0])).await;
    assert!(whole.starts_with("[\n    {\n") && whole.contains(&format!("\"ID\": \"{}\"", ids[0])), "{whole}");
    let both = node.args(&["task", "inspect", "--format", "{{.ID}} {{.Slot}}", &ids[0][..12], ids[1]]).await;
    assert_eq!(both.out, format!("{} 1\n{} 2\n", ids[0], ids[1]), "{}", both.err);
    let some = node.args(&["task", "inspect", "-f", "{{.Slot}}", "nope", ids[1]]).await;
    assert_eq!((some.code, some.out.as_str(), some.err.as_str()), (1, "2\n", "Error: no such task: nope\n"));
    node.fails("task inspect web", "no such task: web").await;

    let short = &ids[1][..12];
    let logs = node.skep(&format!("task logs {short}")).await;
    let origin = format!("web.2.{short}@fake    | ");
    assert_eq!((logs.code, logs.out, logs.err), (0, format!("{origin}hello\n"), format!("{origin}trouble\n")));
    for (flags, line) in [
        ("--raw", "hello\n".to_owned()),
        ("--no-task-ids --tail 5", "web.2@fake    | hello\n".to_owned()),
        ("--no-trunc -t", format!("2023-11-14T22:13:20.000000000Z web.2.{}@fake    | hello\n", ids[1])),
    ] {
        assert_eq!(node.ok(&format!("task logs {flags} {short}")).await, line, "{flags}");
        assert_eq!(node.ok(&format!("service logs {flags} {short}")).await, line, "{flags}");
    }
    node.fails("task logs web", "no such task: web").await;
    node.fails("service logs nope", "no such task or service: nope").await;

    // More tasks than an id's first character has values.
    node.ok("service scale -d web=40").await;
    let ids = node.ok("task ls -q").await;
    let first = |id: &str| id[..1].to_owned();
    let shared = ids.lines().find(|id| ids.lines().filter(|other| first(other) == first(id)).count() > 1);
    let prefix = first(shared.expect("two ids with one first character"));
    node.fails(&format!("task inspect {prefix}"), &format!("task {prefix} is ambiguous")).await;
    node.fails(&format!("task logs {prefix}"), &format!("task {prefix} is ambiguous")).await;
    assert!(node.ok("completion bash").await.contains("skep__subcmd__task__subcmd__logs"), "no completions");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_is_loaded_if_it_holds_a_layout() {
    let node = Node::start();
    let path = node.dir.path().join("layout");
    std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    let dir = path.display().to_string();
    // Nobody is asked, so that nothing can have been sent.
    let nowhere = "-H unix:///nowhere/at/all.sock";
    node.fails(&format!("{nowhere} image load -i {dir}"), "layout holds no image").await;
    for name in ["oci-layout", "index.json", "blobs/sha256/a"] {
        std::fs::write(path.join(name), "{}").unwrap();
    }
    node.fails(&format!("{nowhere} image load -i {dir}"), "Is the skep daemon running?").await;
    assert_eq!(node.ok("image ls -q").await, "");
    assert_eq!(node.ok(&format!("image load --input {dir}")).await, "Loaded image: loaded:latest\n");
    assert_eq!(node.ok("image ls -q").await.lines().count(), 1);
    std::os::unix::fs::symlink("a", path.join("blobs/sha256/b")).unwrap();
    let refused = "blobs/sha256/b is neither a regular file nor a directory";
    node.fails(&format!("{nowhere} image load -i {dir}"), refused).await;
    node.fails(&format!("image load -i {dir}/absent"), "absent can't be read").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_makes_no_sense_is_125_and_no_daemon_is_1() {
    let node = Node::start();
    for line in ["frobnicate", "service create", "service create --bogus x", "task inspect", "task logs a b", "service"]
    {
        let seen = node.skep(line).await;
        assert!(matches!(seen.code, 125) || line == "service", "{line}: {}", seen.code);
    }
    assert_eq!(node.skep("--help").await.code, 0);
    let help = node.ok("service create --help").await;
    for example in [
        "8080:80,",
        "published=8080,target=80,protocol=tcp,mode=host",
        "type=bind,source=/srv,target=/data,readonly",
        "source=name,target=file,uid=0,gid=0,mode=0400",
        "node.labels.zone==a",
        "spread=node.labels.zone",
        "nofile=1024:2048",
    ] {
        assert!(help.contains(example), "no {example} in {help}");
    }
    assert!(node.ok("service ls --help").await.contains("name=web"));
    for line in [
        "-H unix:///nowhere/at/all.sock info",
        "-H ssh://x info",
        "service create -d -p 0:80 busybox",
        "service create -d --limit-memory much busybox",
        "service ls --filter x",
    ] {
        node.fails(line, "").await;
    }
    let down = node.skep("-H unix:///nowhere/at/all.sock info").await;
    assert!(down.err.contains("Is the skep daemon running?"), "{}", down.err);
}
