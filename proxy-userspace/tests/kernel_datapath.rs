//! The datapath against the real kernel: load, adopt, refuse, attach, clean up. Needs root.

mod support;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use proxy_common::{
    ABI_VERSION, Addr4, Addr6, Backend, BackendState, Be16, Be32, ClusterIpKey, Config, Frontend,
    FrontendKey,
};
use proxy_userspace::datapath::catalog::MapSizes;
use proxy_userspace::datapath::interfaces::{Plan, Rules, local_addresses, plan};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::netlink::{Changes, Reader};
use proxy_userspace::datapath::pin::{PinError, PinKind, Pins};
use proxy_userspace::datapath::{
    Datapath, DatapathError, DatapathOptions, TcChoice, attach, cleanup, environment, load, sys,
};
use proxy_userspace::maps::{FamilyMaps, MapError, Maps as _};
use support::{Place, rules, run};

/// Options with small maps.
fn options(place: &Place, tc: TcChoice) -> DatapathOptions {
    DatapathOptions {
        bpffs: place.bpffs().to_owned(),
        cgroup: Some(place.cgroup().to_owned()),
        tc,
        sizes: MapSizes {
            frontends: 64,
            backends: 64,
            slots: 256,
            flows: 256,
            handshakes: 256,
            affinity: 64,
            sockets: 64,
            cluster_ips: 64,
            source_ranges: 64,
        },
        ..DatapathOptions::default()
    }
}

fn config(abi_version: u32) -> Config {
    Config {
        abi_version,
        hz: 250,
        ..bytemuck::Zeroable::zeroed()
    }
}

fn key(last: u8) -> FrontendKey<Addr4> {
    FrontendKey {
        addr: Addr4::from_octets([10, 96, 0, last]),
        port: Be16::new(80),
        protocol: 6,
        pad: 0,
    }
}

/// Links and addresses of this network namespace, as plans.
fn plans() -> BTreeMap<u32, Plan> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let snapshot = Reader::open().unwrap().snapshot().await.unwrap();
        plan(&snapshot, &Rules::default())
    })
}

fn add_interfaces() {
    run("ip link add up0 type veth peer name peer0");
    run("ip address add 192.168.7.1/24 dev up0");
    run("ip link set up0 up");
    run("ip link set peer0 up");
}

fn start(place: &Place, tc: TcChoice) -> (Datapath, KernelMaps) {
    let (mut datapath, mut maps) = Datapath::load(&options(place, tc)).unwrap();
    maps.write_config(&config(ABI_VERSION)).unwrap();
    datapath.attach_sockets().unwrap();
    datapath.start_interfaces(&mut maps, plans());
    (datapath, maps)
}

/// Kernel ids of all links and of the programs that run behind them, by pin.
fn links(place: &Place) -> BTreeMap<String, (u32, u32)> {
    let pins = Pins::at(place.bpffs());
    let names = pins.names(PinKind::Links).into_iter();
    let ids = names.map(|name| {
        let link = pins.open(PinKind::Links, &name).unwrap().unwrap();
        let info = sys::link_info(link.as_fd()).unwrap();
        (name, (info.id, info.prog_id))
    });
    ids.collect()
}

/// Lets the next start be that of another build.
fn forget_build(place: &Place) {
    let pins = Pins::at(place.bpffs());
    pins.remove(PinKind::Programs, "BUILD").unwrap();
}

