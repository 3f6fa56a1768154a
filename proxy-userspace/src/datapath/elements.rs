//! The elements of any map as bytes, many at a time: for copies from map to map.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};

use super::catalog::MapKind;
use super::mmap::MappedArray;
use super::sys::{self, BatchAttr, MapInfo};

const MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Elements that are asked for at once; a bucket of a hash must fit in.
const BATCH: usize = 4096;

/// Whether an entry may take the place of one with its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It does.
    Replaced,
    /// The one that is there stays.
    Kept,
}

/// A map of any type.
#[derive(Debug)]
pub struct AnyMap {
    fd: OwnedFd,
    /// Its type and sizes.
    pub info: MapInfo,
}

/// Keys and values, one behind the other.
type Entries = Vec<(Vec<u8>, Vec<u8>)>;

impl AnyMap {
    /// Asks the kernel for type and sizes.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    /// The map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// All entries; of an array those that are not zero. While programs write, an entry that
    /// comes or goes may be missing.
    pub fn entries(&self) -> io::Result<Entries> {
        match self.info.kind {
            kind if kind == MapKind::Hash as u32 || kind == MapKind::LruHash as u32 => {
                self.hash_entries()
            }
            kind if kind == MapKind::LpmTrie as u32 => self.trie_entries(),
            _ => self.array_entries(),
        }
    }

    /// How many entries a hash or trie has; of an array how many elements are not zero.
    pub fn count(&self) -> io::Result<usize> {
        match self.info.kind {
            kind if kind == MapKind::Hash as u32 || kind == MapKind::LruHash as u32 => {
                let mut all = 0;
                self.each_batch(|count, _, _| all += count)?;
                Ok(all)
            }
            _ => Ok(self.entries()?.len()),
        }
    }

    /// Writes one entry.
    pub fn put(&self, key: &[u8], value: &[u8], existing: Existing) -> io::Result<()> {
        match existing {
            Existing::Replaced => sys::map_update(self.fd(), key, value),
            Existing::Kept => match sys::map_add(self.fd(), key, value) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                other => other,
            },
        }
    }

    /// Copies the elements of an array of the same layout, which may be shorter than this one.
    pub fn copy_array(&self, from: &Self) -> io::Result<()> {
        let words = |map: &Self| {
            let stride = map.info.value_size.next_multiple_of(8);
            MappedArray::<u64>::new(map.fd(), map.info.max_entries * (stride / 8))
        };
        let (source, mut target) = (words(from)?, words(self)?);
        for index in 0..source.len().min(target.len()) {
            if let Some(word) = source.read(index).filter(|word| *word != 0)
                && !target.write(index, &word)
            {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
        Ok(())
    }

    /// Bytes that the kernel writes for one value.
    fn value_bytes(&self) -> io::Result<usize> {
        let size = self.info.value_size as usize;
        if self.info.kind != MapKind::PerCpuArray as u32 {
            return Ok(size);
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| source)?;
        Ok(size.next_multiple_of(8) * cpus)
    }

    fn array_entries(&self) -> io::Result<Entries> {
        let mut value = vec![0; self.value_bytes()?];
        let mut entries = Vec::new();
        for index in 0..self.info.max_entries {
            let key = index.to_ne_bytes();
            sys::map_lookup(self.fd(), &key, &mut value)?;
            if value.iter().any(|byte| *byte != 0) {
                entries.push((key.to_vec(), value.clone()));
            }
        }
        Ok(entries)
    }

    /// Only we write tries, so no key vanishes on the way.
    fn trie_entries(&self) -> io::Result<Entries> {
        let mut value = vec![0; self.info.value_size as usize];
        let mut next = vec![0; self.info.key_size as usize];
        let mut entries: Entries = Vec::new();
        while entries.len() < self.info.max_entries as usize {
            let current = entries.last().map(|(key, _)| key.as_slice());
            if !sys::map_next_key(self.fd(), current, &mut next)? {
                break;
            }
            sys::map_lookup(self.fd(), &next, &mut value)?;
            entries.push((next.clone(), value.clone()));
        }
        Ok(entries)
    }

    fn hash_entries(&self) -> io::Result<Entries> {
        let mut entries = Entries::new();
        self.each(|key, value| entries.push((key.to_vec(), value.to_vec())))?;
        Ok(entries)
    }

    /// Every entry of a hash, none of which is kept. While programs write, an entry that comes or
    /// goes may be missing.
    pub fn each(&self, mut take: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let [key_size, value_size] = [self.info.key_size, self.info.value_size];
        self.each_batch(|count, keys, values| {
            let keys = keys.chunks_exact(key_size as usize);
            let found = keys.zip(values.chunks_exact(value_size as usize));
            found.take(count).for_each(|(key, value)| take(key, value));
        })
    }

    /// Bucket by bucket: a walk by keys would begin anew where a program removes the key that it
    /// stands on.
    fn each_batch(&self, mut take: impl FnMut(usize, &[u8], &[u8])) -> io::Result<()> {
        let mut keys = vec![0; BATCH * self.info.key_size as usize];
        let mut values = vec![0; BATCH * self.info.value_size as usize];
        let mut token = None;
        loop {
            let (count, next) = lookup_batch(self.fd(), token, &mut keys, &mut values)?;
            take(count, &keys, &values);
            token = next;
            if token.is_none() {
                return Ok(());
            }
        }
    }
}

/// Reads up to [`BATCH`] entries of a hash into buffers of that many; returns how many, and where
/// to go on, unless that was all.
fn lookup_batch(
    map: BorrowedFd<'_>,
    token: Option<u64>,
    keys: &mut [u8],
    values: &mut [u8],
) -> io::Result<(usize, Option<u64>)> {
    let (token, mut next) = (token, 0_u64);
    let mut attr = BatchAttr {
        token: token
            .as_ref()
            .map_or(0, |token| std::ptr::from_ref(token) as u64),
        next_token: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: BATCH as u32,
        map: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: layout of MAP_LOOKUP_BATCH; the buffers hold `count` keys and values of the map's
    // sizes, and a token of a hash is four bytes.
    let done = unsafe { sys::bpf(MAP_LOOKUP_BATCH, &mut attr) };
    match done {
        Ok(_) => Ok((attr.count as usize, Some(next))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, None)),
        Err(error) => Err(error),
    }
}
