//! The header of a safetensors file, read with distrust.

use crate::error::FormatError;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// The largest header that the safetensors library itself accepts.
pub(super) const LARGEST_HEADER_BYTES: u64 = 100_000_000;

/// The element types that this program reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum ElementType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    U32,
    U8,
    Bool,
}

impl ElementType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            ElementType::F64 | ElementType::I64 => 8,
            ElementType::F32 | ElementType::I32 | ElementType::U32 => 4,
            ElementType::F16 | ElementType::BF16 => 2,
            ElementType::U8 | ElementType::Bool => 1,
        }
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        match self {
            ElementType::F64 => "F64",
            ElementType::F32 => "F32",
            ElementType::F16 => "F16",
            ElementType::BF16 => "BF16",
            ElementType::I64 => "I64",
            ElementType::I32 => "I32",
            ElementType::U32 => "U32",
            ElementType::U8 => "U8",
            ElementType::Bool => "BOOL",
        }
    }

    fn from_name(name: &str) -> Option<ElementType> {
        Some(match name {
            "F64" => ElementType::F64,
            "F32" => ElementType::F32,
            "F16" => ElementType::F16,
            "BF16" => ElementType::BF16,
            "I64" => ElementType::I64,
            "I32" => ElementType::I32,
            "U32" => ElementType::U32,
            "U8" => ElementType::U8,
            "BOOL" => ElementType::Bool,
            _ => return None,
        })
    }
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    /// `None` for an element type that this program does not know.
    pub(super) element: Option<ElementType>,
    /// The type's name as the file spells it.
    pub(super) element_name: String,
    pub(super) shape: Vec<usize>,
    /// Position in the file of the first byte.
    pub(super) start: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// The header's JSON as a list, because a map would hide duplicate names.
struct RawHeader {
    tensors: Vec<(String, RawEntry)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = RawHeader;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader { tensors: Vec::new(), metadata: BTreeMap::new() };
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<Option<BTreeMap<String, String>>>()?.unwrap_or_default();
                    } else {
                        header.tensors.push((name, map.next_value()?));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(List)
    }
}

/// Parses the JSON of a header.
///
/// `data_start` is where the data begins in the file, `file_bytes` the file's length.
pub(super) fn parse(json: &[u8], data_start: u64, file_bytes: u64, path: &Path) -> Result<Header, FormatError> {
    let raw: RawHeader = serde_json::from_slice(json)
        .map_err(|e| FormatError::damaged(path, format!("its header is no tensor list: {e}")))?;
    let data_bytes = file_bytes - data_start;

    let mut spans = Vec::with_capacity(raw.tensors.len());
    let mut tensors = BTreeMap::new();
    for (name, entry) in raw.tensors {
        let [begin, end] = entry.data_offsets;
        if begin > end {
            return Err(FormatError::damaged(path, format!("tensor {name:?} begins at {begin} and ends at {end}")));
        }
        if end > data_bytes {
            return Err(FormatError::damaged(
                path,
                format!("it is cut off: tensor {name:?} ends at byte {end} of {data_bytes} bytes of data"),
            ));
        }
        let element = ElementType::from_name(&entry.dtype);
        let shape = entry.shape.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<Vec<usize>>>();
        let elements = entry.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n));
        let (Some(shape), Some(elements)) = (shape, elements) else {
            return Err(FormatError::damaged(
                path,
                format!("tensor {name:?} has the impossible shape {:?}", entry.shape),
            ));
        };
        if let Some(element) = element
            && elements.checked_mul(element.bytes() as u64) != Some(end - begin)
        {
            return Err(FormatError::damaged(
                path,
                format!("tensor {name:?} of shape {:?} in {} has {} bytes", entry.shape, entry.dtype, end - begin),
            ));
        }
        spans.push((begin, end, name.clone()));
        let entry = Entry { element, element_name: entry.dtype, shape, start: data_start + begin, bytes: end - begin };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(FormatError::damaged(path, format!("it lists tensor {name:?} twice")));
        }
    }

    // The format has neither holes nor overlaps; a file that does may smuggle
    // one tensor under two names.
    spans.sort();
    let mut expected = 0;
    for (begin, end, name) in &spans {
        if *begin != expected {
            return Err(FormatError::damaged(
                path,
                format!("tensor {name:?} begins at byte {begin}, expected {expected}"),
            ));
        }
        expected = *end;
    }
    if expected != data_bytes {
        return Err(FormatError::damaged(
            path,
            format!("its tensors end at byte {expected} of {data_bytes} bytes of data"),
        ));
    }
    debug_assert_eq!(spans.iter().map(|s| &s.2).collect::<HashSet<_>>().len(), tensors.len());
    Ok(Header { tensors, metadata: raw.metadata })
}