#[test]
fn program_of_a_stranger_is_not_adopted() {
    let place = Place::enter();
    drop(start(&place, TcChoice::Auto));
    let pins = Pins::at(place.bpffs());
    let other = pins.open(PinKind::Programs, "connect6").unwrap().unwrap();
    pins.replace(PinKind::Programs, "connect4", other.as_fd())
        .unwrap();
    let (datapath, _maps) = start(&place, TcChoice::Auto);
    let program = datapath.programs().get("connect4");
    let ids = [program, other.as_fd()].map(|fd| sys::object_id(fd).unwrap());
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn restart_adopts_maps_and_swaps_programs_behind_the_same_links() {
    rules(&["S-178"]);
    let place = Place::enter();
    add_interfaces();
    let (datapath, mut maps) = start(&place, TcChoice::Tcx);
    maps.insert_frontend_id(&key(1), 7).unwrap();
    let before = links(&place);
    assert_eq!(
        before.len(),
        8 + 2,
        "eight socket hooks, two directions of one interface"
    );
    drop((datapath, maps));
    assert_eq!(links(&place), before, "everything outlives the agent");

    drop(start(&place, TcChoice::Tcx));
    assert_eq!(links(&place), before, "the same build is adopted");
    forget_build(&place);
    let (_datapath, maps) = start(&place, TcChoice::Tcx);
    let after = links(&place);
    assert_eq!(FamilyMaps::<Addr4>::frontend_ids(&maps), [(key(1), 7)]);
    for (name, (link, program)) in &before {
        assert_eq!(after[name].0, *link, "{name} keeps its link");
        assert_ne!(
            after[name].1, *program,
            "{name} runs the program of this start"
        );
    }
}

#[test]
fn second_agent_is_refused_while_the_first_runs() {
    let place = Place::enter();
    let _first = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    let second = Datapath::load(&options(&place, TcChoice::Auto));
    assert!(
        matches!(second, Err(DatapathError::Pin(PinError::InUse { .. }))),
        "{second:?}"
    );
    assert!(matches!(
        cleanup(place.bpffs()),
        Err(DatapathError::Pin(PinError::InUse { .. }))
    ));
}

#[test]
fn map_of_a_stranger_is_refused_and_kept() {
    let place = Place::enter();
    let pins = Pins::create(place.bpffs()).unwrap();
    let stranger = sys::map_create(2, [4, 12, 1], 0).unwrap();
    let path = pins.path(PinKind::Maps, "SLOTS");
    sys::pin(stranger.as_fd(), &path).unwrap();
    let id = sys::map_info(stranger.as_fd()).unwrap().id;

    let error = Datapath::load(&options(&place, TcChoice::Auto)).unwrap_err();
    assert!(
        error.to_string().contains("SLOTS is a map of 4 + 12 bytes"),
        "{error}"
    );
    let kept = sys::open_pinned(&path).unwrap();
    assert_eq!(sys::map_info(kept.as_fd()).unwrap().id, id);
    assert_eq!(
        pins.names(PinKind::Maps).len(),
        1,
        "nothing was made beside it"
    );
}

#[test]
fn other_abi_version_is_refused_and_kept() {
    let place = Place::enter();
    let (datapath, mut maps) = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    maps.write_config(&config(ABI_VERSION + 1)).unwrap();
    drop(datapath);
    let error = Datapath::load(&options(&place, TcChoice::Auto)).unwrap_err();
    let version = format!("map ABI version {}", ABI_VERSION + 1);
    assert!(error.to_string().contains(&version), "{error}");
    assert_eq!(maps.config().unwrap().abi_version, ABI_VERSION + 1);
}

#[test]
fn folder_that_is_no_bpffs_is_refused_before_anything_is_made() {
    let place = Place::enter();
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(&place, TcChoice::Auto);
    options.bpffs = folder.path().join("deeper");
    let error = Datapath::load(&options).unwrap_err();
    assert!(error.to_string().contains("is not on a bpffs"), "{error}");
    assert!(!options.bpffs.exists());
}

#[test]
fn folder_that_is_no_cgroup_is_refused_before_anything_is_made() {
    let place = Place::enter();
    let mut options = options(&place, TcChoice::Auto);
    options.cgroup = Some("/proc".into());
    let error = Datapath::load(&options).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("/proc is not a cgroup v2 folder"),
        "{error}"
    );
    assert!(!Pins::at(place.bpffs()).exist());
}

#[test]
fn missing_object_is_refused_with_what_to_do() {
    let place = Place::enter();
    let mut options = options(&place, TcChoice::Auto);
    options.object = &[];
    let error = Datapath::load(&options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "built without the BPF object: run cargo xtask build"
    );
    assert!(!Pins::at(place.bpffs()).exist());
}

#[test]
fn object_that_does_not_load_leaves_no_pins() {
    let place = Place::enter();
    let mut options = options(&place, TcChoice::Auto);
    options.object = &[0; 64];
    Datapath::load(&options).unwrap_err();
    assert!(Pins::at(place.bpffs()).names(PinKind::Maps).is_empty());
}

