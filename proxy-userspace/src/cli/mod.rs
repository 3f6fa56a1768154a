//! The command line.

pub mod args;
pub mod cleanup;
pub mod explain;
pub mod kube_proxy_flags;
pub mod leftovers;
pub mod query;
pub mod run;
pub mod service;
pub mod status;

use self::args::{Cli, Command, ServiceCommand};

/// Does what the command line says.
pub fn dispatch(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Agent(args) => run::agent(*args),
        Command::Status(args) => status::show(&args),
        Command::Service(args) => match args.command {
            ServiceCommand::List(args) => service::list(&args),
        },
        Command::Explain(args) => explain::explain(*args),
        Command::Cleanup(args) => cleanup::run(&args),
    }
}
