//! The agent's socket: one line in, one JSON value out; a monitor gets one a line. It lies in /run,
//! and its name follows from the agent's pins, so that `shunt status --bpffs DIR` finds it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::monitors::{self, Arrivals};
use crate::datapath::pin::Pins;
use crate::logging;
use crate::monitor::Filter;

/// How long one side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest question in bytes, with the end of its line.
pub const QUESTION_MAX: usize = 1024;
/// Begins the one question that the agent's loop has no part in: the log is the process's.
const LOG_LEVEL: &str = "log-level";
/// Begins the question that is answered until the asker leaves; a [`Filter`] as JSON follows.
const MONITOR: &str = "monitor ";
/// Questions that may wait for the agent's loop.
pub const QUEUED_MAX: usize = 16;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// The agent's status.
    Status,
    /// All frontends.
    Services,
    /// Metrics in Prometheus' text format.
    Metrics,
}

impl Question {
    fn word(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Services => "services",
            Self::Metrics => "metrics",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Status, Self::Services, Self::Metrics]
            .into_iter()
            .find(|question| question.word() == word)
    }
}

/// A question that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub question: Question,
    /// Where the answer goes; the asker may have left.
    pub answer: oneshot::Sender<String>,
}

/// The socket's path.
pub fn path(pins: &Pins) -> io::Result<PathBuf> {
    Ok(Path::new("/run").join(format!("shunt-{}.sock", pins.identity()?)))
}

/// Listens at `path`, in place of a socket that a dead agent left. The caller holds the lock of
/// the pins that the path follows from, so no living agent listens there.
pub fn listen(path: &Path, sender: mpsc::Sender<Request>, arrivals: Arrivals) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    tokio::spawn(accept(listener, sender, arrivals));
    Ok(())
}

async fn accept(listener: UnixListener, sender: mpsc::Sender<Request>, arrivals: Arrivals) {
    while !sender.is_closed() {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let (sender, arrivals) = (sender.clone(), arrivals.clone());
                tokio::spawn(async move {
                    let served = tokio::time::timeout(PATIENCE, serve(&mut stream, sender)).await;
                    // The asker sees the end of the stream.
                    if let Ok(Ok(Some(filter))) = served {
                        let _ = monitors::follow(stream, filter, &arrivals).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection to the agent's socket");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Answers; returns what a monitor wants to be told of from now on.
async fn serve(
    stream: &mut UnixStream,
    sender: mpsc::Sender<Request>,
) -> io::Result<Option<Filter>> {
    let mut line = String::new();
    let (reader, mut writer) = stream.split();
    BufReader::new(reader.take(QUESTION_MAX as u64))
        .read_line(&mut line)
        .await?;
    // What is cut off may mean something else.
    let Some(line) = line.strip_suffix('\n').map(str::trim) else {
        return Ok(None);
    };
    if let Some(filter) = line.strip_prefix(MONITOR) {
        return Ok(serde_json::from_str(filter).ok());
    }
    if let Some(directives) = line.strip_prefix(LOG_LEVEL) {
        let answer = logging::answer(directives.trim());
        // Plain data: this cannot fail.
        let text = serde_json::to_string(&answer).unwrap_or_default();
        writer.write_all(text.as_bytes()).await?;
        return Ok(None);
    }
    let Some(question) = Question::from_word(line) else {
        return Ok(None);
    };
    let (answer, answered) = oneshot::channel();
    if sender.send(Request { question, answer }).await.is_ok()
        && let Ok(text) = answered.await
    {
        writer.write_all(text.as_bytes()).await?;
    }
    Ok(None)
}

/// Asks the agent that listens at `path` for all events that `filter` wants, a
/// [`Line`](crate::monitor::Line) each; `None` where none listens.
pub async fn monitor(path: &Path, filter: &Filter) -> io::Result<Option<UnixStream>> {
    // Plain data: this cannot fail.
    let question = serde_json::to_string(filter).unwrap_or_default();
    let question = format!("{MONITOR}{question}\n");
    if question.len() > QUESTION_MAX {
        return Err(io::Error::other("more is asked for than the agent reads"));
    }
    let mut stream = match UnixStream::connect(path).await {
        Err(error) if is_silent(&error) => return Ok(None),
        connected => connected?,
    };
    stream.write_all(question.as_bytes()).await?;
    Ok(Some(stream))
}

/// True for the error where nobody listens.
fn is_silent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

/// Asks the agent that listens at `path`; `None` where none does.
pub fn ask(path: &Path, question: Question) -> io::Result<Option<String>> {
    ask_line(path, question.word())
}

/// Asks for the level of the agent's log, after setting it if directives are given.
pub fn ask_log_level(path: &Path, directives: &str) -> io::Result<Option<String>> {
    ask_line(path, &format!("{LOG_LEVEL} {directives}"))
}

fn ask_line(path: &Path, line: &str) -> io::Result<Option<String>> {
    let mut stream = match BlockingStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if is_silent(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(Some(answer).filter(|answer| !answer.is_empty()))
}
