//! Sessions with servers that fail in their own ways, in virtual time.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::mpsc;
use tower::service_fn;

use super::*;
use crate::objects::Service;

/// What a server does with each watch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Serves {
    /// Lists nothing, and breaks off after so long.
    For(Duration),
    /// Refuses.
    Nothing,
    /// Never answers.
    Silence,
}

/// When each watch was asked for, by server; the clock is the test's.
type Asked = Arc<Mutex<Vec<(usize, Instant)>>>;

fn server(number: usize, serves: Serves, asked: &Asked) -> Server {
    let asked = Arc::clone(asked);
    let service = service_fn(move |_: Request<Body>| {
        let mut asked = asked.lock().expect("nobody panicked");
        asked.push((number, Instant::now()));
        async move { Ok::<_, Infallible>(answer(serves).await) }
    });
    Server {
        url: format!("https://{number}"),
        client: Client::new(service, "default"),
    }
}

type Answer = Response<StreamBody<BoxStream<'static, io::Result<Frame<Bytes>>>>>;

async fn answer(serves: Serves) -> Answer {
    let (status, frames) = match serves {
        Serves::For(pause) => (StatusCode::OK, list_cut_after(pause)),
        Serves::Nothing => (StatusCode::INTERNAL_SERVER_ERROR, stream::empty().boxed()),
        Serves::Silence => futures::future::pending().await,
    };
    let answer = Response::builder().status(status);
    let answer = answer.body(StreamBody::new(frames));
    answer.expect("a valid answer")
}

/// The end of a list that was streamed, and an error after so long.
fn list_cut_after(pause: Duration) -> BoxStream<'static, io::Result<Frame<Bytes>>> {
    let end = json!({
        "type": "BOOKMARK",
        "object": {
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"resourceVersion": "7", "annotations": {LIST_END: "true"}},
        },
    });
    let end = stream::iter([Ok(Frame::data(Bytes::from(format!("{end}\n"))))]);
    let cut = stream::once(async move {
        sleep(pause).await;
        Err(io::Error::other("cut"))
    });
    end.chain(cut).boxed()
}

/// What these servers were asked in an hour.
async fn watched(servers: &[Serves]) -> Vec<(usize, Duration)> {
    let asked = Asked::default();
    let servers = servers.iter().enumerate();
    let servers = servers.map(|(number, serves)| server(number, *serves, &asked));
    let (sender, mut events) = mpsc::channel(16);
    let began = Instant::now();
    let watch = follow::<Service>(
        servers.collect(),
        Query::default(),
        Patience::default(),
        (sender, Contacts::default()),
    );
    let taken = async { while events.recv().await.is_some() {} };
    let hour = Duration::from_secs(3600);
    let ended = timeout(hour, async { tokio::join!(watch, taken) }).await;
    ended.expect_err("somebody listens all the time");
    let asked = asked.lock().expect("nobody panicked");
    let since = |(number, at): &(usize, Instant)| (*number, at.duration_since(began));
    asked.iter().map(since).collect()
}

/// The times between two tries.
fn apart(asked: &[(usize, Duration)]) -> Vec<Duration> {
    let pairs = asked.windows(2);
    pairs.map(|pair| pair[1].1 - pair[0].1).collect()
}

#[tokio::test(start_paused = true)]
async fn watches_that_break_every_few_seconds_are_back_within_a_second() {
    let served = Duration::from_secs(5);
    let asked = watched(&[Serves::For(served)]).await;
    let apart = apart(&asked);
    let longest = apart.iter().max().expect("several tries");
    assert!(
        *longest <= served + Duration::from_millis(1010),
        "{longest:?}"
    );
    assert!(apart.len() > 3600 / 7, "{} tries", asked.len());
}

#[tokio::test(start_paused = true)]
async fn servers_that_refuse_are_asked_less_and_less() {
    let asked = watched(&[Serves::Nothing, Serves::Nothing]).await;
    let rounds: Vec<Duration> = apart(&asked).into_iter().skip(1).step_by(2).collect();
    assert!(rounds[0] <= Duration::from_millis(1010), "{rounds:?}");
    let later = &rounds[6..];
    let is_late = |wait: &Duration| (15.0..=30.1).contains(&wait.as_secs_f64());
    assert!(later.iter().all(is_late), "{later:?}");
    assert!(later.len() > 3600 / 35, "{} rounds", rounds.len());
}

#[tokio::test(start_paused = true)]
async fn servers_that_are_silent_are_asked_less_and_less() {
    let asked = watched(&[Serves::Silence]).await;
    let waits = apart(&asked);
    let patience = Patience::default().answer;
    let last = waits.last().expect("several tries");
    assert!(
        waits[0] <= patience + Duration::from_millis(1010),
        "{waits:?}"
    );
    assert!(*last >= patience + Duration::from_secs(15), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn server_that_refuses_is_left_for_one_that_serves() {
    let served = Duration::from_secs(5);
    let asked = watched(&[Serves::Nothing, Serves::For(served)]).await;
    // The one that serves breaks off, the other refuses at once, and then time passes.
    let of_second = asked.iter().filter(|(number, _)| *number == 1);
    let of_second: Vec<_> = of_second.copied().collect();
    let longest = apart(&of_second).into_iter().max().expect("several tries");
    assert!(
        longest <= served + Duration::from_millis(1010),
        "{longest:?}"
    );
}
