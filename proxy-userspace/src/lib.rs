//! The agent and its command line: the object's path, from the watch to the maps.

pub mod agent;
pub mod cli;
pub mod config;
pub mod datapath;
pub mod doctor;
pub mod events;
pub mod explain;
pub mod fake_maps;
pub mod family;
pub mod flows;
pub mod health;
pub mod ids;
pub mod ip_text;
pub mod leftovers;
pub mod logging;
pub mod map_dump;
pub mod maps;
pub mod memory;
pub mod monitor;
pub mod objects;
pub mod pipeline;
pub mod restore;
pub mod settings;
pub mod sorted;
pub mod top;

/// Cites the rules that a test is about: read by `cargo xtask rules`.
#[cfg(test)]
const fn rules(_rules: &[&str]) {}

/// An error and its causes, as one line of text.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
