//! Kernels of other Debian releases: their packages, downloaded and unpacked below `target/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::command;
use crate::progress;
use crate::setup;

/// An unpacked kernel.
pub struct Image {
    /// The kernel to boot.
    pub vmlinuz: PathBuf,
    /// Its release.
    pub release: String,
    /// The folder that holds `lib/modules/RELEASE`.
    pub root: PathBuf,
}

/// Downloads and unpacks a kernel, unless that was done before.
pub fn kernel(kernel: Kernel) -> Result<Image> {
    let (suite, prefix) = match kernel {
        Kernel::V5_10 => ("bullseye", "linux-image-5.10."),
        Kernel::V6_1 => ("bookworm", "linux-image-6.1."),
        Kernel::V6_12 => ("trixie", "linux-image-6.12."),
        Kernel::Host => bail!("the running kernel needs no package"),
    };
    let folder = command::target(&format!("kernels/{suite}"));
    let root = folder.join("root");
    if let Some(image) = unpacked(&root) {
        return Ok(image);
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let archive = Archive::of(suite, &folder)?;
    let package = archive.newest(prefix)?;
    let what = format!("downloading Debian's {package}");
    progress::long(
        &what,
        "kernel-download",
        archive
            .apt_get()
            .args(["download", &package])
            .current_dir(&folder),
    )?;
    let deb = fs::read_dir(&folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|found| found == "deb"));
    let deb = deb.context("apt-get downloaded no package")?;
    let unpack = folder.join("unpacking");
    let _ = fs::remove_dir_all(&unpack);
    command::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&deb)
            .arg(&unpack),
    )?;
    fs::remove_file(&deb).context("removing the package")?;
    // From Debian 13 on, modules lie where /lib leads to on an installed system.
    if !unpack.join("lib").exists() {
        fs::rename(unpack.join("usr/lib"), unpack.join("lib")).context("moving the modules")?;
    }
    let release = release_of(&unpack).context("the package holds no kernel")?;
    command::run(Command::new("depmod").arg("-b").arg(&unpack).arg(&release))?;
    // Last, so that an interrupted run leaves nothing that looks whole.
    fs::rename(&unpack, &root).context("moving the kernel into place")?;
    unpacked(&root).context("the package holds no kernel")
}

fn unpacked(root: &Path) -> Option<Image> {
    let release = release_of(root)?;
    Some(Image {
        vmlinuz: root.join(format!("boot/vmlinuz-{release}")),
        root: root.to_owned(),
        release,
    })
}

fn release_of(root: &Path) -> Option<String> {
    let entries = fs::read_dir(root.join("boot")).ok()?;
    entries.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix("vmlinuz-")?.to_owned())
    })
}

/// Debian's package archive in another release, with apt's state of its own.
struct Archive {
    options: Vec<String>,
}

impl Archive {
    /// The archive that this machine uses, for `suite`.
    fn of(suite: &str, folder: &Path) -> Result<Self> {
        setup::package_lists()?;
        let format = "$(REPO_URI)";
        let targets = ["indextargets", "--format", format, "Created-By: Packages"];
        let origin = ["Origin: Debian", "Label: Debian"];
        let uri = command::first_line("apt-get", &[&targets[..], &origin[..]].concat());
        let uri = uri.context("apt knows no Debian archive to fetch kernels from")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let list = folder.join("sources.list");
        fs::write(
            &list,
            format!("deb [signed-by={keys}] {uri} {suite} main\n"),
        )
        .with_context(|| format!("writing {}", list.display()))?;
        for name in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(folder.join(name)).context("making apt's folders")?;
        }
        let at = |name: &str| folder.join(name).display().to_string();
        let options = [
            format!("Dir::Etc::SourceList={}", list.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::Cache::Archives={}", at("archives")),
            format!("Dir::Cache::PkgCache={}", at("pkgcache.bin")),
            format!("Dir::Cache::SrcPkgCache={}", at("srcpkgcache.bin")),
            // Past releases are not signed anew.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
        ];
        let archive = Self {
            options: options
                .into_iter()
                .flat_map(|option| ["-o".to_owned(), option])
                .collect(),
        };
        let what = format!("reading Debian's package lists of {suite}");
        progress::long(&what, "kernel-lists", archive.apt_get().arg("update"))?;
        Ok(archive)
    }

    fn apt_get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.args(&self.options);
        command
    }

    /// The newest plain kernel whose name begins so.
    fn newest(&self, prefix: &str) -> Result<String> {
        let mut arguments: Vec<&str> = self.options.iter().map(String::as_str).collect();
        arguments.extend(["pkgnames", prefix]);
        let names = command::output("apt-cache", &arguments).unwrap_or_default();
        let newest = names
            .lines()
            .filter_map(|name| {
                let version = name.strip_prefix("linux-image-")?.strip_suffix("-amd64")?;
                let is_plain = !["cloud", "rt", "unsigned"]
                    .iter()
                    .any(|kind| version.contains(kind));
                is_plain.then(|| (numbers(version), name))
            })
            .max();
        let (_, name) = newest.with_context(|| format!("the archive has no {prefix}*-amd64"))?;
        Ok(name.to_owned())
    }
}

/// The numbers of a version, to compare by.
fn numbers(version: &str) -> Vec<u64> {
    let digits = version.split(|c: char| !c.is_ascii_digit());
    digits.filter_map(|word| word.parse().ok()).collect()
}
