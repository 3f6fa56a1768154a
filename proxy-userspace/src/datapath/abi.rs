//! The map ABI as text. It lies pinned beside the maps, so that every build knows what another one
//! has written there and can convert it: fields are told by their names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::AsFd as _;

use proxy_common::layout::LAYOUTS;
use proxy_common::{ABI_OLDEST, ABI_VERSION};

use super::catalog::{MapKind, MapSizes, MapSpec, catalog};
use super::pin::{PinError, PinKind, Pins};
use super::sys;

/// Name of the pinned map that holds the text.
pub const ABI_MAP: &str = "ABI";

/// Types that are not structures, with their sizes.
const PLAIN: [(&str, usize); 5] = [
    ("none", 0),
    ("u32", 4),
    ("u64", 8),
    ("Addr4", 4),
    ("Addr6", 16),
];

/// What one build writes into its maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Abi {
    /// Its version.
    pub version: u32,
    /// The oldest version that it can be converted from and to.
    pub oldest: u32,
    layouts: BTreeMap<String, Layout>,
    maps: BTreeMap<String, [String; 2]>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Layout {
    size: usize,
    fields: Vec<(String, usize)>,
}

/// Name, offset and length of fields.
pub type Fields<'a> = Vec<(&'a str, usize, usize)>;

/// What a map holds, of which one cannot be made the other.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConvertError {
    /// The other build says nothing of it.
    #[error("its layout is not known")]
    Unknown,
    /// A field has another size.
    #[error("the field {field} has {from} bytes there and {to} here")]
    Field {
        /// Which.
        field: String,
        /// Size in what is pinned.
        from: usize,
        /// Size in this build.
        to: usize,
    },
}

/// Makes values of one layout out of those of another. What is new is zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converter {
    size: usize,
    /// Source, destination and length of what is copied.
    parts: Vec<[usize; 3]>,
}

/// The ABI of this build as text; the first part is the golden dump docs/map-abi.txt.
pub fn text() -> String {
    let mut text = format!("abi_version {ABI_VERSION}\noldest_version {ABI_OLDEST}\n");
    // Writing to a string cannot fail.
    for layout in LAYOUTS {
        let (name, size, align) = (layout.name, layout.size, layout.align);
        let _ = writeln!(text, "\n{name} size {size} align {align}");
        for (field, offset) in layout.fields {
            let _ = writeln!(text, "  {offset:>3} {field}");
        }
    }
    text.push('\n');
    for spec in catalog(&MapSizes::default()) {
        let [key, value] = types(&spec);
        let _ = writeln!(text, "map {} {:?} {key} {value}", spec.name, spec.kind);
    }
    text
}

/// Names of a map's types as [`LAYOUTS`] has them: with the family, where there is one for each.
fn types(spec: &MapSpec) -> [String; 2] {
    let family = spec.name.chars().next_back().unwrap_or_default();
    spec.types.map(|name| {
        let of_family = format!("{name}{family}");
        let is_known = LAYOUTS.iter().any(|layout| layout.name == of_family)
            || PLAIN.iter().any(|(plain, _)| *plain == of_family);
        match is_known {
            true => of_family,
            false => name.to_owned(),
        }
    })
}

impl Abi {
    /// That of this build.
    pub fn current() -> Self {
        Self::parse(&text())
    }

    /// Reads a text; what it does not understand is left out.
    pub fn parse(text: &str) -> Self {
        let plain = |(name, size): (&str, usize)| {
            let fields = vec![(String::new(), 0)];
            (name.to_owned(), Layout { size, fields })
        };
        let mut abi = Self {
            version: 0,
            oldest: 0,
            layouts: PLAIN.map(plain).into(),
            maps: BTreeMap::new(),
        };
        let mut open = String::new();
        let number = |word: &str| word.parse().unwrap_or_default();
        for line in text.lines() {
            match *line.split_whitespace().collect::<Vec<_>>() {
                ["abi_version", version] => abi.version = number(version) as u32,
                ["oldest_version", version] => abi.oldest = number(version) as u32,
                ["map", name, _, key, value] => {
                    let types = [key, value].map(str::to_owned);
                    abi.maps.insert(name.to_owned(), types);
                }
                [name, "size", size, "align", _] => {
                    open = name.to_owned();
                    abi.layouts.entry(open.clone()).or_default().size = number(size);
                }
                [offset, field] => {
                    let layout = abi.layouts.entry(open.clone()).or_default();
                    layout.fields.push((field.to_owned(), number(offset)));
                }
                _ => {}
            }
        }
        abi
    }

