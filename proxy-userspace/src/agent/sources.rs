//! Where the objects come from, and how that stands.

use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;

use super::status::{SourceView, WatchView};
use crate::config::AgentOptions;
use crate::objects::{Kind, ObjectEvent};
use crate::pipeline::watch::contact::Contacts;
use crate::pipeline::watch::{self, Source, WatchError};

/// The source of objects, for whoever asks.
#[derive(Debug)]
pub(super) struct Sources {
    source: Source,
    contacts: Contacts,
}

impl Sources {
    /// Makes clients of the API servers, none for manifests, and starts watching.
    pub(super) async fn start(
        options: &AgentOptions,
    ) -> Result<(Self, Vec<Client>, mpsc::Receiver<ObjectEvent>), WatchError> {
        let source = options.source.clone();
        let clients = watch::clients(&source).await?;
        let contacts = Contacts::default();
        let selection = options.selection.clone();
        let objects = watch::start_noting(source.clone(), selection, contacts.clone()).await?;
        Ok((Self { source, contacts }, clients, objects))
    }

    /// What is known at this moment.
    pub(super) fn view(&self) -> SourceView {
        match &self.source {
            Source::Manifests(paths) => SourceView {
                kind: "manifests".to_owned(),
                paths: paths
                    .iter()
                    .map(|path| path.display().to_string())
                    .collect(),
                watches: Vec::new(),
            },
            Source::Api(_) => {
                let contacts = self.contacts.all();
                let watches = watch::KINDS.map(|kind| {
                    let contact = contacts.get(&kind);
                    let since = contact.map(|contact| contact.since.elapsed());
                    WatchView {
                        kind: kind_name(kind).to_owned(),
                        server: contact.map(|contact| contact.server.clone()),
                        connected: contact.is_some_and(|contact| contact.error.is_none()),
                        error: contact.and_then(|contact| contact.error.clone()),
                        since_secs: since.unwrap_or(Duration::ZERO).as_secs(),
                    }
                });
                SourceView {
                    kind: "api".to_owned(),
                    paths: Vec::new(),
                    watches: watches.to_vec(),
                }
            }
        }
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "Service",
        Kind::EndpointSlice => "EndpointSlice",
        Kind::Node => "Node",
        Kind::ServiceCidr => "ServiceCIDR",
    }
}
