//! How each watch stands with its API server, for whoever asks the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::objects::Kind;

/// The last that is known of each watch; a cheap handle.
#[derive(Clone, Debug, Default)]
pub struct Contacts(Arc<Mutex<BTreeMap<Kind, Contact>>>);

/// How one watch stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contact {
    /// The server that was asked last.
    pub server: String,
    /// Why it failed; `None`: it is watched.
    pub error: Option<String>,
    /// Since when it is so.
    pub since: Instant,
}

impl Contacts {
    /// A watch goes on, or has begun.
    pub(super) fn reached(&self, kind: Kind, server: &str) {
        self.note(kind, server, None);
    }

    /// A watch failed.
    pub(super) fn failed(&self, kind: Kind, server: &str, error: &str) {
        self.note(kind, server, Some(error));
    }

    fn note(&self, kind: Kind, server: &str, error: Option<&str>) {
        let mut contacts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = contacts.get(&kind);
        // A watch that begins anew at the same server was there all the time.
        let is_same = known.is_some_and(|known| {
            known.error.is_some() == error.is_some() && (error.is_some() || known.server == server)
        });
        let since = known.filter(|_| is_same).map(|known| known.since);
        let contact = Contact {
            server: server.to_owned(),
            error: error.map(str::to_owned),
            since: since.unwrap_or_else(Instant::now),
        };
        contacts.insert(kind, contact);
    }

    /// All of them, by kind; none for manifests, and none before the first answer or failure.
    pub fn all(&self) -> BTreeMap<Kind, Contact> {
        let contacts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        contacts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::{Contacts, Kind};

    #[test]
    fn a_state_lasts_from_its_first_moment() {
        let contacts = Contacts::default();
        let of = || contacts.all()[&Kind::Service].clone();
        contacts.failed(Kind::Service, "https://a", "refused");
        let first = of();
        contacts.failed(Kind::Service, "https://b", "no answer");
        let second = of();
        assert_eq!(second.since, first.since);
        assert_eq!(second.error.as_deref(), Some("no answer"));
        contacts.reached(Kind::Service, "https://b");
        let reached = of();
        assert!(reached.since >= first.since && reached.error.is_none());
        contacts.reached(Kind::Service, "https://b");
        assert_eq!(of(), reached);
        assert_eq!(contacts.all().len(), 1);
    }
}
