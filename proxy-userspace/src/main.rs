//! The command `shunt`.

use std::process::ExitCode;

use clap::Parser as _;
use proxy_userspace::cli::{self, args::Cli};

fn main() -> ExitCode {
    match cli::dispatch(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shunt: {}", proxy_userspace::error_chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}
