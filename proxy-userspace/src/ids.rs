//! What is allocated: ids of frontends and backends, and regions of SLOTS. What is given back is
//! handed out again only after [`GRACE`], when no program can still be reading it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// How long an id or a region rests between two uses. A program that read it has ended long since.
pub const GRACE: Duration = Duration::from_secs(1);

/// Allocator of the ids `1..limit`.
#[derive(Debug)]
pub struct Ids {
    /// Ids from here on were never used.
    next: u32,
    limit: u32,
    free: BTreeSet<u32>,
    resting: VecDeque<(Instant, u32)>,
}

impl Ids {
    /// All free.
    pub fn new(limit: u32) -> Self {
        Self {
            next: 1,
            limit,
            free: BTreeSet::new(),
            resting: VecDeque::new(),
        }
    }

    /// Free but for `used`.
    pub fn restored(limit: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        let free = (1..next).filter(|id| !used.contains(id)).collect();
        Self {
            next,
            limit,
            free,
            resting: VecDeque::new(),
        }
    }

    /// How many can be handed out at once.
    pub fn available(&self) -> usize {
        self.limit.saturating_sub(self.next) as usize + self.free.len()
    }

    /// The lowest free id.
    pub fn allocate(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        let id = self.next;
        self.next = (id < self.limit).then_some(id + 1)?;
        Some(id)
    }

    /// Gives back an id that programs never saw.
    pub fn release_unused(&mut self, id: u32) {
        self.free.insert(id);
    }

    /// Gives back an id; free again after [`GRACE`].
    pub fn release(&mut self, id: u32, now: Instant) {
        self.resting.push_back((now + GRACE, id));
    }

    /// Frees what has rested long enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some((_, id)) = self.resting.pop_front_if(|(at, _)| *at <= now) {
            self.free.insert(id);
        }
    }

    /// Lets rest what rests in `other`.
    pub fn rest_like(&mut self, other: Self) {
        for (at, id) in other.resting {
            while self.next <= id {
                self.free.insert(self.next);
                self.next += 1;
            }
            if self.free.remove(&id) {
                self.resting.push_back((at, id));
            }
        }
    }

    /// When [`Ids::wake`] has work.
    pub fn next_wake(&self) -> Option<Instant> {
        self.resting.front().map(|(at, _)| *at)
    }
}

/// A stretch of SLOTS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Region {
    /// Index of the first element.
    pub start: u32,
    /// Elements.
    pub len: u32,
}

/// Best-fit allocator of stretches of `1..limit`.
#[derive(Debug)]
pub struct Regions {
    /// Free stretches by start; neighbours are always joined.
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    resting: VecDeque<(Instant, Region)>,
}

impl Regions {
    /// All free but element 0.
    pub fn new(limit: u32) -> Self {
        let mut regions = Self {
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
            resting: VecDeque::new(),
        };
        regions.insert(Region {
            start: 1,
            len: limit.saturating_sub(1),
        });
        regions
    }

    /// A stretch of `len` elements.
    pub fn allocate(&mut self, len: u32) -> Option<Region> {
        let &(found, start) = self.by_len.range((len, 0)..).next()?;
        self.remove(Region { start, len: found });
        self.insert(Region {
            start: start + len,
            len: found - len,
        });
        Some(Region { start, len })
    }

    /// Lets rest what rests in `other`.
    pub fn rest_like(&mut self, other: Self) {
        for (at, region) in other.resting {
            if self.claim(region) {
                self.resting.push_back((at, region));
            }
        }
    }

    /// Takes exactly this stretch out (restore); false if any of it is taken.
    #[must_use]
    pub fn claim(&mut self, region: Region) -> bool {
        let Some((&start, &len)) = self.by_start.range(..=region.start).next_back() else {
            return false;
        };
        let Some(end) = region.start.checked_add(region.len) else {
            return false;
        };
        if region.len == 0 || end > start + len {
            return false;
        }
        self.remove(Region { start, len });
        self.insert(Region {
            start,
            len: region.start - start,
        });
        self.insert(Region {
            start: end,
            len: start + len - end,
        });
        true
    }

    /// Gives back a region that was never published.
    pub fn release_unused(&mut self, region: Region) {
        let mut whole = region;
        if let Some((&start, &len)) = self.by_start.range(..region.start).next_back()
            && start + len == region.start
        {
            self.remove(Region { start, len });
            whole = Region {
                start,
                len: len + whole.len,
            };
        }
        let end = whole.start + whole.len;
        if let Some(&len) = self.by_start.get(&end) {
            self.remove(Region { start: end, len });
            whole.len += len;
        }
        self.insert(whole);
    }

    /// Gives back a region; free again after [`GRACE`].
    pub fn release(&mut self, region: Region, now: Instant) {
        self.resting.push_back((now + GRACE, region));
    }

    /// Frees what has rested long enough.
    pub fn wake(&mut self, now: Instant) {
        while let Some((_, region)) = self.resting.pop_front_if(|(at, _)| *at <= now) {
            self.release_unused(region);
        }
    }

    /// When [`Regions::wake`] has work.
    pub fn next_wake(&self) -> Option<Instant> {
        self.resting.front().map(|(at, _)| *at)
    }

    fn insert(&mut self, region: Region) {
        if region.len > 0 {
            self.by_start.insert(region.start, region.len);
            self.by_len.insert((region.len, region.start));
        }
    }

    fn remove(&mut self, region: Region) {
        self.by_start.remove(&region.start);
        self.by_len.remove(&(region.len, region.start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_rest_before_they_are_used_again() {
        let start = Instant::now();
        let mut ids = Ids::new(3);
        assert_eq!(
            (ids.allocate(), ids.allocate(), ids.allocate()),
            (Some(1), Some(2), None)
        );
        ids.release(1, start);
        ids.wake(start + GRACE / 2);
        assert_eq!(ids.allocate(), None);
        ids.wake(start + GRACE);
        assert_eq!(ids.allocate(), Some(1));
    }

    #[test]
    fn restored_ids_fill_the_gaps_first() {
        let mut ids = Ids::restored(8, &BTreeSet::from([2, 4]));
        assert_eq!(
            [ids.allocate(), ids.allocate(), ids.allocate()],
            [Some(1), Some(3), Some(5)]
        );
    }

    #[test]
    fn regions_join_again() {
        let mut regions = Regions::new(11);
        let parts: Vec<_> = (0..5).map(|_| regions.allocate(2).unwrap()).collect();
        assert_eq!(regions.allocate(1), None);
        for part in [parts[1], parts[3], parts[0], parts[4], parts[2]] {
            regions.release_unused(part);
        }
        assert_eq!(regions.allocate(10), Some(Region { start: 1, len: 10 }));
    }

    #[test]
    fn claimed_regions_do_not_overlap() {
        let mut regions = Regions::new(11);
        assert!(regions.claim(Region { start: 4, len: 3 }));
        assert!(!regions.claim(Region { start: 6, len: 1 }));
        assert!(!regions.claim(Region { start: 3, len: 2 }));
        assert!(!regions.claim(Region { start: 10, len: 2 }));
        assert!(regions.claim(Region { start: 1, len: 3 }));
    }
}
