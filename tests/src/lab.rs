//! A real Kubernetes control plane: etcd, API server and controllers as processes in a network
//! namespace and a cgroup of a sandbox, which ends them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::net::{Netns, Place, Sandbox, eventually};
use crate::topology::addresses::{self, FAMILIES};
use crate::topology::{Node, Pod};

/// How long a process may take to end, with all processors busy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Controllers that would take pods and nodes without a kubelet for dead.
const CONTROLLERS: &str =
    "--controllers=*,-node-lifecycle-controller,-pod-garbage-collector-controller";
/// How much of a log is shown after a failure.
const LOG_LINES: usize = 20;

/// A running control plane, reachable at `https://ADDRESS:6443` in its namespace.
#[derive(Debug)]
pub struct Lab {
    place: Place,
    bin: PathBuf,
    state: PathBuf,
    address: String,
}

impl Lab {
    /// Starts a control plane in `netns` that listens on `address`, which an interface there has.
    /// One namespace holds one control plane.
    ///
    /// Fails without `SHUNT_LAB_BIN`, the folder of the built `hyperkube`: `cargo xtask test`
    /// builds it and sets the variable.
    pub fn start(sandbox: &Sandbox, netns: &Netns, address: &str) -> Result<Self> {
        let bin = std::env::var_os("SHUNT_LAB_BIN").map(PathBuf::from);
        let bin = bin.context("SHUNT_LAB_BIN is not set: run `cargo xtask test`")?;
        let place = Place {
            netns: netns.clone(),
            cgroup: sandbox.cgroup("lab")?,
        };
        let state = sandbox.dir().join("lab");
        let lab = Self {
            place,
            bin,
            state,
            address: address.to_owned(),
        };
        lab.up()?;
        Ok(lab)
    }

    /// Starts what does not run.
    pub fn up(&self) -> Result<()> {
        self.script("up")
    }

