//! The map ABI does not change unseen: every layout stands in `docs/map-abi.txt`, and versions that
//! nodes may run in `docs/abi`, where none is changed any more.

use std::path::Path;

use proxy_userspace::datapath::abi::{self, Abi};

#[test]
fn map_abi_is_the_documented_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/map-abi.txt");
    let actual = abi::text();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&file, &actual).expect("docs is writable");
    }
    let documented = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        documented == actual,
        "the map ABI differs from docs/map-abi.txt. A changed layout of a map that agents adopt \
         needs another ABI_VERSION; then run this test with UPDATE_EXPECT=1. It is:\n{actual}"
    );
}

#[test]
fn every_version_since_the_oldest_can_be_converted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/abi");
    let ours = Abi::current();
    let mut versions = Vec::new();
    for entry in std::fs::read_dir(&folder).expect("docs/abi is there") {
        let path = entry.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let theirs = Abi::parse(&text);
        let name = format!("{}.txt", theirs.version);
        assert_eq!(path.file_name(), Some(name.as_ref()));
        versions.push(theirs.version);
        if theirs.version < proxy_common::ABI_OLDEST {
            continue;
        }
        assert!(ours.is_convertible(&theirs), "{name}");
        let ours_too = |map: &&str| ours.sizes(map).is_some();
        for map in theirs.maps().filter(ours_too) {
            for (from, to) in [(&theirs, &ours), (&ours, &theirs)] {
                let converters = to.converters(from, map);
                assert!(converters.is_ok(), "{name}: {map}: {converters:?}");
            }
        }
    }
    assert!(versions.contains(&proxy_common::ABI_OLDEST), "{versions:?}");
}
