//! Programs out of the object: it is told what it must know, its maps are found by their pins or
//! made, and programs are verified side by side.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;
use std::time::Instant;

use aya::programs::{CgroupSockAddr, Program, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};

use super::{LoadError, Programs, SOCKET_PROGRAMS, XDP_PROGRAM};
use crate::datapath::bpf_log::{self, BpfLog};
use crate::datapath::pin::Pins;

/// What the loader tells programs: constants for the verifier.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patch {
    /// The kernel has `bpf_set_retval`.
    pub set_retval: bool,
    /// What they log.
    pub bpf_log: BpfLog,
}

/// Loads those of `names`, with the maps that are pinned or made for the others.
pub fn load(
    programs: &Programs,
    pins: &Pins,
    names: &BTreeSet<&'static str>,
    patch: Patch,
) -> Result<Vec<(&'static str, OwnedFd)>, LoadError> {
    // Not kept: what an object is when it is parsed takes megabytes.
    let mut object = load_object(programs, pins, patch)?;
    load_programs(&mut object, names)
}

fn load_object(programs: &Programs, pins: &Pins, patch: Patch) -> Result<Ebpf, LoadError> {
    let Programs {
        object,
        wanted,
        transition,
        ..
    } = programs;
    let has_set_retval = u8::from(patch.set_retval);
    let logged = patch.bpf_log as u8;
    let log_ring = bpf_log::ring(patch.bpf_log, pins, wanted.kind)?;
    let mut loader = EbpfLoader::new();
    // No program is relocated against the kernel's own types, so they need not be read.
    loader
        .btf(None)
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("LOGGED", &logged, true)
        .map_pin_path(bpf_log::RING, log_ring);
    for spec in &wanted.specs {
        loader
            .map_max_entries(spec.name, spec.max_entries)
            .map_pin_path(spec.name, pins.path(wanted.kind, spec.name));
    }
    if let Some(transition) = transition {
        transition.apply(&mut loader, pins, wanted.old_kind());
    }
    loader.load(object).map_err(|source| LoadError::Object {
        source: Box::new(source),
    })
}

/// Loads programs side by side: the kernel verifies one in a second of one processor.
fn load_programs(
    object: &mut Ebpf,
    names: &BTreeSet<&'static str>,
) -> Result<Vec<(&'static str, OwnedFd)>, LoadError> {
    let found: BTreeMap<&'static str, &mut Program> = object
        .programs_mut()
        .filter_map(|(name, program)| Some((*names.get(name)?, program)))
        .collect();
    if let Some(name) = names.iter().find(|name| !found.contains_key(**name)) {
        return Err(LoadError::NoProgram { name });
    }
    thread::scope(|scope| {
        let load = |(name, program)| scope.spawn(move || Ok((name, load_program(name, program)?)));
        let loading: Vec<_> = found.into_iter().map(load).collect();
        let joined = loading.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}

fn load_program(name: &'static str, program: &mut Program) -> Result<OwnedFd, LoadError> {
    let started = Instant::now();
    let refused = |source| LoadError::Refused {
        name,
        source: Box::new(source),
    };
    let wrong_type = |_| LoadError::NoProgram { name };
    if SOCKET_PROGRAMS.contains(&name) {
        let program: &mut CgroupSockAddr = program.try_into().map_err(wrong_type)?;
        program.load().map_err(refused)?;
    } else if name == XDP_PROGRAM {
        let program: &mut Xdp = program.try_into().map_err(wrong_type)?;
        program.load().map_err(refused)?;
    } else {
        let program: &mut SchedClassifier = program.try_into().map_err(wrong_type)?;
        program.load().map_err(refused)?;
    }
    tracing::debug!(name, elapsed = ?started.elapsed(), "program loaded");
    let fd = program.fd().map_err(refused)?;
    let fd = fd.as_fd().try_clone_to_owned();
    fd.map_err(|source| LoadError::Descriptor { name, source })
}
