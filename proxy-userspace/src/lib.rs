//! The agent and its command line: the object's path, from the watch to the maps.

pub mod maps;
pub mod objects;
