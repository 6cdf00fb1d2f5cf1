//! One safetensors file, read by position.

use super::header::{self, ElementType, Entry, Header, LARGEST_HEADER_BYTES};
use crate::error::FormatError;
use crate::files;
use crate::tensors::zeros;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Half-precision tensors are converted through a buffer of this many elements.
const CHUNK_ELEMENTS: usize = 1 << 18;

/// An open safetensors file: the header is in memory, the data is read when asked for.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Header,
}

/// Opens a safetensors file and checks its header against the file's length.
///
/// # Errors
/// A file that is cut off, or whose header is no tensor list, lists a tensor
/// twice, or points outside the data.
pub fn open_safetensors(path: &Path) -> Result<SafetensorsFile, FormatError> {
    let (file, file_bytes) = files::open(path)?;
    if file_bytes < 8 {
        return Err(FormatError::damaged(
            path,
            format!("it is cut off: {file_bytes} bytes hold no safetensors header"),
        ));
    }
    let mut length = [0; 8];
    files::read_exact_at(&file, &mut length, 0).map_err(|e| FormatError::io("read", path, e))?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > LARGEST_HEADER_BYTES {
        return Err(FormatError::damaged(
            path,
            format!(
                "its header claims {header_bytes} bytes, more than the format's {LARGEST_HEADER_BYTES}; \
                 is it a safetensors file?"
            ),
        ));
    }
    if header_bytes > file_bytes - 8 {
        return Err(FormatError::damaged(
            path,
            format!("it is cut off: a header of {header_bytes} bytes in a file of {file_bytes}"),
        ));
    }
    let mut json = vec![0; header_bytes as usize];
    files::read_exact_at(&file, &mut json, 8).map_err(|e| FormatError::io("read", path, e))?;
    let header = header::parse(&json, 8 + header_bytes, file_bytes, path)?;
    Ok(SafetensorsFile { path: path.to_path_buf(), file, header })
}

/// Shape and elements of tensors, by name.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads every tensor of a file as f32.
///
/// For adapters and test vectors; a model's file is opened as a
/// [`TensorSource`](crate::TensorSource).
pub fn read_safetensors_f32(path: &Path) -> Result<NamedTensors, FormatError> {
    let file = open_safetensors(path)?;
    let mut tensors = BTreeMap::new();
    for name in file.names() {
        let shape = file.shape(name).unwrap_or_default().to_vec();
        tensors.insert(name.to_string(), (shape, file.read_f32(name)?));
    }
    Ok(tensors)
}

impl SafetensorsFile {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names as the file spells them, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// A tensor's shape.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.header.tensors.get(name)?.shape)
    }

    /// A tensor's element type; `None` for an unknown name or type.
    pub fn element(&self, name: &str) -> Option<ElementType> {
        self.header.tensors.get(name)?.element
    }

    /// A tensor's element type as the file spells it.
    pub fn element_name(&self, name: &str) -> Option<&str> {
        Some(&self.header.tensors.get(name)?.element_name)
    }

    /// The file's `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    fn entry(&self, name: &str) -> Result<&Entry, FormatError> {
        self.header
            .tensors
            .get(name)
            .ok_or_else(|| FormatError::NoSuchTensor { path: self.path.clone(), name: name.to_string() })
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), FormatError> {
        files::read_exact_at(&self.file, buffer, offset).map_err(|e| FormatError::io("read", &self.path, e))
    }

    /// Reads a float tensor as f32.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let mut out = zeros(name, self.entry(name)?.shape.iter().product())?;
        self.read_f32_into(name, &mut out)?;
        Ok(out)
    }

    /// Reads a float tensor as f32 into `out`.
    pub fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        let entry = self.entry(name)?;
        let elements: usize = entry.shape.iter().product();
        if out.len() != elements {
            return Err(FormatError::Shape {
                op: "read",
                name: name.to_string(),
                expected: format!("a buffer of {elements}"),
                got: out.len().to_string(),
            });
        }
        match entry.element {
            Some(ElementType::F32) => self.read_at(bytemuck::cast_slice_mut(out), entry.start),
            Some(half @ (ElementType::F16 | ElementType::BF16)) => {
                let mut words = vec![0u16; elements.min(CHUNK_ELEMENTS)];
                let mut offset = entry.start;
                for out in out.chunks_mut(CHUNK_ELEMENTS) {
                    let words = &mut words[..out.len()];
                    self.read_at(bytemuck::cast_slice_mut(words), offset)?;
                    offset += 2 * words.len() as u64;
                    if half == ElementType::F16 {
                        bytemuck::cast_slice::<u16, f16>(words).convert_to_f32_slice(out);
                    } else {
                        bytemuck::cast_slice::<u16, bf16>(words).convert_to_f32_slice(out);
                    }
                }
                Ok(())
            }
            _ => Err(FormatError::unsupported(
                &self.path,
                format!("tensor {name:?} in {}", entry.element_name),
                "weights are read from F32, F16 and BF16",
            )),
        }
    }

    /// Reads a tensor of 32-bit unsigned integers.
    pub fn read_u32(&self, name: &str) -> Result<Vec<u32>, FormatError> {
        let bytes = self.read_bytes(name, &[ElementType::U32])?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|w| u32::from_le_bytes(*w)).collect())
    }

    /// Reads a tensor of 64-bit integers.
    pub fn read_i64(&self, name: &str) -> Result<Vec<i64>, FormatError> {
        let bytes = self.read_bytes(name, &[ElementType::I64])?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|w| i64::from_le_bytes(*w)).collect())
    }

    /// Reads the stored bytes of a tensor, which must have one of these types.
    pub fn read_bytes(&self, name: &str, types: &[ElementType]) -> Result<Vec<u8>, FormatError> {
        let entry = self.entry(name)?;
        if !entry.element.is_some_and(|e| types.contains(&e)) {
            let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
            return Err(FormatError::damaged(
                &self.path,
                format!("tensor {name:?} is in {}, expected {}", entry.element_name, names.join(" or ")),
            ));
        }
        let mut bytes = vec![0; entry.bytes as usize];
        self.read_at(&mut bytes, entry.start)?;
        Ok(bytes)
    }
}