#[test]
fn clsact_filters_are_replaced_in_place_and_cleaned_up() {
    let place = Place::enter();
    add_interfaces();
    drop(start(&place, TcChoice::Clsact));
    let show = || run("tc filter show dev up0 ingress");
    let first = show();
    assert_eq!(first.matches("handle").count(), 1, "{first}");

    forget_build(&place);
    drop(start(&place, TcChoice::Clsact));
    let second = show();
    assert_eq!(second.matches("handle").count(), 1, "{second}");
    assert_ne!(first, second, "the program of this start runs");

    cleanup(place.bpffs()).unwrap();
    assert_eq!(show(), "");
    assert_eq!(run("tc filter show dev up0 egress"), "");
    assert!(!run("tc qdisc show dev up0").contains("clsact"));
}

#[test]
fn clsact_qdisc_of_somebody_else_stays() {
    let place = Place::enter();
    add_interfaces();
    run("tc qdisc add dev up0 clsact");
    drop(start(&place, TcChoice::Clsact));
    cleanup(place.bpffs()).unwrap();
    assert!(run("tc qdisc show dev up0").contains("clsact"));
}

#[test]
fn clsact_qdisc_with_a_filter_of_somebody_else_stays() {
    let place = Place::enter();
    add_interfaces();
    drop(start(&place, TcChoice::Clsact));
    let program = Pins::at(place.bpffs()).path(PinKind::Programs, "tc_egress");
    let program = program.display();
    run(&format!(
        "tc filter add dev up0 egress prio 9 bpf da object-pinned {program}"
    ));
    cleanup(place.bpffs()).unwrap();
    assert!(run("tc filter show dev up0 egress").contains("pref 9"));
    assert!(!run("tc qdisc show dev peer0").contains("clsact"));
}

#[test]
fn change_of_means_leaves_one_program_per_direction() {
    let place = Place::enter();
    add_interfaces();
    drop(start(&place, TcChoice::Clsact));
    drop(start(&place, TcChoice::Tcx));
    assert_eq!(run("tc filter show dev up0 ingress"), "");
    let ifindex = nix::net::if_::if_nametoindex("up0").unwrap();
    assert_eq!(
        sys::program_count(ifindex, sys::AttachType::TcxIngress).unwrap(),
        1
    );
    drop(start(&place, TcChoice::Clsact));
    assert_eq!(
        sys::program_count(ifindex, sys::AttachType::TcxIngress).unwrap(),
        0
    );
}

#[test]
fn cleanup_takes_everything_away_and_may_be_repeated() {
    rules(&["S-180"]);
    let place = Place::enter();
    add_interfaces();
    drop(start(&place, TcChoice::Tcx));
    cleanup(place.bpffs()).unwrap();
    cleanup(place.bpffs()).unwrap();
    assert!(!Pins::at(place.bpffs()).exist());
    let ifindex = nix::net::if_::if_nametoindex("up0").unwrap();
    for hook in [sys::AttachType::TcxIngress, sys::AttachType::TcxEgress] {
        assert_eq!(sys::program_count(ifindex, hook).unwrap(), 0);
    }
    drop(start(&place, TcChoice::Tcx));
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    rules(&["S-119b"]);
    let place = Place::enter();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (mut datapath, mut maps) = start_empty(&place);
        let reader = Reader::open().unwrap();
        let mut changes = Changes::subscribe().unwrap();
        add_interfaces();
        changes.next().await.unwrap();
        let snapshot = reader.snapshot().await.unwrap();
        let local = local_addresses(&snapshot);
        assert!(
            local
                .iter()
                .any(|found| found.addr.to_string() == "192.168.7.1")
        );
        datapath.set_interfaces(&mut maps, plan(&snapshot, &Rules::default()));
        let ifindex = nix::net::if_::if_nametoindex("up0").unwrap();
        assert_eq!(attach::attached(datapath.pins()), [ifindex]);
        let entry = maps
            .interfaces()
            .into_iter()
            .find(|(index, _)| *index == ifindex)
            .unwrap()
            .1;
        assert_eq!(entry.addr4, Addr4::from_octets([192, 168, 7, 1]));
        assert_ne!(entry.mac, [0; 6]);

        run("ip link delete up0");
        changes.next().await.unwrap();
        let snapshot = reader.snapshot().await.unwrap();
        datapath.set_interfaces(&mut maps, plan(&snapshot, &Rules::default()));
        assert!(attach::attached(datapath.pins()).is_empty());
        assert!(maps.interfaces().iter().all(|(index, _)| *index != ifindex));
    });
}

