//! Pinned maps that are exchanged at a start: for larger ones, or for those of another version of
//! the map ABI, both ways. Needs root.

#[expect(dead_code, reason = "what other tests need")]
mod support;

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use proxy_common::port_filter::{ADDRESSES_SINCE, ADDRESSES_START, PORT_FILTER_LEN};
use proxy_common::{
    ABI_OLDEST, ABI_VERSION, Addr4, Addr6, Backend, BackendState, Be16, Config, Frontend,
    FrontendKey,
};
use proxy_userspace::datapath::abi::Abi;
use proxy_userspace::datapath::catalog::{MapKind, MapSizes, MapSpec, catalog};
use proxy_userspace::datapath::elements::{AnyMap, Existing};
use proxy_userspace::datapath::pin::{PinKind, Pins};
use proxy_userspace::datapath::{Datapath, DatapathOptions, TcChoice, sys};
use proxy_userspace::maps::{FamilyMaps as _, Maps as _};
use support::{Place, rules};

/// `BPF_F_NO_PREALLOC`, which tries must have, and `BPF_F_MMAPABLE`.
const FLAGS: [u32; 2] = [1, 1 << 10];

/// Sizes of which all are `factor` times the smallest.
fn sizes(factor: u32) -> MapSizes {
    MapSizes {
        frontends: 64 * factor,
        backends: 64 * factor,
        slots: 256 * factor,
        flows: 256 * factor,
        handshakes: 256 * factor,
        affinity: 64 * factor,
        sockets: 64 * factor,
        cluster_ips: 64 * factor,
        source_ranges: 64 * factor,
    }
}

fn options(place: &Place, sizes: MapSizes) -> DatapathOptions {
    DatapathOptions {
        bpffs: place.bpffs().to_owned(),
        cgroup: Some(place.cgroup().to_owned()),
        tc: TcChoice::Auto,
        sizes,
        ..DatapathOptions::default()
    }
}

fn any_map(pins: &Pins, kind: PinKind, name: &str) -> AnyMap {
    let fd = sys::open_pinned(&pins.path(kind, name)).unwrap();
    AnyMap::new(fd).unwrap()
}

type Content = BTreeMap<&'static str, Vec<(Vec<u8>, Vec<u8>)>>;

/// The maps that hold something: records of a ring buffer are gone when they are read.
fn lasting() -> impl Iterator<Item = MapSpec> {
    let all = catalog(&sizes(1)).into_iter();
    all.filter(|spec| spec.kind != MapKind::RingBuf)
}

/// What every map holds, by its name.
fn content(pins: &Pins) -> Content {
    let all = lasting().map(|spec| {
        let mut entries = any_map(pins, PinKind::Maps, spec.name).entries().unwrap();
        entries.sort();
        (spec.name, entries)
    });
    all.collect()
}

/// A value with a pattern in each field that the field's name decides.
fn value(abi: &Abi, layout: &str) -> Vec<u8> {
    let (fields, size) = abi.fields(layout).unwrap();
    let mut bytes = vec![0; size];
    for (name, offset, len) in fields {
        let pattern: u8 = name
            .bytes()
            .fold(1, |sum, byte| sum.wrapping_mul(31) ^ byte);
        let field = &mut bytes[offset..offset + len];
        match name {
            "prefix_len" => field.copy_from_slice(&8_u32.to_ne_bytes()),
            "abi_version" => field.copy_from_slice(&abi.version.to_ne_bytes()),
            _ => field.fill(pattern),
        }
    }
    bytes
}

fn key(abi: &Abi, spec: &MapSpec) -> Vec<u8> {
    let [layout, _] = abi.types(spec.name).unwrap();
    match spec.kind {
        MapKind::Array | MapKind::PerCpuArray => {
            u32::from(spec.max_entries > 1).to_ne_bytes().to_vec()
        }
        _ => value(abi, layout),
    }
}

