//! The map ABI does not change unseen: every layout stands in `docs/map-abi.txt`.

use std::path::Path;

use proxy_userspace::datapath::abi;

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
