//! A Service changes while packets are decided: each sees the old list or the next one (S-216).
//!
//! One thread publishes lists of backends without a pause, by the agent's own stores into mapped
//! maps, and adds and removes other frontends; the others run the real classifier, each time with
//! a flow that nobody knows.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aya::Ebpf;
use proxy_common::{
    Address, Backend, BackendState, Be16, Frontend, FrontendKey, FrontendKind, RegionHeader,
    RegionTail, Word, frontend, protocol,
};
use proxy_ebpf::{Hook, V4, V6};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::pin::Pins;
use proxy_userspace::maps::{FamilyMaps, Maps};
use tests::cases::kernel::{self, Input, test_run};
use tests::cases::packets::{L3, udp};
use tests::cases::raw_map::KernelTables;
use tests::cases::verify::ends;
use tests::cases::world::*;
use tests::net::Sandbox;
use tests::rules;

/// Lists of backends before the first comes again.
const LISTS: u64 = 512;
/// Most backends in one list.
const LIST_MAX: u64 = 8;
/// Elements of SLOTS that one region takes at most.
const REGION_LEN: u32 = 8;
/// Regions in use before the first is used again.
const REGIONS: u64 = 100_000;
/// FrontendId of the Service that changes.
const FRONTEND: u32 = 1000;
/// First BackendId of the lists.
const FIRST_BACKEND: u64 = 1000;
/// Threads that send packets.
const READERS: usize = 2;
/// New flows that each family is tried with.
const FLOWS: u64 = 1_000_000;
/// How long at most.
const DURATION: Duration = Duration::from_secs(20);
/// Least time between two publications: a withdrawn region stays unused for half a second.
const PACE: Duration = Duration::from_micros(5);

/// What the threads share.
#[derive(Default)]
struct Progress {
    begun: AtomicU64,
    done: AtomicU64,
    sent: AtomicU64,
    is_over: AtomicBool,
}

/// The length of a list: all lengths come by.
fn list_len(list: u64) -> u64 {
    1 + list % LIST_MAX
}

/// The address of a backend tells its list.
fn backend_addr<F: CaseFamily>(list: u64, position: u64) -> F::Addr {
    let mut addr = F::address(Role::LocalBackend);
    let bytes = bytemuck::bytes_of_mut(&mut addr);
    let end = bytes.len();
    bytes[end - 3] = (list >> 8) as u8;
    bytes[end - 2] = list as u8;
    bytes[end - 1] = position as u8;
    addr
}

fn list_of(octets: &[u8]) -> u64 {
    let end = octets.len();
    u64::from(octets[end - 3]) << 8 | u64::from(octets[end - 2])
}

fn key<F: CaseFamily>(port: u16) -> FrontendKey<F::Addr> {
    FrontendKey {
        addr: F::address(Role::ClusterIp),
        port: Be16::new(port),
        protocol: protocol::UDP,
        pad: 0,
    }
}

fn write_backends<F: CaseFamily>(maps: &mut KernelMaps)
where
    KernelMaps: FamilyMaps<F::Addr>,
{
    for list in 0..LISTS {
        for position in 0..LIST_MAX {
            let backend = Backend {
                addr: backend_addr::<F>(list, position),
                port: Be16::new(TARGET),
                state: BackendState::Active as u8,
                flags: 0,
                generation: GENERATION,
                service_port: 1,
            };
            let id = FIRST_BACKEND + list * LIST_MAX + position;
            maps.write_backend(id as u32, &backend).expect("a backend");
        }
    }
}

/// Writes a region with the list of this publication and publishes it.
fn publish<F: CaseFamily>(maps: &mut KernelMaps, publication: u64)
where
    KernelMaps: FamilyMaps<F::Addr>,
{
    let list = publication % LISTS;
    let len = list_len(list);
    let header = RegionHeader {
        cluster_count: len as u32,
        local_count: 0,
        flags: frontend::flags::HAS_ENDPOINTS,
        kind: FrontendKind::ClusterIp as u8,
    };
    let mut region = vec![header.pack(), RegionTail::default().pack()];
    let ids: Vec<u64> = (0..len)
        .map(|position| FIRST_BACKEND + list * LIST_MAX + position)
        .collect();
    for pair in ids.chunks(2) {
        region.push(pair[0] | pair.get(1).copied().unwrap_or(0) << 32);
    }
    let first = REGION_LEN * (1 + publication % REGIONS) as u32;
    maps.write_slots(first, &region).expect("a region");
    let word = Word {
        region: first,
        generation: publication as u32 | 1,
    };
    FamilyMaps::<F::Addr>::publish(maps, FRONTEND, word.pack()).expect("a frontend");
}

/// Publishes until it is over; other frontends come and go in the hash meanwhile.
fn write<F: CaseFamily>(maps: &mut KernelMaps, progress: &Progress)
where
    KernelMaps: FamilyMaps<F::Addr>,
{
    let mut publication = 0_u64;
    while !progress.is_over.load(Ordering::Relaxed) {
        let started = Instant::now();
        publication += 1;
        progress.begun.store(publication, Ordering::SeqCst);
        publish::<F>(maps, publication);
        progress.done.store(publication, Ordering::SeqCst);
        if publication.is_multiple_of(16) {
            let other = key::<F>(1000 + (publication / 16 % 5000) as u16);
            maps.insert_frontend_id(&other, 1 + (publication % 900) as u32)
                .expect("another frontend");
            maps.remove_frontend_id(&other).expect("another frontend");
        }
        while started.elapsed() < PACE {
            std::hint::spin_loop();
        }
    }
}