    /// Ends the API server alone, and waits until its address is free; [`Self::up`] starts it
    /// again.
    pub fn stop_server(&self) -> Result<()> {
        use nix::sys::signal::{Signal, kill};
        let pid = fs::read_to_string(self.state.join("kube-apiserver.pid"))?;
        let pid = pid.trim().parse()?;
        kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).context("ending the API server")?;
        eventually(PATIENCE, || {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            let has_ended = status.map_or(true, |text| text.contains("State:\tZ"));
            ensure!(has_ended, "the API server still runs");
            Ok(())
        })
    }

    /// The administrator's kubeconfig, usable inside the namespace and wherever `address` is
    /// reached.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// A kubeconfig with the rights of a service account, which exists.
    pub fn kubeconfig_of(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["-n", namespace, "create", "token", account])?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": self.url(), "certificate-authority": self.state.join("ca.crt"),
            }}],
            "users": [{"name": account, "user": {"token": token.trim()}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": account}}],
            "current-context": "lab",
        });
        let path = self.state.join(format!("{account}.kubeconfig"));
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    /// What a pod of a service account gets mounted.
    pub fn pod_credentials(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["-n", namespace, "create", "token", account])?;
        let dir = self.state.join(format!("{account}.mount"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("token"), token.trim())?;
        fs::write(dir.join("namespace"), namespace)?;
        fs::copy(self.state.join("ca.crt"), dir.join("ca.crt"))?;
        Ok(dir)
    }

    /// The address that the API server listens on, at port 6443.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where the API server listens.
    pub fn url(&self) -> String {
        format!("https://{}:6443", self.address)
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.place.netns
    }

    /// Runs kubectl as administrator.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.kubectl_with_input(words, "")
    }

    /// Applies manifests.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.kubectl_with_input(&["apply", "-f", "-"], manifests)
            .map(drop)
    }

    /// Applies one object and returns it as the API server has it then.
    pub fn put(&self, object: &Value) -> Result<Value> {
        let words = ["apply", "-o", "json", "-f", "-"];
        let text = self.kubectl_with_input(&words, &object.to_string())?;
        serde_json::from_str(&text).with_context(|| format!("reading {text}"))
    }

    /// Merges `patch` into an object and returns it as the API server has it then.
    pub fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<Value> {
        let patch = patch.to_string();
        let words = [
            "patch",
            kind,
            name,
            "--type=merge",
            "-o",
            "json",
            "-p",
            &patch,
        ];
        let text = self.kubectl(&words)?;
        serde_json::from_str(&text).with_context(|| format!("reading {text}"))
    }

    /// Deletes what the words name, without grace.
    pub fn delete(&self, words: &[&str]) -> Result<()> {
        self.kubectl(
            &[
                &["delete", "--grace-period=0", "--force", "--wait=false"],
                words,
            ]
            .concat(),
        )
        .map(drop)
    }

    /// Adds a Node object, to which the controllers give pod networks.
    pub fn add_node(&self, name: &str, addresses: &[&str]) -> Result<()> {
        self.add_node_with(name, addresses, &json!({}))
    }

    /// Adds the Node object of a node of a cluster, with its own pod networks.
    pub fn add_cluster_node(&self, node: &Node) -> Result<()> {
        let own = FAMILIES.map(|family| node.addresses.of(family).to_string());
        let pods = addresses::pod(node.number, 0);
        let networks = [format!("{}/24", pods.v4), format!("{}/64", pods.v6)];
        let spec = json!({"podCIDR": networks[0], "podCIDRs": networks});
        self.add_node_with(&node.name, &own.each_ref().map(String::as_str), &spec)
    }

    /// Adds the Pod object of a pod of a cluster, as [`Self::add_pod`] does.
    pub fn add_cluster_pod(&self, pod: &Pod, app: &str) -> Result<()> {
        let own = FAMILIES.map(|family| pod.addresses.of(family).to_string());
        self.add_pod(
            &pod.name,
            &pod.node,
            app,
            &own.each_ref().map(String::as_str),
        )
    }

    fn add_node_with(&self, name: &str, addresses: &[&str], spec: &Value) -> Result<()> {
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec,
            })
            .to_string(),
        )?;
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        self.patch_status("node", name, &json!({"addresses": addresses}))
    }

    /// Adds a running, ready pod in the namespace `default`, as if a kubelet ran it.
    pub fn add_pod(&self, name: &str, node: &str, app: &str, addresses: &[&str]) -> Result<()> {
        self.apply(
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": app}},
                "spec": {
                    "nodeName": node, "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": "none"}],
                },
            })
            .to_string(),
        )?;
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"ip": address}))
            .collect();
        self.patch_status(
            "pod",
            name,
            &json!({
                "phase": "Running", "podIPs": addresses, "podIP": addresses[0]["ip"],
                "conditions": [{"type": "Ready", "status": "True"}],
            }),
        )
    }

    /// Sets the condition Ready of a pod to `True` or `False`.
    pub fn set_ready(&self, pod: &str, status: &str) -> Result<()> {
        let conditions = json!({"conditions": [{"type": "Ready", "status": status}]});
        self.patch_status("pod", pod, &conditions)
    }

    /// Merges `status` into an object's status.
    pub fn patch_status(&self, kind: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        let words = [
            "patch",
            kind,
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ];
        self.kubectl(&words).map(drop)
    }

    fn kubectl_with_input(&self, words: &[&str], input: &str) -> Result<String> {
        let hyperkube = self.bin.join("hyperkube").display().to_string();
        let kubeconfig = self.kubeconfig().display().to_string();
        let own = [hyperkube.as_str(), "kubectl", "--kubeconfig", &kubeconfig];
        self.place
            .netns
            .run_with_input(&[&own, words].concat(), input)
    }

    fn script(&self, verb: &str) -> Result<()> {
        fs::create_dir_all(&self.state)?;
        let log = self.state.join("cluster.log");
        let output = fs::File::create(&log)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kube-lab/cluster");
        let mut command = Command::new("bash");
        command.arg(script).arg(verb).env("LAB_NETNS", "");
        command
            .env("LAB_BIN", &self.bin)
            .env("LAB_STATE", &self.state);
        command
            .env("LAB_ADDR", &self.address)
            .env("LAB_PARTS", "kube-controller-manager");
        command.env("LAB_KCM_ARGS", CONTROLLERS);
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let status = self.place.spawn(&mut command)?.wait()?;
        ensure!(
            status.success(),
            "cluster {verb}: {status}\n{}",
            self.logs()
        );
        Ok(())
    }

    /// The ends of the logs.
    fn logs(&self) -> String {
        let mut text = String::new();
        for name in [
            "cluster",
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
        ] {
            let log = fs::read_to_string(self.state.join(format!("{name}.log")));
            let log = log.unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            text += &format!("== {name}\n{}\n", tail.join("\n"));
        }
        text
    }
}