    /// With the maps and layouts of another one that it does not tell of.
    pub fn completed(mut self, by: &Self) -> Self {
        for (name, layout) in &by.layouts {
            let ours = self.layouts.entry(name.clone());
            ours.or_insert_with(|| layout.clone());
        }
        for (name, types) in &by.maps {
            let ours = self.maps.entry(name.clone());
            ours.or_insert_with(|| types.clone());
        }
        self
    }

    /// Reads what lies beside pinned maps; `None` where nothing does.
    pub fn read(pins: &Pins, kind: PinKind) -> Result<Option<Self>, PinError> {
        let Some(map) = pins.open(kind, ABI_MAP)? else {
            return Ok(None);
        };
        let path = pins.path(kind, ABI_MAP);
        let failed = |source| PinError::Open {
            path: path.clone(),
            source,
        };
        let info = sys::map_info(map.as_fd()).map_err(failed)?;
        if (info.kind, info.key_size) != (MapKind::Array as u32, 4) {
            return Err(PinError::Stranger {
                path,
                found: format!("a map of type {}", info.kind),
                expected: "the description of the maps".to_owned(),
            });
        }
        let mut bytes = vec![0; info.value_size as usize];
        sys::map_lookup(map.as_fd(), &0_u32.to_ne_bytes(), &mut bytes).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(Some(Self::parse(text.trim_end_matches('\0'))))
    }

    /// Pins the text of this build beside the maps of `kind`, in place of another one.
    pub fn pin(pins: &Pins, kind: PinKind) -> Result<(), PinError> {
        let text = text();
        let failed = |source| PinError::Write {
            path: pins.path(kind, ABI_MAP),
            source,
        };
        let sizes = [4, text.len() as u32, 1];
        let map = sys::map_create(MapKind::Array as u32, sizes, 0).map_err(failed)?;
        sys::map_update(map.as_fd(), &0_u32.to_ne_bytes(), text.as_bytes()).map_err(failed)?;
        pins.replace(kind, ABI_MAP, map.as_fd())
    }

    /// True if the one can be made of the other, and back: neither is too old for the other.
    pub fn is_convertible(&self, other: &Self) -> bool {
        self.version != 0
            && other.version != 0
            && self.oldest <= other.version
            && other.oldest <= self.version
    }

    /// True if a map holds the same, byte by byte.
    pub fn is_alike(&self, other: &Self, map: &str) -> bool {
        let layouts = |abi: &Self| {
            let types = abi.maps.get(map)?;
            let [key, value] = types.each_ref().map(|name| abi.layouts.get(name).cloned());
            Some((key?, value?))
        };
        layouts(self) == layouts(other)
    }

    /// True if keys of a map are the same, byte by byte.
    pub fn has_keys_of(&self, other: &Self, map: &str) -> bool {
        let layout = |abi: &Self| abi.layouts.get(&abi.maps.get(map)?[0]).cloned();
        layout(self).is_some_and(|keys| layout(other) == Some(keys))
    }

    /// Names of its maps.
    pub fn maps(&self) -> impl Iterator<Item = &str> {
        self.maps.keys().map(String::as_str)
    }

    /// Names of the types of a map's keys and values.
    pub fn types(&self, map: &str) -> Option<[&str; 2]> {
        let types = self.maps.get(map)?;
        Some(types.each_ref().map(String::as_str))
    }

    /// Name, offset and length of each field of a type but padding, and the bytes of the whole.
    pub fn fields(&self, layout: &str) -> Option<(Fields<'_>, usize)> {
        let layout = self.layouts.get(layout)?;
        Some((layout.parts().collect(), layout.size))
    }

