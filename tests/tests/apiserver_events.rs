//! Events against a real API server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_userspace::events::{Events, Note, Regarding, Severity};
use proxy_userspace::objects::ObjectName;
use proxy_userspace::pipeline::watch::{self, ApiSource, Source};
use serde_json::Value;
use tests::lab::Lab;
use tests::net::Sandbox;
use tests::rules;

/// Far longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {ports: [{port: 80}]}
";

fn notes() -> [Note; 2] {
    let starting = Note {
        regarding: Regarding::Node,
        severity: Severity::Normal,
        reason: "Starting",
        action: "StartShunt",
        text: "it starts".to_owned(),
    };
    let failed = Note {
        regarding: Regarding::Service(ObjectName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        }),
        severity: Severity::Warning,
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
        text: "the port is taken".to_owned(),
    };
    [starting, failed]
}

/// With the rights that the deployment gives, the first server being dead.
#[test]
fn events_are_written_and_described() -> Result<()> {
    rules(&["S-162", "S-143", "S-183"]);
    let sandbox = Sandbox::new()?;
    let netns = sandbox.netns("api")?;
    let lab = Lab::start(&sandbox, &netns, "127.0.0.1")?;
    lab.apply(&std::fs::read_to_string(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/shunt.yaml"
    ))?)?;
    lab.add_node("n1", &["192.0.2.11"])?;
    lab.apply(SERVICE)?;
    let source = Source::Api(ApiSource {
        kubeconfig: Some(lab.kubeconfig_of("kube-system", "shunt")?),
        servers: vec!["https://127.0.0.1:1".to_owned(), lab.url()],
        ..ApiSource::default()
    });
    netns.enter(|| publish(&lab, source))?
}

fn publish(lab: &Lab, source: Source) -> Result<()> {
    // One thread: sockets are made where the runtime's thread is.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let clients = watch::clients(&source).await?;
        let events = Events::to_servers(clients, "n1".to_owned());
        notes().into_iter().for_each(|note| events.publish(note));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            match written(lab) {
                Err(error) if tokio::time::Instant::now() >= deadline => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    })
}

fn written(lab: &Lab) -> Result<()> {
    let text = lab.kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    let find = |reason: &str| {
        let items = all["items"].as_array().context("no items")?;
        let found = items.iter().find(|item| item["reason"] == reason);
        found.cloned().with_context(|| format!("no {reason}"))
    };
    let starting = find("Starting")?;
    ensure!(starting["reportingController"] == "shunt", "{starting}");
    ensure!(starting["regarding"]["kind"] == "Node", "{starting}");
    ensure!(starting["type"] == "Normal", "{starting}");
    let failed = find("FailedToStartServiceHealthcheck")?;
    ensure!(failed["type"] == "Warning", "{failed}");
    // As people see them.
    let described = lab.kubectl(&["describe", "service", "web"])?;
    ensure!(described.contains("the port is taken"), "{described}");
    let described = lab.kubectl(&["describe", "node", "n1"])?;
    ensure!(described.contains("Starting"), "{described}");
    Ok(())
}
