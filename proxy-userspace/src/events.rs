//! Kubernetes Events about what only this node sees (S-143, S-149, S-162): written to the API
//! server where there is one, and always to the log.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, ObjectReference, Service};
use kube::api::ListParams;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;

use crate::objects::ObjectName;

/// Our name as the one who reports (S-162).
pub const CONTROLLER: &str = "shunt";
/// Events that may wait for the API server; what comes beyond is only logged.
const QUEUED_MAX: usize = 64;
/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Rounds over all servers before an Event is given up.
const ROUNDS_MAX: u32 = 5;

/// Something to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// Whom it is about.
    pub regarding: Regarding,
    /// How bad it is.
    pub severity: Severity,
    /// Machine-readable reason.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// For people.
    pub text: String,
}

/// Whom an Event is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Regarding {
    /// The own Node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Information.
    Normal,
    /// Something should be done.
    Warning,
}

/// Where Events are handed in; a cheap handle that never blocks.
#[derive(Clone, Debug)]
pub struct Events {
    queue: Option<mpsc::Sender<Note>>,
}

impl Events {
    /// Events are logged and go nowhere else.
    pub fn logged() -> Self {
        Self { queue: None }
    }

    /// Events go to the first of `clients` that takes them. Needs a tokio runtime.
    pub fn to_servers(clients: Vec<Client>, node_name: String) -> Self {
        if clients.is_empty() {
            return Self::logged();
        }
        let (events, queue) = Self::channel();
        tokio::spawn(write(queue, clients, node_name));
        events
    }

    /// Events go to the receiver.
    pub fn channel() -> (Self, mpsc::Receiver<Note>) {
        let (sender, queue) = mpsc::channel(QUEUED_MAX);
        let events = Self {
            queue: Some(sender),
        };
        (events, queue)
    }

    /// Logs the note and hands it in.
    pub fn publish(&self, note: Note) {
        let Note { reason, text, .. } = &note;
        match note.severity {
            Severity::Normal => tracing::info!(reason, text, "event"),
            Severity::Warning => tracing::warn!(reason, text, "event"),
        }
        if let Some(queue) = &self.queue
            && queue.try_send(note).is_err()
        {
            tracing::warn!("too many Events wait for the API server: this one is dropped");
        }
    }
}

async fn write(mut queue: mpsc::Receiver<Note>, clients: Vec<Client>, node_name: String) {
    let writers: Vec<Writer> = clients
        .into_iter()
        .map(|client| Writer::new(client, &node_name))
        .collect();
    while let Some(note) = queue.recv().await {
        if let Err(error) = write_one(&note, &writers).await {
            tracing::warn!(reason = note.reason, error, "Event not written");
        }
    }
}

async fn write_one(note: &Note, writers: &[Writer]) -> Result<(), String> {
    let mut error = String::new();
    for round in 0..ROUNDS_MAX {
        tokio::time::sleep(Duration::from_secs(round.into())).await;
        for writer in writers {
            match tokio::time::timeout(PATIENCE, writer.write(note)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failed)) => error = crate::error_chain(&failed),
                Err(_) => error = "no answer".to_owned(),
            }
        }
    }
    Err(error)
}

/// One API server.
struct Writer {
    client: Client,
    recorder: Recorder,
    node_name: String,
}

impl Writer {
    fn new(client: Client, node_name: &str) -> Self {
        let reporter = Reporter {
            controller: CONTROLLER.to_owned(),
            instance: Some(format!("{CONTROLLER}-{node_name}")),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            node_name: node_name.to_owned(),
        }
    }

    async fn write(&self, note: &Note) -> Result<(), kube::Error> {
        let regarding = match &note.regarding {
            // By its name, as the kubelet has it and `kubectl describe` looks for it.
            Regarding::Node => ObjectReference {
                uid: Some(self.node_name.clone()),
                ..reference::<Node>("", &self.node_name)
            },
            Regarding::Service(name) => self.service(name).await?,
        };
        let event = Event {
            type_: match note.severity {
                Severity::Normal => EventType::Normal,
                Severity::Warning => EventType::Warning,
            },
            reason: note.reason.to_owned(),
            note: Some(note.text.clone()),
            action: note.action.to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &regarding).await
    }

    /// `kubectl describe` finds Events by uid, which the trimmed objects do not keep. Listed, since
    /// an agent may list Services, but not get one.
    async fn service(&self, name: &ObjectName) -> Result<ObjectReference, kube::Error> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), &name.namespace);
        let only = ListParams::default().fields(&format!("metadata.name={}", name.name));
        let found = api.list_metadata(&only).await?.items.into_iter().next();
        Ok(ObjectReference {
            uid: found.and_then(|service| service.metadata.uid),
            ..reference::<Service>(&name.namespace, &name.name)
        })
    }
}

fn reference<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()).filter(|text| !text.is_empty()),
        ..ObjectReference::default()
    }
}