    /// Bytes of the keys and values of a map.
    pub fn sizes(&self, map: &str) -> Option<[usize; 2]> {
        let [key, value] = self.maps.get(map)?;
        Some([self.layouts.get(key)?.size, self.layouts.get(value)?.size])
    }

    /// How keys and values of a map of `from` become those of this ABI.
    pub fn converters(&self, from: &Self, map: &str) -> Result<[Converter; 2], ConvertError> {
        let unknown = || ConvertError::Unknown;
        let (ours, theirs) = (
            self.maps.get(map).ok_or_else(unknown)?,
            from.maps.get(map).ok_or_else(unknown)?,
        );
        let converter = |index: usize| {
            let ours = self.layouts.get(&ours[index]).ok_or_else(unknown)?;
            let theirs = from.layouts.get(&theirs[index]).ok_or_else(unknown)?;
            Converter::new(theirs, ours)
        };
        Ok([converter(0)?, converter(1)?])
    }
}

impl Layout {
    /// Offset and length of each field but padding. No layout has gaps, so a field ends where the
    /// next begins.
    fn parts(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let ends = self.fields.iter().skip(1).map(|(_, offset)| *offset);
        let fields = self.fields.iter().zip(ends.chain([self.size]));
        let parts = fields
            .map(|((name, offset), end)| (name.as_str(), *offset, end.saturating_sub(*offset)));
        parts.filter(|(name, _, _)| *name != "pad")
    }
}

impl Converter {
    fn new(from: &Layout, to: &Layout) -> Result<Self, ConvertError> {
        let known: BTreeMap<&str, (usize, usize)> = from
            .parts()
            .map(|(name, offset, len)| (name, (offset, len)))
            .collect();
        let mut parts = Vec::new();
        for (name, offset, len) in to.parts() {
            match known.get(name) {
                None => {}
                Some((source, found)) if *found == len => parts.push([*source, offset, len]),
                Some((_, found)) => {
                    return Err(ConvertError::Field {
                        field: name.to_owned(),
                        from: *found,
                        to: len,
                    });
                }
            }
        }
        Ok(Self {
            size: to.size,
            parts,
        })
    }

    /// The value in the other layout.
    pub fn convert(&self, from: &[u8]) -> Vec<u8> {
        let mut to = vec![0; self.size];
        for [source, offset, len] in &self.parts {
            to[*offset..offset + len].copy_from_slice(&from[*source..source + len]);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_tells_the_sizes_of_every_map() {
        let abi = Abi::current();
        for spec in catalog(&MapSizes::default()) {
            let expected = [spec.key_size as usize, spec.value_size as usize];
            assert_eq!(abi.sizes(spec.name), Some(expected), "{}", spec.name);
        }
    }

    #[test]
    fn fields_are_told_by_their_names() {
        let text = |version, fields: &str| {
            format!(
                "abi_version {version}\noldest_version 1\n\nThing size 8 align 4\n{fields}\n\
                 map THINGS Array u32 Thing\n"
            )
        };
        let old = Abi::parse(&text(1, "  0 gone\n  2 kept\n  4 moved"));
        let new = Abi::parse(&text(2, "  0 moved\n  4 kept\n  6 made"));
        assert!(old.is_convertible(&new) && new.is_convertible(&old));
        let [key, value] = new.converters(&old, "THINGS").unwrap();
        assert_eq!(key.convert(&[1, 2, 3, 4]), [1, 2, 3, 4]);
        assert_eq!(
            value.convert(&[1, 2, 3, 4, 5, 6, 7, 8]),
            [5, 6, 7, 8, 3, 4, 0, 0]
        );
        let other = Abi::parse(&text(3, "  0 moved\n  2 kept"));
        let error = ConvertError::Field {
            field: "moved".to_owned(),
            from: 4,
            to: 2,
        };
        assert_eq!(other.converters(&new, "THINGS"), Err(error));
        assert_eq!(new.converters(&old, "NONE"), Err(ConvertError::Unknown));
    }
}
