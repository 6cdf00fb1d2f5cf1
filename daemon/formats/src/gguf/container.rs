//! The container: metadata and the list of tensors, read with distrust.
//!
//! Every length in the file is checked against the bytes that are left before
//! anything is allocated or skipped for it.

use crate::error::FormatError;
use crate::files;
use crate::tensors::StoredType;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"GGUF";
/// Keys are short by the format's own rule (at most 65,535 bytes).
const LONGEST_KEY: u64 = 65_535;
const MOST_DIMENSIONS: u32 = 4;
/// Far above any vocabulary; bounds what a hostile list can take of memory.
const MOST_ELEMENTS: u64 = 1 << 24;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Bools(Vec<bool>),
}

/// One tensor: ggml's dimensions, fastest first, and where its data is.
#[derive(Debug, Clone)]
pub(crate) struct Tensor {
    /// Reversed to row-major.
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: StoredType,
    /// Position in the file.
    pub(crate) start: u64,
    pub(crate) bytes: u64,
}

impl Tensor {
    /// Length of a row: the last dimension.
    pub(crate) fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// An open GGUF file.
#[derive(Debug)]
pub(crate) struct GgufFile {
    pub(crate) path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

impl GgufFile {
    pub(crate) fn open(path: &Path) -> Result<GgufFile, FormatError> {
        let (file, length) = files::open(path)?;
        let clone = file.try_clone().map_err(|e| FormatError::io("open", path, e))?;
        let mut parser = Parser { reader: BufReader::with_capacity(1 << 20, clone), position: 0, length, path };
        let (metadata, tensors) = parser.parse()?;
        Ok(GgufFile { path: path.to_path_buf(), file, metadata, tensors })
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), FormatError> {
        files::read_exact_at(&self.file, buffer, offset).map_err(|e| FormatError::io("read", &self.path, e))
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    fn wrong(&self, key: &str, expected: &str, got: &Value) -> FormatError {
        let got = match got {
            Value::Texts(list) => format!("a list of {} strings", list.len()),
            Value::Integers(list) => format!("a list of {} integers", list.len()),
            Value::Floats(list) => format!("a list of {} numbers", list.len()),
            Value::Bools(list) => format!("a list of {} booleans", list.len()),
            other => format!("{other:?}"),
        };
        FormatError::setting(&self.path, key, expected, got)
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// A whole number, of whatever width and sign the writer chose.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<u64>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Unsigned(x)) => Ok(Some(*x)),
            Some(Value::Signed(x)) if *x >= 0 => Ok(Some(*x as u64)),
            Some(other) => Err(self.wrong(key, "a whole number", other)),
        }
    }

    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x)),
            Some(Value::Unsigned(x)) => Ok(Some(*x as f64)),
            Some(Value::Signed(x)) => Ok(Some(*x as f64)),
            Some(other) => Err(self.wrong(key, "a number", other)),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(x)) => Ok(Some(*x)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Texts(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, "a list of strings", other)),
        }
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i64]>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Integers(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, "a list of integers", other)),
        }
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>, FormatError> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Floats(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, "a list of numbers", other)),
        }
    }

    /// A token id, checked against nothing but its width.
    pub(crate) fn token(&self, key: &str) -> Result<Option<u32>, FormatError> {
        match self.value(key) {
            // llama.cpp writes -1 (as either sign) for "none".
            Some(Value::Signed(-1)) => Ok(None),
            Some(Value::Unsigned(x)) if *x == u64::from(u32::MAX) => Ok(None),
            _ => match self.integer(key)? {
                None => Ok(None),
                Some(id) => u32::try_from(id)
                    .map(Some)
                    .map_err(|_| FormatError::setting(&self.path, key, "a token id", id.to_string())),
            },
        }
    }
}

struct Parser<'a> {
    reader: BufReader<File>,
    position: u64,
    length: u64,
    path: &'a Path,
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, Tensor>);