/// Pins the maps of another build, with one entry each, and its text beside them.
fn pin_foreign(place: &Place, text: &str) -> Abi {
    let abi = Abi::parse(text);
    let pins = Pins::create(place.bpffs()).unwrap();
    for spec in catalog(&sizes(1)) {
        // A map that came later.
        let Some([key_size, value_size]) = abi.sizes(spec.name) else {
            continue;
        };
        let flags = match spec.kind {
            MapKind::LpmTrie => FLAGS[0],
            MapKind::Array => FLAGS[1],
            _ => 0,
        };
        let entries = spec.max_entries.min(256);
        let entries = match spec.name {
            "EVENTS" => spec.max_entries,
            "PORT_FILTER" if abi.version < ADDRESSES_SINCE => ADDRESSES_START,
            "PORT_FILTER" => spec.max_entries,
            _ => entries,
        };
        let map_sizes = [key_size as u32, value_size as u32, entries];
        let map = sys::map_create(spec.kind as u32, map_sizes, flags).unwrap();
        let path = pins.path(PinKind::Maps, spec.name);
        sys::pin(map.as_fd(), &path).unwrap();
        if !matches!(spec.kind, MapKind::PerCpuArray | MapKind::RingBuf) {
            let [_, layout] = abi.types(spec.name).unwrap();
            let key = key(&abi, &spec);
            sys::map_update(map.as_fd(), &key, &value(&abi, layout)).unwrap();
        }
    }
    pin_text(&pins, text);
    abi
}

/// Pins what a build says of its maps.
fn pin_text(pins: &Pins, text: &str) {
    let map = sys::map_create(2, [4, text.len() as u32, 1], 0).unwrap();
    sys::map_update(map.as_fd(), &[0; 4], text.as_bytes()).unwrap();
    sys::pin(map.as_fd(), &pins.path(PinKind::Maps, "ABI")).unwrap();
}

/// Every field that both builds know is what it was; the others are zero.
fn check_converted(pins: &Pins, from: &Abi) {
    let ours = Abi::current();
    for spec in lasting() {
        if spec.kind == MapKind::PerCpuArray || from.sizes(spec.name).is_none() {
            continue;
        }
        let [_, layout] = ours.types(spec.name).unwrap();
        let map = any_map(pins, PinKind::Maps, spec.name);
        let mut found = vec![0; map.info.value_size as usize];
        let is_there = sys::map_lookup(map.fd(), &key(&ours, &spec), &mut found).unwrap();
        assert!(is_there, "{} has lost its entry", spec.name);
        let [_, old] = from.types(spec.name).unwrap();
        let known: Vec<&str> = from.fields(old).unwrap().0.iter().map(|it| it.0).collect();
        let expected = value(&ours, layout);
        for (name, offset, len) in ours.fields(layout).unwrap().0 {
            let expected = match known.contains(&name) {
                true => expected[offset..offset + len].to_vec(),
                false => vec![0; len],
            };
            assert_eq!(
                found[offset..offset + len],
                expected,
                "{} {name}",
                spec.name
            );
        }
    }
}

/// Where nobody has told of addresses, all are known: flows may be of any.
fn check_addresses_are_known(pins: &Pins, from: &Abi) {
    let map = any_map(pins, PinKind::Maps, "PORT_FILTER");
    assert_eq!(map.info.max_entries, PORT_FILTER_LEN);
    let expected = match from.version < ADDRESSES_SINCE {
        true => u64::MAX,
        false => 0,
    };
    for index in [ADDRESSES_START, PORT_FILTER_LEN - 1] {
        let mut found = [0; 8];
        assert!(sys::map_lookup(map.fd(), &index.to_ne_bytes(), &mut found).unwrap());
        assert_eq!(u64::from_ne_bytes(found), expected, "{index}");
    }
}

/// The golden dump of this version.
const OURS: &str = include_str!("../../docs/map-abi.txt");
/// Those of earlier versions, frozen.
const EARLIER: [&str; 2] = [
    include_str!("../../docs/abi/1.txt"),
    include_str!("../../docs/abi/2.txt"),
];

