//! The command `shunt`.

use std::process::ExitCode;

use clap::Parser as _;
use proxy_userspace::cli::{self, Misuse, args::Cli};

fn main() -> ExitCode {
    match cli::dispatch(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shunt: {}", proxy_userspace::error_chain(error.as_ref()));
            match error.is::<Misuse>() {
                // As for a flag that does not exist.
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}