fn start_empty(place: &Place) -> (Datapath, KernelMaps) {
    let (mut datapath, mut maps) = Datapath::load(&options(place, TcChoice::Auto)).unwrap();
    datapath.start_interfaces(&mut maps, BTreeMap::new());
    (datapath, maps)
}

#[test]
fn number_of_a_vanished_interface_serves_the_next_one() {
    let place = Place::enter();
    run("ip link add up0 index 77 type veth peer name peer0");
    run("ip address add 192.168.7.1/24 dev up0");
    drop(start(&place, TcChoice::Auto));
    run("ip link delete up0");
    run("ip link add up1 index 77 type veth peer name peer1");
    run("ip address add 192.168.8.1/24 dev up1");
    drop(start(&place, TcChoice::Auto));
    assert_eq!(
        sys::program_count(77, sys::AttachType::TcxIngress).unwrap(),
        1
    );
}

#[test]
fn mapped_elements_are_what_the_kernel_sees() {
    let place = Place::enter();
    let (datapath, mut maps) = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    let backend = |last: u8| Backend {
        addr: Addr6::from_octets([0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, last]),
        port: Be16::new(8080),
        state: BackendState::Active as u8,
        flags: 1,
        generation: 0x0102_0304,
        service_port: 0x0506_0708,
    };
    for id in 1..64 {
        maps.write_backend(id, &backend(id as u8)).unwrap();
    }
    let (map, _) = datapath.pins().map("BACKENDS6").unwrap();
    for id in 1..64_u32 {
        let mut bytes = [0_u8; 28];
        assert!(sys::map_lookup(map.as_fd(), &id.to_ne_bytes(), &mut bytes).unwrap());
        assert_eq!(bytes, bytemuck::bytes_of(&backend(id as u8)));
        assert_eq!(maps.backend(id), Some(backend(id as u8)));
    }
}

#[test]
fn published_word_is_the_first_of_the_frontend() {
    let place = Place::enter();
    let (datapath, mut maps) = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    let frontend = Frontend {
        word: 0,
        key: key(9),
        pad: [],
    };
    maps.write_frontend(5, &frontend).unwrap();
    FamilyMaps::<Addr4>::publish(&mut maps, 5, 0x1_0000_0002).unwrap();
    let (map, _) = datapath.pins().map("FRONTENDS4").unwrap();
    let mut bytes = [0_u8; 16];
    assert!(sys::map_lookup(map.as_fd(), &5_u32.to_ne_bytes(), &mut bytes).unwrap());
    assert_eq!(bytes[..8], 0x1_0000_0002_u64.to_ne_bytes());
    assert_eq!(bytes[8..], *bytemuck::bytes_of(&key(9)));
}

#[test]
fn full_maps_and_ids_beyond_the_end_say_so() {
    let place = Place::enter();
    let (_datapath, mut maps) = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    assert_eq!(maps.capacity().frontends, 64);
    let is_full = |result| matches!(result, Err(MapError::Full { limit: 64, .. }));
    assert!(is_full(FamilyMaps::<Addr4>::publish(&mut maps, 64, 1)));
    for last in 0..64 {
        maps.insert_frontend_id(&key(last), 1).unwrap();
    }
    assert!(is_full(maps.insert_frontend_id(&key(64), 1)));
    let prefix = |last| ClusterIpKey {
        prefix_len: 32,
        addr: Addr4(Be32::new(last)),
    };
    for last in 0..64 {
        maps.insert_cluster_ip(&prefix(last), 1).unwrap();
    }
    assert!(is_full(maps.insert_cluster_ip(&prefix(64), 1)));
    assert_eq!(FamilyMaps::<Addr4>::cluster_ips(&maps).len(), 64);
    maps.remove_cluster_ip(&prefix(3)).unwrap();
    maps.remove_cluster_ip(&prefix(3)).unwrap();
    assert_eq!(FamilyMaps::<Addr4>::cluster_ips(&maps).len(), 63);
}

#[test]
fn clock_and_namespace_are_measured() {
    let place = Place::enter();
    let (datapath, _maps) = Datapath::load(&options(&place, TcChoice::Auto)).unwrap();
    let hz = environment::measure_hz(datapath.programs().get(load::JIFFIES)).unwrap();
    assert!([100, 250, 300, 1000].contains(&hz), "{hz}");
    assert_ne!(environment::netns_cookie(), 0);
}
