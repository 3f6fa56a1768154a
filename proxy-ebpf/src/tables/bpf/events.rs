//! What programs tell monitors.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, RingBuf};
use proxy_common::{Counter, EVENTS_SIZE, Event, Monitor};

use super::count;

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_SIZE, 0);
#[map]
static MONITORS: Array<Monitor> = Array::with_max_entries(1, 0);

/// What is to be told of.
#[inline(always)]
pub fn monitor() -> Option<Monitor> {
    MONITORS.get(0).copied()
}

/// Tells, with the time of now. The event is made where it is to be read: the stack has no room.
#[inline(always)]
pub fn tell(event: &Event) {
    let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
        count(Counter::EventLost);
        return;
    };
    entry.write(Event {
        // SAFETY: the helper has no arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        ..*event
    });
    entry.submit(0);
}
