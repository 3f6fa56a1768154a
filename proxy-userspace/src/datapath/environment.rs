//! What the datapath must know of this machine: its clock, its network namespace, its ports.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::sys;

/// First and last port.
pub type PortRange = [u16; 2];

/// What kernels are built with, in ticks per second.
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// Kernel ticks per second. What an earlier agent found holds on: its maps are of the same kernel,
/// and at another rate every flow in them would be of another time.
pub fn hz(known: Option<u32>, jiffies: BorrowedFd<'_>) -> io::Result<u32> {
    match known {
        Some(hz) if RATES.contains(&hz) => Ok(hz),
        _ => measure_hz(jiffies),
    }
}

/// Kernel ticks per second, by two runs of the jiffies program a while apart: the nearest of
/// [`RATES`], which on a busy machine may be the wrong one.
pub fn measure_hz(jiffies: BorrowedFd<'_>) -> io::Result<u32> {
    const APART: Duration = Duration::from_millis(200);
    let first = run(jiffies)?;
    std::thread::sleep(APART);
    let second = run(jiffies)?;
    let elapsed = second.0.duration_since(first.0).as_secs_f64();
    let ticks = second.1.wrapping_sub(first.1) & 0x7fff_ffff;
    Ok(nearest_hz(f64::from(ticks) / elapsed))
}

/// The jiffies clock in seconds, as the programs read it at this moment.
pub fn now_secs(jiffies: BorrowedFd<'_>, hz: u32) -> io::Result<u32> {
    let uptime = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let (_, low) = run(jiffies)?;
    let ticks = full_ticks(Duration::from(uptime), hz, low);
    Ok((ticks / u64::from(hz.max(1))) as u32)
}

/// All bits of the jiffies clock, of which `low` is the low 31: the clock starts five minutes
/// before 32 bits overflow (INITIAL_JIFFIES) and has since run as long as the machine, or nearly.
fn full_ticks(uptime: Duration, hz: u32, low: u32) -> u64 {
    const LOW: u64 = 0x7fff_ffff;
    let start = (1 << 32) - 300 * u64::from(hz);
    let estimate = start + (uptime.as_secs_f64() * f64::from(hz)) as u64;
    let ahead = u64::from(low).wrapping_sub(estimate) & LOW;
    match ahead <= LOW / 2 {
        true => estimate + ahead,
        false => estimate - (LOW + 1 - ahead),
    }
}

fn run(jiffies: BorrowedFd<'_>) -> io::Result<(Instant, u32)> {
    let ticks = sys::test_run(jiffies, &[0; 64])?;
    Ok((Instant::now(), ticks))
}

fn nearest_hz(measured: f64) -> u32 {
    let distance = |hz: &u32| (f64::from(*hz).ln() - measured.max(1.0).ln()).abs();
    let nearest = RATES
        .into_iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or(250)
}

/// The cookie of this thread's network namespace (5.14), or 0 where the kernel does not tell:
/// host sockets cannot be told from pod sockets then.
pub fn netns_cookie() -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: a system call without addresses.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, 0) };
    if fd < 0 {
        return 0;
    }
    // SAFETY: the kernel has just returned this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    let pointer = std::ptr::from_mut(&mut cookie).cast();
    let fd = socket.as_raw_fd();
    // SAFETY: the kernel writes at most `len` bytes behind the pointer, the size of the cookie.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_NETNS_COOKIE, pointer, &raw mut len) };
    if result == 0 { cookie } else { 0 }
}

/// Checks what packets on their way through need, and keeps SNAT ports from local processes.
/// Nothing here is fatal: what is wrong is logged with what to do (P-13).
pub fn prepare(snat_ports: &[[u16; 2]; 2]) {
    let forwarding = [
        (
            "/proc/sys/net/ipv4/ip_forward",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            "/proc/sys/net/ipv6/conf/all/forwarding",
            "sysctl -w net.ipv6.conf.all.forwarding=1",
        ),
    ];
    for (path, remedy) in forwarding {
        if fs::read_to_string(path).is_ok_and(|text| text.trim() == "0") {
            tracing::warn!(
                path,
                remedy,
                "forwarding is off: packets to pods are dropped"
            );
        }
    }
    if let Ok(text) = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        && let Some(range) = parse_range(&text)
        && snat_ports.iter().any(|ports| overlaps(*ports, range))
    {
        tracing::warn!(
            local_ports = ?range,
            ?snat_ports,
            "SNAT ports overlap ip_local_port_range: choose others by --snat-ports"
        );
    }
    if let Err(error) = reserve(snat_ports) {
        tracing::warn!(%error, "SNAT ports not added to ip_local_reserved_ports");
    }
}

/// True if every port of a range is in a list as `ip_local_reserved_ports` has it.
pub fn is_reserved(reserved: &str, range: PortRange) -> bool {
    let ranges = reserved.split(',').filter_map(|text| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some([first.parse().ok()?, last.parse().ok()?])
    });
    let mut rest = vec![range];
    for other in ranges {
        rest = rest
            .into_iter()
            .flat_map(|part| match overlaps(part, other) {
                true => subtract(part, other).collect(),
                false => vec![part],
            })
            .collect();
    }
    rest.is_empty()
}

