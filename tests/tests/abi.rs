//! The map ABI does not change unseen: every layout stands in `docs/map-abi.txt`.

use std::fmt::Write;
use std::path::Path;

use proxy_common::ABI_VERSION;
use proxy_common::layout::LAYOUTS;

#[test]
fn map_abi_is_the_documented_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/map-abi.txt");
    let actual = dump();
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

fn dump() -> String {
    let mut text = format!("abi_version {ABI_VERSION}\n");
    for layout in LAYOUTS {
        writeln!(
            text,
            "\n{} size {} align {}",
            layout.name, layout.size, layout.align
        )
        .expect("a string takes all");
        for (field, offset) in layout.fields {
            writeln!(text, "  {offset:>3} {field}").expect("a string takes all");
        }
    }
    text
}
