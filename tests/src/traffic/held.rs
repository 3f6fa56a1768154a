//! Connections that stay open between requests.

use std::io;

use super::client::{self, Connection};
use super::plan::{Held, Plan};
use super::report::Answer;

/// All connections that a probe holds.
#[derive(Default)]
pub(super) struct Connections {
    open: Vec<(Connection, String)>,
}

impl Connections {
    /// Opens one and returns its number, with what the server said.
    pub(super) fn open(&mut self, held: &Held) -> io::Result<(usize, Answer)> {
        let (mut connection, greeting) = client::open(&plan(held))?;
        let answer = match greeting {
            Some(answer) => answer,
            None => client::ask(&mut connection, 0)?,
        };
        self.open.push((connection, answer.server.clone()));
        Ok((self.open.len() - 1, answer))
    }

    /// Opens one, asks nothing, and returns its number.
    pub(super) fn prepare(&mut self, held: &Held) -> io::Result<usize> {
        let (connection, greeting) = client::open(&plan(held))?;
        let server = greeting.map(|answer| answer.server).unwrap_or_default();
        self.open.push((connection, server));
        Ok(self.open.len() - 1)
    }

    /// Has `payload` bytes echoed over connection `number`.
    pub(super) fn ask(&mut self, number: usize, payload: usize) -> io::Result<Answer> {
        let missing = || io::Error::other("no such connection");
        let (connection, server) = self.open.get_mut(number).ok_or_else(missing)?;
        let mut answer = client::ask(connection, payload)?;
        if answer.server.is_empty() {
            answer.server.clone_from(server);
        }
        Ok(answer)
    }
}

fn plan(held: &Held) -> Plan {
    Plan {
        source: held.source,
        ..Plan::new(held.socket, held.to).timeout_ms(held.timeout_ms)
    }
}