/// Where the kernel keeps ports that it gives to no socket by itself.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Gives SNAT ports back to the sockets of this namespace.
pub fn release(snat_ports: &[[u16; 2]; 2]) -> io::Result<()> {
    let reserved = fs::read_to_string(RESERVED)?;
    let rest = without_ranges(reserved.trim(), snat_ports);
    if rest == reserved.trim() {
        return Ok(());
    }
    // An empty line is the empty list; nothing at all would be no write.
    fs::write(RESERVED, rest + "\n")
}

fn reserve(snat_ports: &[[u16; 2]; 2]) -> io::Result<()> {
    let reserved = fs::read_to_string(RESERVED)?;
    let wanted = with_ranges(reserved.trim(), snat_ports);
    // The kernel joins and sorts the ranges, so that adding them twice is adding them once.
    if wanted == reserved.trim() {
        return Ok(());
    }
    fs::write(RESERVED, wanted)
}

fn with_ranges(reserved: &str, ranges: &[[u16; 2]; 2]) -> String {
    let ours = ranges.iter().filter(|range| range[0] != 0);
    let ours = ours.map(|[first, last]| format!("{first}-{last}"));
    let known: Vec<&str> = reserved
        .split(',')
        .filter(|text| !text.is_empty())
        .collect();
    let missing = ours.filter(|range| !known.contains(&range.as_str()));
    let all: Vec<String> = known
        .iter()
        .map(|text| (*text).to_owned())
        .chain(missing)
        .collect();
    all.join(",")
}

/// Takes `ranges` out of a list that the kernel may have joined them into.
fn without_ranges(reserved: &str, ranges: &[[u16; 2]; 2]) -> String {
    let mut rest = Vec::new();
    for text in reserved.split(',').filter(|text| !text.is_empty()) {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (Ok(first), Ok(last)) = (first.parse(), last.parse()) else {
            continue;
        };
        let mut parts = vec![[first, last]];
        for &range in ranges.iter().filter(|range| range[0] != 0) {
            parts = parts
                .into_iter()
                .flat_map(|part| subtract(part, range))
                .collect();
        }
        rest.extend(parts);
    }
    let shown = rest.into_iter().map(|[first, last]| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// What of `whole` lies below and above `part`.
fn subtract(whole: [u16; 2], part: [u16; 2]) -> impl Iterator<Item = [u16; 2]> {
    let below = [whole[0], whole[1].min(part[0].saturating_sub(1))];
    let above = [whole[0].max(part[1].saturating_add(1)), whole[1]];
    let below = (whole[0] < part[0]).then_some(below);
    let above = (part[1] < whole[1]).then_some(above);
    below.into_iter().chain(above)
}

/// Reads `ip_local_port_range`.
pub fn parse_range(text: &str) -> Option<PortRange> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
}

/// True if two ranges share a port.
pub fn overlaps(a: PortRange, b: PortRange) -> bool {
    a[0] <= b[1] && b[0] <= a[1]
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::time::Duration;

    use super::{full_ticks, hz, nearest_hz, overlaps, parse_range, with_ranges, without_ranges};

    #[test]
    fn the_clock_is_known_beyond_its_low_bits() {
        let start: u64 = (1 << 32) - 300 * 250;
        // Beyond the wrap of the low bits, and with clocks that differ by a minute.
        for uptime in [5_u64, 299, 301, 40_000_000] {
            for drift in [-60_i64, 0, 60].map(|secs| secs * 250) {
                let ticks = (start + uptime * 250).saturating_add_signed(drift);
                let low = (ticks & 0x7fff_ffff) as u32;
                assert_eq!(full_ticks(Duration::from_secs(uptime), 250, low), ticks);
            }
        }
    }

    /// No program: asking it fails.
    #[test]
    fn hz_of_an_earlier_agent_is_kept_and_nonsense_is_not() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(hz(Some(300), file.as_fd()).unwrap(), 300);
        for unknown in [None, Some(0), Some(299)] {
            assert!(hz(unknown, file.as_fd()).is_err());
        }
    }

    #[test]
    fn hz_is_the_nearest_that_kernels_are_built_with() {
        let measured = [99.0, 104.0, 248.0, 270.0, 296.0, 940.0, 1010.0];
        let rates = measured.map(nearest_hz);
        assert_eq!(rates, [100, 100, 250, 250, 300, 1000, 1000]);
    }

    #[test]
    fn reserved_ports_keep_what_others_reserved() {
        let ours = [[10000, 29999], [61000, 65535]];
        let all = with_ranges("8080,9000-9100", &ours);
        assert_eq!(all, "8080,9000-9100,10000-29999,61000-65535");
        assert_eq!(with_ranges(&all, &ours), all);
        assert_eq!(with_ranges("", &[[10000, 29999], [0, 0]]), "10000-29999");
    }

    #[test]
    fn released_ports_leave_what_others_reserved() {
        let ours = [[10000, 29999], [61000, 65535]];
        let all = with_ranges("8080,9000-9100", &ours);
        assert_eq!(without_ranges(&all, &ours), "8080,9000-9100");
        assert_eq!(without_ranges("10000-29999,61000-65535", &ours), "");
        // As the kernel joins neighbours.
        assert_eq!(without_ranges("9999-30000,65535", &ours), "9999,30000");
        assert_eq!(without_ranges("53", &[[10000, 29999], [0, 0]]), "53");
    }

    #[test]
    fn ranges_that_share_a_port_overlap() {
        assert_eq!(parse_range("32768\t60999\n"), Some([32768, 60999]));
        assert!(overlaps([10000, 32768], [32768, 60999]));
        assert!(!overlaps([10000, 29999], [32768, 60999]));
    }
}
