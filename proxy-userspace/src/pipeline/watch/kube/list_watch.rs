//! One kind, listed and watched for as long as anybody listens, on whichever server does best.
//!
//! A list is streamed where the server can (`sendInitialEvents`): neither side then holds more of
//! it than one object. Where it cannot, it comes in pages. A watch goes on where it stopped, on
//! another server too, so that a server that ends costs the others no lists.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, TryStreamExt as _};
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep, timeout};

use super::rounds::{End, Rounds};
use super::watched::{Watch, Watched};
use super::{Server, Told};
use crate::objects::ObjectEvent;
use crate::pipeline::watch::contact::Contacts;
use crate::pipeline::watch::{Patience, WATCH_SECS};

/// Objects of one page. The client holds a page as text and decoded: of slices with 100 endpoints
/// this is 25 MB.
const PAGE: u32 = 1000;
/// A bookmark with this annotation ends a streamed list.
const LIST_END: &str = "k8s.io/initial-events-end";

/// Which objects of a kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// Lists and watches one kind until nobody listens.
pub(super) async fn follow<T: Watch>(
    servers: Vec<Server>,
    query: Query,
    patience: Patience,
    (sender, contacts): Told,
) {
    let closed = sender.clone();
    let follower = Follower::<T> {
        candidates: servers.into_iter().map(Candidate::new).collect(),
        query,
        patience,
        sender,
        contacts,
        position: None,
        answered: None,
        is_failing: false,
    };
    tokio::select! {
        () = follower.run() => {}
        () = closed.closed() => {}
    }
}

/// A server, and what was learned about it.
struct Candidate<T> {
    url: String,
    api: Api<Watched<T>>,
    streams_lists: bool,
}

impl<T: Watch> Candidate<T> {
    fn new(server: Server) -> Self {
        Self {
            url: server.url,
            api: Api::all(server.client),
            streams_lists: true,
        }
    }
}

/// Why a session ended.
#[derive(Debug)]
enum Ended {
    /// Nobody listens.
    Unheard,
    /// Properly, by the server: it goes on where it stopped.
    Over,
    /// What happened since is forgotten by the servers: it must be listed again.
    Gone,
    /// The server cannot stream lists.
    NoStreams,
    /// Anything else.
    Failed(String),
}

impl From<kube::Error> for Ended {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 410 => Self::Gone,
            _ => Self::Failed(crate::error_chain(&error)),
        }
    }
}

type Events<T> = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Watched<T>>>> + Send>>;

struct Follower<T> {
    candidates: Vec<Candidate<T>>,
    query: Query,
    patience: Patience,
    sender: Sender<ObjectEvent>,
    contacts: Contacts,
    /// The resource version that the watch has reached; `None`: it must be listed.
    position: Option<String>,
    /// When the server of this session first did what it was asked for.
    answered: Option<Instant>,
    is_failing: bool,
}

impl<T: Watch> Follower<T> {
    /// One session after the other, on the servers and at the times that [`Rounds`] says.
    async fn run(mut self) {
        let mut rounds = Rounds::new(self.candidates.len());
        loop {
            let current = rounds.current();
            self.answered = None;
            let ended = self.session(current).await;
            let served = self.answered.map_or(Duration::ZERO, |at| at.elapsed());
            let end = match ended {
                Ended::Unheard => return,
                Ended::NoStreams => {
                    self.candidates[current].streams_lists = false;
                    continue;
                }
                Ended::Over => End::Over,
                Ended::Gone => {
                    tracing::info!(kind = T::NAME, "watch is too old: listing again");
                    self.position = None;
                    End::Gone
                }
                Ended::Failed(error) => {
                    self.note_failure(current, &error);
                    End::Failed
                }
            };
            sleep(rounds.after(end, served)).await;
        }
    }

