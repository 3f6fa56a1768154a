//! The command line.

pub mod args;
pub mod cleanup;
pub mod doctor;
pub mod explain;
pub mod flows;
pub mod form;
pub mod kube_proxy_flags;
pub mod log_level;
pub mod monitor;
pub mod query;
pub mod run;
pub mod service;
pub mod status;
pub mod table;
pub mod top;
pub mod watch;

use std::io::{self, Write as _};
use std::process::ExitCode;

use self::args::{Cli, Command, ServiceCommand};

/// A question that makes no sense: the command ends with 2, as for a wrong flag.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misuse(String);

/// Does what the command line says; the code says what was found, where that is the question.
pub fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let done = match cli.command {
        Command::Doctor(args) => return doctor::show(&args),
        Command::Status(args) => return status::show(&args),
        Command::Agent(args) => run::agent(*args),
        Command::Service(args) => match args.command {
            ServiceCommand::List(args) => service::list(&args),
            ServiceCommand::Get(args) => service::get(&args),
        },
        Command::Top(args) => top::show(&args),
        Command::Flows(args) => flows::show(&args),
        Command::Monitor(args) => monitor::show(&args),
        Command::Explain(args) => explain::explain(*args),
        Command::LogLevel(args) => log_level::run(&args),
        Command::Cleanup(args) => cleanup::run(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// Who reads what is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reader {
    Reads,
    /// It has seen enough, which is no error.
    Gone,
}

/// Prints an answer; nothing, where it is empty.
fn print(text: &str) -> anyhow::Result<Reader> {
    if text.is_empty() {
        return Ok(Reader::Reads);
    }
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        written => Ok(written.map(|()| Reader::Reads)?),
    }
}