/// The dump of a successor that is made up: these types have one more field, at their beginning.
fn successor(text: &str) -> String {
    const LARGER: [(&str, usize); 6] = [
        ("Backend4", 4),
        ("Backend6", 4),
        ("Connection4", 4),
        ("Connection6", 4),
        ("AffinityEntry", 4),
        ("Config", 8),
    ];
    let (mut lines, mut by) = (Vec::new(), 0);
    for line in text.lines() {
        match *line.split_whitespace().collect::<Vec<_>>() {
            ["abi_version", version] => {
                let version: u32 = version.parse().unwrap();
                lines.push(format!("abi_version {}", version + 1));
            }
            [name, "size", size, "align", align] => {
                by = LARGER.iter().find(|it| it.0 == name).map_or(0, |it| it.1);
                let size: usize = size.parse().unwrap();
                lines.push(format!("{name} size {} align {align}", size + by));
                if by > 0 {
                    lines.push("0 made_up".to_owned());
                }
            }
            [offset, field] if offset.parse::<usize>().is_ok() => {
                let offset: usize = offset.parse().unwrap();
                lines.push(format!("{} {field}", offset + by));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

/// What an upgrade finds, and what a downgrade finds.
#[test]
fn maps_of_other_versions_are_converted() {
    rules(&["S-178"]);
    let earlier = EARLIER.map(str::to_owned).into_iter();
    for text in earlier.chain([successor(OURS)]) {
        let place = Place::enter();
        let theirs = pin_foreign(&place, &text);
        let pins = Pins::at(place.bpffs());
        let flows = any_map(&pins, PinKind::Maps, "FLOWS4");
        let (mut datapath, maps) = Datapath::load(&options(&place, sizes(1))).unwrap();
        check_converted(&pins, &theirs);
        check_addresses_are_known(&pins, &theirs);
        let told = Abi::read(&pins, PinKind::Maps).unwrap();
        assert_eq!(told, Some(Abi::current()));
        assert_eq!(maps.config().unwrap().abi_version, ABI_VERSION);
        // An old program that runs until it is swapped makes one more flow.
        let [key_layout, value_layout] = theirs.types("FLOWS4").unwrap();
        let (mut late, flow) = (value(&theirs, key_layout), value(&theirs, value_layout));
        late[0] ^= 1;
        flows.put(&late, &flow, Existing::Replaced).unwrap();
        datapath.finish_exchange().unwrap();
        let mut found = vec![0; size_of::<proxy_common::Connection<Addr4>>()];
        let ours = any_map(&pins, PinKind::Maps, "FLOWS4");
        assert!(sys::map_lookup(ours.fd(), &late, &mut found).unwrap());
        assert!(!pins.folder(PinKind::OldMaps).exists());
    }
}

/// A build that had fewer maps was upgraded, and the agent was killed between making the others and
/// telling of them.
#[test]
fn maps_that_the_text_does_not_tell_of_are_adopted() {
    const LATE: &str = "SOURCE_RANGES4";
    for factor in [1, 2] {
        let place = Place::enter();
        drop(Datapath::load(&options(&place, sizes(1))).unwrap());
        let pins = Pins::at(place.bpffs());
        let made = any_map(&pins, PinKind::Maps, LATE).info.id;
        let lines = OURS.lines().filter(|line| !line.contains(LATE));
        let text = lines.collect::<Vec<_>>().join("\n");
        pins.remove(PinKind::Maps, "ABI").unwrap();
        pin_text(&pins, &text);
        pins.remove(PinKind::Programs, "BUILD").unwrap();

        drop(Datapath::load(&options(&place, sizes(factor))).unwrap());
        let info = any_map(&pins, PinKind::Maps, LATE).info;
        assert_eq!(info.id == made, factor == 1);
        assert_eq!(info.max_entries, sizes(factor).source_ranges);
        let told = Abi::read(&pins, PinKind::Maps).unwrap();
        assert_eq!(told, Some(Abi::current()));
    }
}

#[test]
fn version_that_cannot_be_converted_is_refused_and_kept() {
    let place = Place::enter();
    let next = ABI_VERSION + 1;
    let oldest = format!("oldest_version {ABI_OLDEST}\n");
    let text = successor(OURS).replace(&oldest, &format!("oldest_version {next}\n"));
    pin_foreign(&place, &text);
    let before = content(&Pins::at(place.bpffs()));
    let error = Datapath::load(&options(&place, sizes(1))).unwrap_err();
    let version = format!("map ABI version {next}");
    assert!(error.to_string().contains(&version), "{error}");
    assert_eq!(content(&Pins::at(place.bpffs())), before);
}

#[test]
fn removed_pin_is_missed_and_the_others_are_kept() {
    let place = Place::enter();
    drop(Datapath::load(&options(&place, sizes(1))).unwrap());
    let pins = Pins::at(place.bpffs());
    pins.remove(PinKind::Maps, "FLOWS6").unwrap();
    let before = pins.names(PinKind::Maps);
    let error = Datapath::load(&options(&place, sizes(1))).unwrap_err();
    assert!(error.to_string().contains("FLOWS6 is missing"), "{error}");
    assert_eq!(pins.names(PinKind::Maps), before);
}

#[test]
fn pin_that_is_no_map_is_refused_and_kept() {
    let place = Place::enter();
    drop(Datapath::load(&options(&place, sizes(1))).unwrap());
    let pins = Pins::at(place.bpffs());
    let program = pins.open(PinKind::Programs, "connect4").unwrap().unwrap();
    pins.replace(PinKind::Maps, "SLOTS", program.as_fd())
        .unwrap();
    let error = Datapath::load(&options(&place, sizes(1))).unwrap_err();
    assert!(error.to_string().contains("SLOTS"), "{error}");
    let kept = pins.open(PinKind::Maps, "SLOTS").unwrap().unwrap();
    let ids = [kept.as_fd(), program.as_fd()].map(|fd| sys::object_id(fd).unwrap());
    assert_eq!(ids[0], ids[1]);
}

/// Fills one entry of everything that the agent writes, and of the flow tables.
fn fill(place: &Place) {
    let (_datapath, mut maps) = Datapath::load(&options(place, sizes(1))).unwrap();
    let frontend = FrontendKey {
        addr: Addr4::from_octets([10, 96, 0, 1]),
        port: Be16::new(80),
        protocol: 6,
        pad: 0,
    };
    maps.insert_frontend_id(&frontend, 63).unwrap();
    let element = Frontend {
        word: 7,
        key: frontend,
        pad: [],
    };
    maps.write_frontend(63, &element).unwrap();
    let backend = Backend {
        addr: Addr6::from_octets([9; 16]),
        port: Be16::new(8080),
        state: BackendState::Active as u8,
        flags: 1,
        generation: 5,
        service_port: 3,
    };
    maps.write_backend(63, &backend).unwrap();
    maps.write_slots(250, &[1, 2, 3]).unwrap();
    maps.write_config(&Config {
        abi_version: ABI_VERSION,
        hz: 250,
        ..bytemuck::Zeroable::zeroed()
    })
    .unwrap();
    let (pins, abi) = (Pins::at(place.bpffs()), Abi::current());
    for spec in catalog(&sizes(1)) {
        if matches!(spec.kind, MapKind::LruHash | MapKind::LpmTrie) {
            let [_, layout] = abi.types(spec.name).unwrap();
            let map = any_map(&pins, PinKind::Maps, spec.name);
            map.put(&key(&abi, &spec), &value(&abi, layout), Existing::Kept)
                .unwrap();
        }
    }
}

#[test]
fn raised_sizes_make_maps_grow_and_lowered_ones_do_nothing() {
    rules(&["S-178"]);
    let place = Place::enter();
    fill(&place);
    let pins = Pins::at(place.bpffs());
    let before = content(&pins);
    for (factor, capacity) in [(4, 256), (1, 256)] {
        let (mut datapath, maps) = Datapath::load(&options(&place, sizes(factor))).unwrap();
        assert_eq!(maps.capacity().frontends, capacity);
        assert_eq!(maps.capacity().slots, 4 * capacity);
        assert_eq!(content(&pins), before);
        datapath.finish_exchange().unwrap();
        assert!(!pins.folder(PinKind::OldMaps).exists());
        assert_eq!(content(&pins), before);
    }
}

/// An agent is killed between any two steps of an exchange.
#[test]
fn interrupted_exchange_is_finished_or_undone() {
    rules(&["S-178"]);
    let place = Place::enter();
    fill(&place);
    let pins = Pins::at(place.bpffs());
    let before = content(&pins);
    let grown = options(&place, sizes(2));

    // Before the folders change their names: what was made is made anew.
    pins.make_folder(PinKind::NextMaps).unwrap();
    let slots = any_map(&pins, PinKind::Maps, "SLOTS");
    pins.replace(PinKind::NextMaps, "FLOWS4", slots.fd())
        .unwrap();
    let (datapath, maps) = Datapath::load(&grown).unwrap();
    assert_eq!(
        (maps.capacity().frontends, content(&pins)),
        (128, before.clone())
    );
    assert!(!pins.folder(PinKind::NextMaps).exists());
    drop((datapath, maps));

    // Between the two names.
    pins.remove_folder(PinKind::NextMaps).unwrap();
    pins.rename_folder(PinKind::Maps, PinKind::NextMaps)
        .unwrap();
    assert!(pins.folder(PinKind::OldMaps).exists());
    let (datapath, maps) = Datapath::load(&grown).unwrap();
    assert_eq!(
        (maps.capacity().frontends, content(&pins)),
        (128, before.clone())
    );

    // Before the old maps are let go of.
    drop((datapath, maps));
    let (mut datapath, _maps) = Datapath::load(&grown).unwrap();
    datapath.finish_exchange().unwrap();
    assert!(!pins.folder(PinKind::OldMaps).exists());
    assert_eq!(content(&pins), before);
}