    fn note_failure(&mut self, current: usize, error: &str) {
        let server = &self.candidates[current].url;
        self.contacts.failed(T::KIND, server, error);
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(kind = T::NAME, server, error, "watch failed");
        } else {
            tracing::debug!(kind = T::NAME, server, error, "watch failed again");
        }
    }

    fn note_success(&mut self, current: usize) {
        let server = &self.candidates[current].url;
        self.answered.get_or_insert_with(Instant::now);
        self.contacts.reached(T::KIND, server);
        if std::mem::replace(&mut self.is_failing, false) {
            tracing::info!(kind = T::NAME, server, "watch goes on");
        }
    }

    /// Uses one server until it ends the watch or fails.
    async fn session(&mut self, current: usize) -> Ended {
        let result = match (&self.position, self.candidates[current].streams_lists) {
            (None, true) => self.stream_list(current).await,
            (None, false) => self.list_pages(current).await,
            (Some(_), _) => Ok(None),
        };
        let ended = match result {
            Ok(events) => self.watch(current, events).await,
            Err(ended) => Err(ended),
        };
        match ended {
            Ok(()) => Ended::Over,
            Err(ended) => ended,
        }
    }

    /// Lists by a watch that begins with all objects; it goes on as a watch.
    async fn stream_list(&mut self, current: usize) -> Result<Option<Events<T>>, Ended> {
        let began = Instant::now();
        let refused = |error: kube::Error| match &error {
            // A server without them says that the parameter is forbidden.
            kube::Error::Api(status) if [400, 422].contains(&status.code) => Ended::NoStreams,
            _ => error.into(),
        };
        let api = &self.candidates[current].api;
        // No version: at least what is true now, as a list by quorum.
        let mut events = begin(
            api,
            &self.watch_params().initial_events(),
            "",
            self.patience,
        )
        .await?
        .map_err(refused)?;
        self.send(ObjectEvent::Restarted(T::KIND)).await?;
        loop {
            let event = timeout(self.patience.answer, events.try_next()).await;
            let Ok(event) = event else {
                // One that does not know of streamed lists has told everything, and waits.
                self.candidates[current].streams_lists = false;
                return Err(silent(self.patience.answer));
            };
            let event = event.map_err(refused)?;
            let event = event.ok_or_else(|| Ended::Failed("the list ended early".to_owned()))?;
            if let WatchEvent::Bookmark(bookmark) = &event {
                if !bookmark.metadata.annotations.contains_key(LIST_END) {
                    return Err(Ended::NoStreams);
                }
                self.listed(current, began, &bookmark.metadata.resource_version)
                    .await?;
                return Ok(Some(events));
            }
            self.pass_on(event).await?;
        }
    }

    async fn list_pages(&mut self, current: usize) -> Result<Option<Events<T>>, Ended> {
        let began = Instant::now();
        self.send(ObjectEvent::Restarted(T::KIND)).await?;
        let mut params = ListParams {
            label_selector: self.query.labels.clone(),
            field_selector: self.query.fields.clone(),
            ..ListParams::default().limit(PAGE)
        };
        loop {
            let page = self.candidates[current].api.list(&params);
            let page = timeout(self.patience.page, page).await;
            let page = page.map_err(|_| silent(self.patience.page))??;
            for object in page.items {
                self.send(object.applied()).await?;
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let version = page.metadata.resource_version.unwrap_or_default();
                self.listed(current, began, &version).await?;
                return Ok(None);
            }
        }
    }

    async fn listed(&mut self, current: usize, began: Instant, version: &str) -> Result<(), Ended> {
        tracing::debug!(kind = T::NAME, elapsed = ?began.elapsed(), version, "listed");
        self.position = Some(version.to_owned());
        self.note_success(current);
        self.send(ObjectEvent::Listed(T::KIND)).await
    }

    /// Watches from where it stands, by `events` where they have begun already.
    async fn watch(&mut self, current: usize, events: Option<Events<T>>) -> Result<(), Ended> {
        let mut events = match events {
            Some(events) => events,
            None => {
                let api = &self.candidates[current].api;
                let version = self.position.as_deref().unwrap_or_default();
                begin(api, &self.watch_params(), version, self.patience).await??
            }
        };
        self.note_success(current);
        loop {
            let event = timeout(self.patience.event, events.try_next()).await;
            match event.map_err(|_| silent(self.patience.event))?? {
                Some(event) => self.pass_on(event).await?,
                None => return Ok(()),
            }
        }
    }

    /// Passes one event on, and notes where the watch stands.
    async fn pass_on(&mut self, event: WatchEvent<Watched<T>>) -> Result<(), Ended> {
        let (version, event) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (object.version().to_owned(), Some(object.applied()))
            }
            WatchEvent::Deleted(object) => {
                let deleted = ObjectEvent::Deleted(T::KIND, object.name());
                (object.version().to_owned(), Some(deleted))
            }
            WatchEvent::Bookmark(bookmark) => (bookmark.metadata.resource_version, None),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        if let Some(event) = event {
            self.send(event).await?;
        }
        // While a list is streamed, only its end says where the watch stands.
        if let Some(position) = &mut self.position
            && !version.is_empty()
        {
            *position = version;
        }
        Ok(())
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.query.labels.clone(),
            field_selector: self.query.fields.clone(),
            ..WatchParams::default().timeout(fastrand::u32(WATCH_SECS))
        }
    }

    async fn send(&self, event: ObjectEvent) -> Result<(), Ended> {
        let sent = self.sender.send(event).await;
        sent.map_err(|_| Ended::Unheard)
    }
}

/// Begins a watch: the answer's head must come in time.
async fn begin<T: Watch>(
    api: &Api<Watched<T>>,
    params: &WatchParams,
    version: &str,
    patience: Patience,
) -> Result<kube::Result<Events<T>>, Ended> {
    let begun = timeout(patience.answer, api.watch(params, version)).await;
    let begun = begun.map_err(|_| silent(patience.answer))?;
    Ok(begun.map(|events| Box::pin(events) as Events<T>))
}

fn silent(patience: Duration) -> Ended {
    Ended::Failed(format!("no answer within {patience:?}"))
}

#[cfg(test)]
#[path = "list_watch_tests.rs"]
mod tests;