impl Parser<'_> {
    fn parse(&mut self) -> Result<Parsed, FormatError> {
        if self.length < 24 || &self.bytes::<4>()? != MAGIC {
            return Err(self.damaged("it does not begin as a GGUF file"));
        }
        let version = self.u32()?;
        if version != 0 && version & 0xffff == 0 {
            return Err(self.unsupported("a big-endian GGUF file", "convert the model to a little-endian one"));
        }
        if !(2..=3).contains(&version) {
            return Err(self.unsupported(
                format!("GGUF version {version}"),
                "versions 2 and 3 are read: convert the model with a current llama.cpp",
            ));
        }
        let tensor_count = self.u64()?;
        let value_count = self.u64()?;
        // A tensor takes at least 24 bytes of the file, a value 13.
        if tensor_count > self.left() / 24 || value_count > self.left() / 13 {
            return Err(self.damaged(format!(
                "it claims {tensor_count} tensors and {value_count} metadata values in {} bytes",
                self.length
            )));
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..value_count {
            let key = self.string(LONGEST_KEY)?;
            let kind = self.u32()?;
            let value = self.value(kind)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(self.damaged(format!("it has the metadata key {key:?} twice")));
            }
        }
        if let Some(Value::Unsigned(parts)) = metadata.get("split.count")
            && *parts > 1
        {
            return Err(self
                .unsupported(format!("a model split into {parts} files"), "join them with llama-gguf-split --merge"));
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(x)) if x.is_power_of_two() && *x <= 1 << 20 => *x,
            Some(other) => {
                return Err(FormatError::setting(
                    self.path,
                    "general.alignment",
                    "a power of two",
                    format!("{other:?}"),
                ));
            }
        };
        let mut listed = Vec::new();
        for _ in 0..tensor_count {
            listed.push(self.tensor()?);
        }
        let data_start = self.position.next_multiple_of(alignment);
        let tensors = self.place(listed, data_start, alignment)?;
        Ok((metadata, tensors))
    }

    /// One entry of the tensor list; its start is still relative to the data.
    fn tensor(&mut self) -> Result<(String, Tensor), FormatError> {
        let name = self.string(LONGEST_KEY)?;
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(self.damaged(format!("tensor {name:?} has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        let mut elements = 1u64;
        for _ in 0..dimensions {
            let n = self.u64()?;
            let size = usize::try_from(n).ok().filter(|&n| n > 0);
            let product = elements.checked_mul(n).filter(|&n| n < 1 << 48);
            let (Some(size), Some(product)) = (size, product) else {
                return Err(self.damaged(format!("tensor {name:?} has an impossible shape")));
            };
            elements = product;
            shape.push(size);
        }
        let code = self.u32()?;
        let start = self.u64()?;
        let Some(stored) = stored_type(code) else {
            return Err(self.unsupported(
                format!("tensor {name:?} in {}", type_name(code)),
                "the types read are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K",
            ));
        };
        let block = stored.block_elements();
        if !shape[0].is_multiple_of(block) {
            return Err(self
                .damaged(format!("tensor {name:?} has rows of {} elements, which {stored:?} cannot store", shape[0])));
        }
        let bytes = elements / block as u64 * stored.block_bytes() as u64;
        shape.reverse();
        let tensor = Tensor { shape, stored, start, bytes };
        Ok((name, tensor))
    }

    fn place(
        &self,
        listed: Vec<(String, Tensor)>,
        data_start: u64,
        alignment: u64,
    ) -> Result<BTreeMap<String, Tensor>, FormatError> {
        let mut spans = Vec::with_capacity(listed.len());
        let mut tensors = BTreeMap::new();
        for (name, mut tensor) in listed {
            if !tensor.start.is_multiple_of(alignment) {
                return Err(self.damaged(format!(
                    "tensor {name:?} begins at {}, which is no multiple of {alignment}",
                    tensor.start
                )));
            }
            let start = data_start.checked_add(tensor.start);
            let end = start.and_then(|start| start.checked_add(tensor.bytes));
            let (Some(start), Some(end)) = (start, end) else {
                return Err(self.damaged(format!("tensor {name:?} has an impossible offset")));
            };
            if end > self.length {
                return Err(
                    self.damaged(format!("it is cut off: tensor {name:?} ends at byte {end} of {}", self.length))
                );
            }
            tensor.start = start;
            spans.push((start, end, name.clone()));
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(self.damaged(format!("it lists tensor {name:?} twice")));
            }
        }
        spans.sort();
        for pair in spans.windows(2) {
            if pair[1].0 < pair[0].1 {
                return Err(self.damaged(format!("tensors {:?} and {:?} overlap", pair[0].2, pair[1].2)));
            }
        }
        Ok(tensors)
    }

    fn value(&mut self, kind: u32) -> Result<Value, FormatError> {
        Ok(match kind {
            0 => Value::Unsigned(u64::from(self.bytes::<1>()?[0])),
            1 => Value::Signed(i64::from(self.bytes::<1>()?[0] as i8)),
            2 => Value::Unsigned(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => Value::Signed(i64::from(i16::from_le_bytes(self.bytes()?))),
            4 => Value::Unsigned(u64::from(self.u32()?)),
            5 => Value::Signed(i64::from(i32::from_le_bytes(self.bytes()?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.bytes()?))),
            7 => Value::Bool(self.bytes::<1>()?[0] != 0),
            8 => Value::Text(self.string(u64::MAX)?),
            9 => self.array()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.damaged(format!("it has a metadata value of type {other}"))),
        })
    }

    fn array(&mut self) -> Result<Value, FormatError> {
        let kind = self.u32()?;
        let count = self.u64()?;
        let smallest = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            other => {
                return Err(self.damaged(format!("it has a metadata list of type {other}")));
            }
        };
        if count > self.left() / smallest {
            return Err(self.damaged(format!(
                "it is cut off: a metadata list of {count} elements with {} bytes left",
                self.left()
            )));
        }
        if count > MOST_ELEMENTS {
            return Err(self.damaged(format!("it has a metadata list of {count} elements")));
        }
        let count = count as usize;
        match kind {
            6 => self.collect(count, |p| Ok(f32::from_le_bytes(p.bytes()?))).map(Value::Floats),
            12 => self.collect(count, |p| Ok(f64::from_le_bytes(p.bytes()?) as f32)).map(Value::Floats),
            7 => self.collect(count, |p| Ok(p.bytes::<1>()?[0] != 0)).map(Value::Bools),
            8 => self.collect(count, |p| p.string(u64::MAX)).map(Value::Texts),
            _ => self
                .collect(count, |p| match p.value(kind)? {
                    Value::Signed(x) => Ok(x),
                    Value::Unsigned(x) => {
                        i64::try_from(x).map_err(|_| p.damaged(format!("the metadata integer {x} is too large")))
                    }
                    _ => Err(p.damaged("a metadata list mixes types")),
                })
                .map(Value::Integers),
        }
    }

    fn collect<T>(
        &mut self,
        count: usize,
        mut next: impl FnMut(&mut Self) -> Result<T, FormatError>,
    ) -> Result<Vec<T>, FormatError> {
        let mut list = Vec::with_capacity(count.min(1 << 20));
        for _ in 0..count {
            list.push(next(self)?);
        }
        Ok(list)
    }

    fn string(&mut self, longest: u64) -> Result<String, FormatError> {
        let length = self.u64()?;
        if length > self.left() || length > longest {
            return Err(
                self.damaged(format!("it is cut off: a string of {length} bytes with {} bytes left", self.left()))
            );
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            // Some vocabularies carry tokens that are no UTF-8 by themselves.
            Err(error) => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        }
    }

    fn left(&self) -> u64 {
        self.length - self.position
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), FormatError> {
        if bytes.len() as u64 > self.left() {
            return Err(self.damaged(format!(
                "it is cut off: {} bytes are wanted at {} of {}",
                bytes.len(),
                self.position,
                self.length
            )));
        }
        self.reader.read_exact(bytes).map_err(|e| FormatError::io("read", self.path, e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn damaged(&self, reason: impl Into<String>) -> FormatError {
        FormatError::damaged(self.path, reason)
    }

    fn unsupported(&self, what: impl Into<String>, remedy: &str) -> FormatError {
        FormatError::unsupported(self.path, what, remedy)
    }
}

/// ggml's type codes.
fn stored_type(code: u32) -> Option<StoredType> {
    Some(match code {
        0 => StoredType::F32,
        1 => StoredType::F16,
        2 => StoredType::Q4_0,
        3 => StoredType::Q4_1,
        6 => StoredType::Q5_0,
        7 => StoredType::Q5_1,
        8 => StoredType::Q8_0,
        12 => StoredType::Q4K,
        13 => StoredType::Q5K,
        14 => StoredType::Q6K,
        30 => StoredType::BF16,
        _ => return None,
    })
}

/// Names for the message, of the types that are not read.
fn type_name(code: u32) -> String {
    let name = match code {
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {code}"),
    };
    name.to_string()
}
