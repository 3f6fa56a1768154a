//! The command `shunt explain`: what goes in, what comes out, how it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

const OBJECTS: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.11}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.1, ports: [{name: http, port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: broken, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: many}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.1.2.5], nodeName: n2}]
ports: [{name: http, port: 8080, protocol: TCP}]
"#;

/// A folder with the objects in it.
struct Given {
    folder: tempfile::TempDir,
}

impl Given {
    fn new() -> Self {
        let given = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        given.write("objects.yaml", OBJECTS);
        given
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs the command over the objects with these words, split at blanks.
    fn run(&self, words: &str) -> Output {
        let objects = self.path("objects.yaml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_shunt"));
        command.args(["explain", "--node-name", "n1", "--manifests"]);
        command.arg(objects).args(words.split_whitespace());
        command.output().unwrap()
    }

    fn json(&self, words: &str) -> Value {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The command refuses, and says so.
    fn refuses(&self, words: &str, complaint: &str) {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}: {errors}");
        assert!(errors.contains(complaint), "{words}: {errors}");
        assert!(output.stdout.is_empty(), "{words}");
    }
}

fn list(path: &Path) -> String {
    format!("--packets {}", path.display())
}

#[test]
fn answer_has_every_field() {
    let given = Given::new();
    let mut answer = given.json("-s 198.51.100.9:4711 -d 192.0.2.11:30080 -o json");
    let stages = answer.as_object_mut().unwrap().remove("stages").unwrap();
    let names = stages.as_array().unwrap().iter();
    let names: Vec<_> = names
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    let expected = [
        "parse", "origin", "filter", "frontend", "select", "nat", "verdict",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        answer,
        json!({
            "verdict": "dnat",
            "reason": "NodePort of shop/web:http: Cluster set (externalTrafficPolicy Cluster)",
            "service": "shop/web:http",
            "kind": "NodePort",
            "backends": ["10.1.2.5:8080"],
            "chosen": "10.1.2.5:8080",
            "snat": true,
            "snat_address": "192.0.2.11",
            "hairpin": false,
        })
    );
}

#[test]
fn rejected_object_is_reported_and_the_rest_answered() {
    let given = Given::new();
    let output = given.run("-s 10.1.1.7 -d 10.96.0.1:80");
    assert!(output.status.success(), "{output:?}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("objects.yaml:15: rejected: spec.ports"),
        "{errors}"
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\nverdict:    dnat\n"), "{text}");
    assert!(text.contains("\nchosen:     10.1.2.5:8080\n"), "{text}");
}

#[test]
fn packets_are_answered_in_order() {
    let given = Given::new();
    let packets = given.write(
        "packets.yaml",
        "- {src: 10.1.1.7, dst: 10.96.0.1, dport: 80, protocol: tcp}\n\
         - {src: 10.1.1.7, sport: 7, dst: 10.96.0.1, dport: 81, protocol: udp, from: pod}\n\
         - {src: 10.1.1.7, dst: 10.96.9.9, dport: 80, protocol: sctp, in_interface: eth0}\n",
    );
    let answers = given.json(&list(&packets));
    let answers = answers.as_array().unwrap().iter();
    let verdicts: Vec<_> = answers.map(|answer| answer["verdict"].clone()).collect();
    assert_eq!(verdicts, ["dnat", "reject", "none"]);
    let one = given.write("one.yaml", "[{src: 10.1.1.7, dst: 10.96.0.1, dport: 80}]");
    assert!(given.json(&list(&one)).is_array());
    let output = given.run(&format!("{} -o text", list(&one)));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("parse:"));
}

#[test]
fn configuration_of_kube_proxy_decides_and_flags_win() {
    let given = Given::new();
    let config = given.write(
        "config.yaml",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clientConnection: {kubeconfig: /nowhere}\nmode: nftables\nclusterCIDR: 10.1.0.0/16\n\
         nftables: {masqueradeAll: true}\nhostnameOverride: other\n",
    );
    let words = format!(
        "-s 10.1.1.7 -d 10.96.0.1:80 -o json --config {}",
        config.display()
    );
    assert_eq!(given.json(&words)["snat"], true);
    assert_eq!(
        given.json(&format!("{words} --masquerade-all=false"))["snat"],
        false
    );
}

#[test]
fn what_makes_no_sense_ends_with_2() {
    let given = Given::new();
    given.refuses("", "--source");
    given.refuses("-s 10.0.0.1", "--destination");
    given.refuses("-s 10.0.0.1 -d 10.0.0.2", "10.0.0.2");
    given.refuses("-s ten -d 10.0.0.2:80", "ten");
    given.refuses("-s 10.0.0.1 -d [fd00::1]:80", "two families");
    given.refuses("-s 10.0.0.1 -d 10.0.0.2:80 -p icmp", "icmp");
    given.refuses("-s 10.0.0.1 -d 10.0.0.2:80 --from space", "space");
    given.refuses("-s 10.0.0.1 -d 10.0.0.2:80 --local-address x", "x");
    given.refuses("-s 10.0.0.1 -d 10.0.0.2:80 --masquerade some", "some");
    given.refuses(
        "-s 10.0.0.1 -d 10.0.0.2:80 --detect-local-mode Magic",
        "Magic",
    );
    given.refuses(
        "-s 10.0.0.1 -d 10.0.0.2:80 --cluster-cidr ten",
        "cluster-cidr",
    );
    given.refuses(
        "-s 10.0.0.1 -d 10.0.0.2:80 --config /nowhere/at/all",
        "/nowhere/at/all",
    );
    given.refuses(
        "-s 10.0.0.1 -d 10.0.0.2:80 --manifests /nowhere/at/all",
        "/nowhere/at/all",
    );
    given.refuses("--packets /nowhere/at/all", "/nowhere/at/all");
    let wrong = given.write(
        "wrong.yaml",
        "- {src: 10.0.0.1, dst: 10.0.0.2, colour: red}",
    );
    given.refuses(&list(&wrong), "wrong.yaml");
    given.refuses(&format!("{} -s 10.0.0.1", list(&wrong)), "--packets");
}
