//! What somebody else has done to our programs, pins and entries is put right. Needs root.

mod support;

use std::os::fd::AsFd as _;

use proxy_userspace::datapath::audit::Drift;
use proxy_userspace::datapath::interfaces::{Rules, plan};
use proxy_userspace::datapath::maps::KernelMaps;
use proxy_userspace::datapath::netlink::Reader;
use proxy_userspace::datapath::pin::PinKind;
use proxy_userspace::datapath::{Datapath, DatapathOptions, TcChoice, sys};
use proxy_userspace::maps::Maps as _;
use support::{Place, rules, run};

/// A datapath that serves the interface `up0`, and its index.
fn start(place: &Place, tc: TcChoice) -> (Datapath, KernelMaps, u32) {
    run("ip link add up0 type veth peer name peer0");
    run("ip address add 192.168.7.1/24 dev up0");
    let options = DatapathOptions {
        bpffs: place.bpffs().to_owned(),
        cgroup: Some(place.cgroup().to_owned()),
        tc,
        ..DatapathOptions::default()
    };
    let (mut datapath, mut maps) = Datapath::load(&options).unwrap();
    datapath.attach_sockets().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let plans = runtime.block_on(async {
        let snapshot = Reader::open().unwrap().snapshot().await.unwrap();
        plan(&snapshot, &Rules::default())
    });
    datapath.start_interfaces(&mut maps, plans);
    let ifindex = nix::net::if_::if_nametoindex("up0").unwrap();
    (datapath, maps, ifindex)
}

fn programs(programs: u64) -> Drift {
    Drift {
        programs,
        ..Drift::default()
    }
}

#[test]
fn links_that_are_detached_or_removed_are_made_anew() {
    rules(&["S-010"]);
    let place = Place::enter();
    let (mut datapath, mut maps, ifindex) = start(&place, TcChoice::Tcx);
    assert_eq!(datapath.audit(&mut maps), Drift::default());
    let ingress = format!("{ifindex}_ingress");
    let link = |name: &str| datapath.pins().open(PinKind::Links, name).unwrap().unwrap();
    let (first, second) = (link(&ingress), link("connect4"));
    sys::link_detach(first.as_fd()).unwrap();
    sys::link_detach(second.as_fd()).unwrap();
    datapath.pins().remove(PinKind::Links, "sendmsg6").unwrap();
    assert_eq!(datapath.audit(&mut maps), programs(3));
    for hook in [sys::AttachType::TcxIngress, sys::AttachType::TcxEgress] {
        assert_eq!(sys::program_count(ifindex, hook).unwrap(), 1);
    }
    assert_eq!(datapath.audit(&mut maps), Drift::default());
}

#[test]
fn filters_that_are_deleted_are_added_again() {
    let place = Place::enter();
    let (mut datapath, mut maps, _) = start(&place, TcChoice::Clsact);
    assert_eq!(datapath.audit(&mut maps), Drift::default());
    for damage in [
        "tc filter del dev up0 egress",
        "tc qdisc del dev up0 clsact",
    ] {
        run(damage);
        assert_eq!(datapath.audit(&mut maps), programs(1), "{damage}");
        for direction in ["ingress", "egress"] {
            let filters = run(&format!("tc filter show dev up0 {direction}"));
            assert_eq!(filters.matches("handle").count(), 1, "{damage}: {filters}");
        }
    }
    assert_eq!(datapath.audit(&mut maps), Drift::default());
}

#[test]
fn entries_and_pins_are_restored() {
    let place = Place::enter();
    let (mut datapath, mut maps, ifindex) = start(&place, TcChoice::Auto);
    let entry = maps.interface(ifindex).unwrap();
    maps.remove_interface(ifindex).unwrap();
    maps.insert_interface(999_999, &entry).unwrap();
    let pins = datapath.pins();
    pins.remove(PinKind::Maps, "FLOWS4").unwrap();
    let other = sys::map_create(2, [4, 8, 1], 0).unwrap();
    pins.replace(PinKind::Maps, "SLOTS", other.as_fd()).unwrap();
    pins.remove(PinKind::Programs, "connect4").unwrap();
    let expected = Drift {
        programs: 0,
        interfaces: 2,
        pins: 3,
    };
    assert_eq!(
        datapath.audit(&mut maps),
        expected,
        "{:?}",
        maps.interfaces()
    );
    assert_eq!(maps.interface(ifindex), Some(entry));
    assert_eq!(maps.interface(999_999), None);
    assert_eq!(datapath.audit(&mut maps), Drift::default());
}
