//! The agent and its command line: the object's path, from the watch to the maps.

pub mod ip_text;
pub mod maps;
pub mod objects;
pub mod pipeline;
pub mod settings;
