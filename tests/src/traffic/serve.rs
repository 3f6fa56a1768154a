//! The probe's side of the conversation: what the hidden helper process does.

use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::held::Connections;
use super::plan::{Request, Response};
use super::report::error_name;
use super::{client, server, stream};

/// Reads requests from standard input and answers on standard output, until the input ends.
pub fn serve() -> io::Result<()> {
    let mut connections = Connections::default();
    let finish = Arc::new(AtomicBool::new(false));
    let mut detached = false;
    for line in io::stdin().lock().lines() {
        match serde_json::from_str(&line?)? {
            Request::Finish => finish.store(true, Ordering::Release),
            Request::Detach => {
                detached = true;
                respond(&Response::Ready)?;
            }
            Request::Connect(plan) => {
                finish.store(false, Ordering::Release);
                let finish = Arc::clone(&finish);
                // On a thread, so that `Finish` is heard.
                std::thread::spawn(move || {
                    // A parent that is gone hears nothing.
                    let under_way = || drop(respond(&Response::Ready));
                    respond(&Response::Report(client::connect(
                        &plan, &finish, under_way,
                    )))
                });
            }
            other => respond(&obey(&other, &mut connections))?,
        }
    }
    if !detached {
        return Ok(());
    }
    loop {
        std::thread::park();
    }
}

fn obey(request: &Request, connections: &mut Connections) -> Response {
    let result = match request {
        Request::Serve(plan) => server::start(plan).map(|()| Response::Ready),
        Request::Stream(plan) => stream::run(plan).map(Response::Stream),
        Request::Open(held) => connections
            .open(held)
            .map(|(number, answer)| Response::Opened(number, answer)),
        Request::Prepare(held) => connections.prepare(held).map(Response::Prepared),
        Request::Ask {
            connection,
            payload,
        } => connections.ask(*connection, *payload).map(Response::Answer),
        Request::Connect(_) | Request::Finish | Request::Detach => Ok(Response::Ready),
    };
    result.unwrap_or_else(|error| Response::Failed(error_name(&error)))
}

fn respond(response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}
