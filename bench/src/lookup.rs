//! Asks the real program where a connection would go: tc_ingress by BPF_PROG_TEST_RUN, over the
//! maps of the agent.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use etherparse::PacketBuilder;

use crate::objects::PORT;

/// Where the destination address lies behind an Ethernet header.
const DESTINATION: usize = 14 + 16;
/// Word of `struct __sk_buff` that has the interface.
const IFINDEX_WORD: usize = 10;
/// The client, a pod.
const CLIENT: [u8; 4] = [10, 64, 0, 2];
/// Connections that are tried before the maps are asked again: enough to meet a backend among ten
/// but for one time in ten thousand.
const TRIES: u16 = 90;

/// The program.
pub struct Lookup {
    program: SchedClassifier,
    ifindex: u32,
    source_port: u16,
}

impl Lookup {
    /// Opens what an agent pinned below `bpffs`; packets enter by the interface `ifindex`.
    pub fn open(bpffs: &Path, ifindex: u32) -> Result<Self> {
        let path = bpffs.join("shunt/programs/tc_ingress");
        let program = SchedClassifier::from_pin(path).context("opening the pinned program")?;
        Ok(Self {
            program,
            ifindex,
            source_port: 1024,
        })
    }

    /// The backend that one new connection to `frontend` gets.
    fn ask(&mut self, frontend: Ipv4Addr) -> Result<Ipv4Addr> {
        self.source_port = self.source_port.checked_add(1).unwrap_or(1024);
        let mut packet = Vec::with_capacity(64);
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(CLIENT, frontend.octets(), 64)
            .tcp(self.source_port, PORT, 1, 64_240)
            .syn()
            .write(&mut packet, &[])?;
        let mut context = [0_u32; 48];
        context[IFINDEX_WORD] = self.ifindex;
        let mut bytes = [0; 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&packet);
        options.data_out = Some(&mut bytes);
        options.ctx_in = Some(bytemuck::cast_slice(&context));
        self.program
            .test_run(options)
            .context("BPF_PROG_TEST_RUN")?;
        let octets: [u8; 4] = bytes[DESTINATION..DESTINATION + 4].try_into()?;
        Ok(octets.into())
    }

    /// True if connections to `frontend` reach `backend`.
    pub fn reaches(&mut self, frontend: Ipv4Addr, backend: Ipv4Addr) -> Result<bool> {
        for _ in 0..TRIES {
            if self.ask(frontend)? == backend {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
