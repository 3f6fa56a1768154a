//! The initramfs: busybox, the kernel's network modules, the test programs with their libraries,
//! and an init that runs them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::package::Image;
use super::programs::Programs;
use crate::command;
use crate::progress;

/// What init prints before a test, with its name.
pub const BEGIN: &str = "@begin";
/// What it prints behind it, with name and exit status.
pub const END: &str = "@end";

/// Folders below `lib/modules/RELEASE/kernel` that are taken whole.
const MODULES: [&str; 4] = ["net", "crypto", "lib", "arch/x86/crypto"];
/// Drivers below `drivers/net`.
const DRIVERS: [&str; 8] = [
    "veth", "tun", "dummy", "vxlan", "bonding", "ifb", "macvlan", "ipvlan",
];

/// Loaded at the start: a module that registers itself with every network namespace waits for those
/// that are being removed, and so would a test in its midst.
const LOADED: [&str; 5] = ["8021q", "bonding", "dummy", "sch_netem", "sctp"];

/// Makes `target/kernels/RELEASE.cpio`.
pub fn initramfs(image: &Image, programs: &Programs) -> Result<PathBuf> {
    progress::say(&format!("{}: making the initramfs", image.release));
    let root = command::target(&format!("kernels/{}.root", image.release));
    let _ = fs::remove_dir_all(&root);
    for folder in [
        "bin", "sbin", "proc", "sys", "dev", "run", "tmp", "root", "etc",
    ] {
        fs::create_dir_all(root.join(folder)).context("making the initramfs")?;
    }
    let busybox = command::which("busybox").context("no busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).context("linking the shell")?;
    for file in programs.files_beside()? {
        copy(&file, &below(&root, &file))?;
    }
    for (_, test) in &programs.tests {
        strip(test, &below(&root, test))?;
    }
    for program in [&programs.agent, &programs.other_agent, &programs.probe] {
        strip(program, &below(&root, program))?;
    }
    copy(&programs.object, &below(&root, &programs.object))?;
    for folder in ["tests/explain", "tests/scenarios"] {
        let folder = command::root().join(folder);
        copy_tree(&folder, &below(&root, &folder))?;
    }
    modules(image, &root)?;
    let init = root.join("init");
    fs::write(&init, script(programs)).context("writing init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("writing init")?;
    let archive = command::target(&format!("kernels/{}.cpio", image.release));
    let pack = "find . -print0 | cpio --null --create --format=newc --quiet > \"$0\"";
    command::run(
        Command::new("sh")
            .args(["-c", pack])
            .arg(&archive)
            .current_dir(&root),
    )?;
    fs::remove_dir_all(&root).context("removing the initramfs' folder")?;
    Ok(archive)
}

/// Where a file of this machine lies in the guest: at the same path.
fn below(root: &Path, file: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").unwrap_or(file))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file in a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, to).map(drop))
        .with_context(|| format!("copying {}", from.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_tree(&entry.path(), &to)?,
            false => copy(&entry.path(), &to)?,
        }
    }
    Ok(())
}

/// Copies a program without what only a debugger reads.
fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file in a folder")?)?;
    command::run(
        Command::new("objcopy")
            .arg("--strip-debug")
            .arg(from)
            .arg(to),
    )
}

fn modules(image: &Image, root: &Path) -> Result<()> {
    let at = Path::new("lib/modules").join(&image.release);
    let (from, to) = (image.root.join(&at), root.join(&at));
    for folder in MODULES {
        let folder = Path::new("kernel").join(folder);
        copy_tree(&from.join(&folder), &to.join(&folder))?;
    }
    let drivers = Path::new("kernel/drivers/net");
    for name in DRIVERS {
        let folder = drivers.join(name);
        let (in_folder, alone) = (from.join(&folder), format!("{name}.ko"));
        if in_folder.is_dir() {
            copy_tree(&in_folder, &to.join(&folder))?;
        }
        for entry in fs::read_dir(from.join(drivers))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(&alone) {
                copy(&entry.path(), &to.join(drivers).join(entry.file_name()))?;
            }
        }
    }
    for name in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        copy(&from.join(name), &to.join(name))?;
    }
    command::run(
        Command::new("depmod")
            .arg("-b")
            .arg(root)
            .arg(&image.release),
    )
}

/// The guest's first program.
fn script(programs: &Programs) -> String {
    let mut text = String::from(
        "#!/bin/sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         ip link set lo up\n\
         echo 1 > /proc/sys/kernel/panic\n\
         echo\n\
         echo \"@release $(uname -r)\"\n",
    );
    if let Some(modprobe) = command::which("modprobe") {
        // The kernel loads what a device or rule needs.
        text += &format!("echo {} > /proc/sys/kernel/modprobe\n", modprobe.display());
        text += &format!("modprobe -a {}\n", LOADED.join(" "));
    }
    let (agent, object) = (programs.agent.display(), programs.object.display());
    let other = programs.other_agent.display();
    text += &format!("export SHUNT_BIN={agent} SHUNT_OTHER_BIN={other}\n");
    text += &format!("export SHUNT_EBPF_OBJECT={object}\n");
    for (name, path) in &programs.tests {
        let path = path.display();
        text += &format!(
            "echo \"{BEGIN} {name}\"\n\
             {path} --test-threads=1 --nocapture 2>&1\n\
             echo \"{END} {name} $?\"\n"
        );
    }
    text + "poweroff -f\n"
}
