//! Every program of the BPF object passes the running kernel's verifier.

use aya::EbpfLoader;
use aya::programs::Program;

/// The BPF object that `cargo xtask build-ebpf` leaves.
fn object() -> Vec<u8> {
    let path = std::env::var("SHUNT_EBPF_OBJECT")
        .unwrap_or_else(|_| format!("{}/../target/bpf/shunt-ebpf.o", env!("CARGO_MANIFEST_DIR")));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; run build-ebpf"))
}

#[test]
fn every_program_passes_the_verifier() {
    let mut ebpf = EbpfLoader::new()
        .load(&object())
        .expect("the object's maps and BTF");
    let mut names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_string()).collect();
    names.sort();
    assert_eq!(names.len(), 13, "{names:?}");
    for name in names {
        let program = ebpf.program_mut(&name).expect("just listed");
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) => program.load(),
            other => panic!("{name}: unexpected type {:?}", other.prog_type()),
        };
        if let Err(error) = loaded {
            let mut text = format!("{error:?}");
            text = text.replace("\\n", "\n");
            let tail: Vec<&str> = text.lines().rev().take(60).collect();
            panic!(
                "{name}: {}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let info = program.info().expect("program info");
        println!(
            "{name}: {:?} instructions explored",
            info.verified_instruction_count()
        );
    }
}
