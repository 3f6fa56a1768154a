//! The agent as a process: it gets ready, answers, outlives its end in the kernel, is cleaned up.
//! Needs root.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{Place, rules, run};

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  ports: [{name: http, port: 80, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.5]}]
ports: [{name: http, port: 8080, protocol: TCP}]
"#;

const SHUNT: &str = env!("CARGO_BIN_EXE_shunt");

/// How long an agent may take to be ready, with all processors busy.
const READY: Duration = Duration::from_secs(60);

fn shunt(verb: &[&str], place: &Place) -> Command {
    let mut command = Command::new(SHUNT);
    command.args(verb).arg("--bpffs").arg(place.bpffs());
    command
}

fn answer(verb: &[&str], place: &Place) -> Value {
    answer_with(0, verb, place)
}

/// Where no agent runs, which the code of `status` tells.
fn status_without_agent(place: &Place) -> Value {
    let status = answer_with(1, &["status"], place);
    assert_eq!(status["agent"], "down");
    status
}

fn answer_with(code: i32, verb: &[&str], place: &Place) -> Value {
    let output = shunt(verb, place).args(["-o", "json"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{verb:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A running agent; dropping it ends the process.
struct Agent(Child);

impl Agent {
    fn start(place: &Place, folder: &Path) -> Self {
        Self::start_by(Command::new(SHUNT), place, folder)
    }

    /// With `command` as the beginning of the command line.
    fn start_by(mut command: Command, place: &Place, folder: &Path) -> Self {
        let ready = folder.join("ready");
        let _ = fs::remove_file(&ready);
        let manifests = folder.join("manifests");
        fs::create_dir_all(&manifests).unwrap();
        fs::write(manifests.join("web.yaml"), MANIFESTS).unwrap();
        command.args(["agent", "--node-name", "n1", "--bpffs"]);
        command.arg(place.bpffs());
        command.arg("--manifests").arg(manifests);
        command.arg("--cgroup").arg(place.cgroup());
        command.arg("--ready-file").arg(&ready);
        let mut agent = Self(command.spawn().unwrap());
        let deadline = Instant::now() + READY;
        while !ready.exists() {
            assert!(Instant::now() < deadline, "the agent is not ready");
            assert!(agent.0.try_wait().unwrap().is_none(), "the agent has ended");
            std::thread::sleep(Duration::from_millis(20));
        }
        agent
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

#[test]
fn agent_serves_answers_and_leaves_the_datapath_in_place() {
    rules(&["S-178", "S-180"]);
    let place = Place::enter();
    let folder = tempfile::tempdir().unwrap();
    run("ip link add up0 type veth peer name peer0");
    run("ip address add 192.168.7.1/24 dev up0");

    let agent = Agent::start(&place, folder.path());
    let status = answer(&["status"], &place);
    assert_eq!(status["agent"], "running");
    assert_eq!(status["synced"], true);
    assert_eq!(status["frontends"], 1);
    let services = answer(&["service", "list"], &place);
    assert_eq!(services[0]["name"], "web");
    assert_eq!(services[0]["address"], "10.96.0.1");
    assert_eq!(services[0]["backends"][0]["address"], "10.1.0.5:8080");
    let refused = shunt(&["cleanup"], &place).output().unwrap();
    assert!(refusal(&refused).contains("another shunt agent uses"));

    agent.stop();
    let status = status_without_agent(&place);
    assert_eq!(status["frontends"], 1, "what is pinned serves on");

    Agent::start(&place, folder.path()).stop();
    assert_eq!(answer(&["cleanup"], &place)["removed"], true);
    assert_eq!(answer(&["cleanup"], &place)["removed"], false);
    let gone = shunt(&["status"], &place).output().unwrap();
    assert!(refusal(&gone).contains("nothing is pinned below"));
}

/// An init container with every right loads the programs; the agent runs without CAP_SYS_ADMIN.
#[test]
fn agent_needs_less_than_what_its_init_container_has() {
    rules(&["S-182"]);
    let place = Place::enter();
    let folder = tempfile::tempdir().unwrap();
    run("ip link add up0 type veth peer name peer0");
    let mut init = shunt(&["agent", "--init-only", "--node-name", "n1"], &place);
    init.arg("--manifests").arg(folder.path());
    let output = init.arg("--cgroup").arg(place.cgroup()).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(status_without_agent(&place)["frontends"], 0);

    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-sys_admin", "--inh-caps=-all", SHUNT]);
    Agent::start_by(command, &place, folder.path()).stop();
    assert_eq!(status_without_agent(&place)["frontends"], 1);
    assert_eq!(answer(&["cleanup"], &place)["removed"], true);
}

#[test]
fn agent_without_rights_says_what_it_needs() {
    let place = Place::enter();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(SHUNT).arg("agent");
    command.args(["--node-name", "n1", "--socket-lb", "off"]);
    command.arg("--manifests").arg(folder.path());
    command.arg("--bpffs").arg(place.bpffs());
    let text = refusal(&command.output().unwrap());
    assert!(text.contains("no right to use BPF"), "{text}");
    assert_eq!(
        text.lines()
            .filter(|line| line.starts_with("shunt:"))
            .count(),
        1
    );
}