/// Sends first packets until it is over, and returns how many.
fn read<F: CaseFamily>(ebpf: &Ebpf, progress: &Progress, reader: usize) -> u64 {
    let packet = udp((Role::Pod, CLIENT_PORT), (Role::ClusterIp, PORT)).bytes::<F>();
    let mut sent = 0_u64;
    while !progress.is_over.load(Ordering::Relaxed) {
        let mut bytes = packet.clone();
        let src = if F::VERSION == 4 { L3 + 12 } else { L3 + 8 };
        // Another client each time, by the first four bytes of its address.
        let client = 11 << 24 | (reader as u32) << 22 | (sent as u32 & 0x3f_ffff);
        bytes[src..src + 4].copy_from_slice(&client.to_be_bytes());
        sent += 1;
        progress.sent.fetch_add(1, Ordering::Relaxed);
        let lowest = progress.done.load(Ordering::SeqCst);
        let input = Input {
            hook: Hook::Ingress,
            ifindex: 0,
            mark: 0,
            segment_len: 0,
            bytes: &bytes,
        };
        let output = test_run(ebpf, input).expect("a test run");
        let highest = progress.begun.load(Ordering::SeqCst);
        assert_eq!(output.action, 0, "not translated: a miss");
        let list = list_of(&ends::<F>(&output.bytes).dst);
        let is_seen = (highest + LISTS - list) % LISTS <= highest - lowest;
        assert!(
            is_seen || highest - lowest >= LISTS,
            "list {list}, but {lowest} to {highest} were published"
        );
    }
    sent
}

fn try_family<F: CaseFamily>(ebpf: &Ebpf, maps: &mut KernelMaps)
where
    KernelMaps: FamilyMaps<F::Addr>,
{
    let mut tables = KernelTables::open::<F>(ebpf).expect("the maps");
    tables.clear().expect("the maps");
    let world = World {
        detector: Detector::None,
        ..World::default()
    };
    let mut wanted = world.tables::<F>(kernel::HZ, 0);
    wanted.frontend_ids.clear();
    // Nobody would read what they are told.
    wanted.monitor = None;
    tables.fill(&wanted).expect("the maps");
    write_backends::<F>(maps);
    let element = Frontend {
        word: 0,
        key: key::<F>(PORT),
        pad: <F::Addr as Address>::FrontendPad::default(),
    };
    maps.write_frontend(FRONTEND, &element).expect("a frontend");
    publish::<F>(maps, 0);
    maps.insert_frontend_id(&element.key, FRONTEND)
        .expect("a frontend");

    let progress = Progress::default();
    let sent: u64 = std::thread::scope(|scope| {
        let progress = &progress;
        let readers: Vec<_> = (0..READERS)
            .map(|reader| scope.spawn(move || read::<F>(ebpf, progress, reader)))
            .collect();
        scope.spawn(|| write::<F>(maps, progress));
        let start = Instant::now();
        while start.elapsed() < DURATION
            && progress.sent.load(Ordering::Relaxed) < FLOWS
            && !readers.iter().any(|reader| reader.is_finished())
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        progress.is_over.store(true, Ordering::Relaxed);
        let join = |reader: std::thread::ScopedJoinHandle<'_, u64>| match reader.join() {
            Ok(sent) => sent,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        readers.into_iter().map(join).sum()
    });

    let counters = tables.counters().expect("counters");
    let changes = progress.done.load(Ordering::SeqCst);
    println!(
        "{}: {sent} new flows, {changes} publications: {counters:?}",
        F::NAME
    );
    use proxy_common::Counter::{NewFlow, NewFlowLost, OriginalStack};
    for counter in counters.keys() {
        let is_usual = [NewFlow, NewFlowLost, OriginalStack].contains(counter);
        assert!(is_usual, "{}: {counters:?}", F::NAME);
    }
    assert!(
        sent > FLOWS / 20 && changes > FLOWS / 100,
        "{sent}, {changes}"
    );
    tables.clear().expect("the maps");
}

#[test]
fn every_packet_sees_the_old_list_or_the_next() {
    rules(&["S-216"]);
    let sandbox = Sandbox::new().expect("root");
    let bpffs = sandbox.bpffs("torn").expect("a bpffs");
    let netns = sandbox.netns("torn").expect("a namespace");
    let pins = Pins::create(&bpffs).expect("pins");
    let inside = || {
        let ebpf = kernel::load().expect("the BPF object");
        kernel::pin_maps(&ebpf, &pins).expect("pins");
        let mut maps = KernelMaps::open(&pins).expect("the maps");
        try_family::<V4>(&ebpf, &mut maps);
        try_family::<V6>(&ebpf, &mut maps);
    };
    netns.enter(inside).expect("the namespace");
}
