//! Writing safetensors as a stream: the header first, then tensor after tensor.

use super::header::ElementType;
use crate::error::FormatError;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

/// What a tensor will be; said before any data, because the header comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// The stored type.
    pub element: ElementType,
}

impl TensorSpec {
    /// A description.
    pub fn new(name: impl Into<String>, shape: &[usize], element: ElementType) -> TensorSpec {
        TensorSpec { name: name.into(), shape: shape.to_vec(), element }
    }

    /// Stored bytes, or `None` if the shape overflows.
    pub fn bytes(&self) -> Option<u64> {
        self.shape.iter().try_fold(self.element.bytes() as u64, |n, &d| n.checked_mul(d as u64))
    }
}

/// Elements to write. f32 values may go into an F32, BF16 or F16 tensor; the
/// others only into their own type.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Values<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
    U32(&'a [u32]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
}

/// Where one tensor's elements go, in one piece or several.
pub struct TensorSink<'a> {
    out: &'a mut dyn Write,
    path: &'a Path,
    spec: &'a TensorSpec,
    left: u64,
}

impl TensorSink<'_> {
    /// Appends elements.
    ///
    /// # Errors
    /// Elements of another type than the tensor's, or more than its shape has.
    pub fn write(&mut self, values: Values<'_>) -> Result<(), FormatError> {
        use ElementType as E;
        match (self.spec.element, values) {
            (E::F32, Values::F32(x)) => self.put(bytemuck::cast_slice(x)),
            (E::F64, Values::F64(x)) => self.put(bytemuck::cast_slice(x)),
            (E::BF16, Values::Bf16(x)) => self.put(bytemuck::cast_slice(x)),
            (E::F16, Values::F16(x)) => self.put(bytemuck::cast_slice(x)),
            (E::U32, Values::U32(x)) => self.put(bytemuck::cast_slice(x)),
            (E::I32, Values::I32(x)) => self.put(bytemuck::cast_slice(x)),
            (E::I64, Values::I64(x)) => self.put(bytemuck::cast_slice(x)),
            (E::U8 | E::Bool, Values::U8(x)) => self.put(x),
            (E::BF16, Values::F32(x)) => {
                let mut half = [bf16::ZERO; 4096];
                for x in x.chunks(half.len()) {
                    let half = &mut half[..x.len()];
                    half.convert_from_f32_slice(x);
                    self.put(bytemuck::cast_slice(half))?;
                }
                Ok(())
            }
            (E::F16, Values::F32(x)) => {
                let mut half = [f16::ZERO; 4096];
                for x in x.chunks(half.len()) {
                    let half = &mut half[..x.len()];
                    half.convert_from_f32_slice(x);
                    self.put(bytemuck::cast_slice(half))?;
                }
                Ok(())
            }
            (element, _) => {
                Err(self.wrong(format!("elements for {}", element.name()), "elements of another type".to_string()))
            }
        }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        if bytes.len() as u64 > self.left {
            return Err(self.wrong(format!("at most {} more bytes", self.left), bytes.len().to_string()));
        }
        self.left -= bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| FormatError::io("write", self.path, e))
    }

    fn wrong(&self, expected: String, got: String) -> FormatError {
        FormatError::Shape { op: "write", name: self.spec.name.clone(), expected, got }
    }
}

/// Writes a safetensors stream. `fill` is called once for each tensor, in the
/// order of the file: wide element types first, then by name, as the
/// safetensors library orders them, so that every tensor is aligned.
///
/// The metadata is `{"format": "pt"}`, which transformers asks for. `path`
/// is only for the messages; `out` should be buffered.
///
/// # Errors
/// Two tensors of one name, a tensor that `fill` leaves incomplete, whatever
/// `fill` returns, and a disk that is full.
pub fn write_safetensors_to(
    out: &mut dyn Write,
    path: &Path,
    specs: &[TensorSpec],
    mut fill: impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<(), FormatError>,
) -> Result<(), FormatError> {
    let mut order: Vec<&TensorSpec> = specs.iter().collect();
    order.sort_by(|a, b| (b.element.bytes(), &a.name).cmp(&(a.element.bytes(), &b.name)));

    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut names = HashSet::new();
    let mut offset = 0u64;
    for spec in &order {
        let wrong = |expected: &str, got: String| FormatError::Shape {
            op: "write",
            name: spec.name.clone(),
            expected: expected.to_string(),
            got,
        };
        if spec.name == "__metadata__" || !names.insert(&spec.name) {
            return Err(wrong("a name of its own", spec.name.clone()));
        }
        let end = spec
            .bytes()
            .and_then(|bytes| offset.checked_add(bytes))
            .ok_or_else(|| wrong("a possible shape", format!("{:?}", spec.shape)))?;
        header.insert(
            spec.name.clone(),
            json!({
                "dtype": spec.element.name(),
                "shape": spec.shape,
                "data_offsets": [offset, end],
            }),
        );
        offset = end;
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(|e| FormatError::io("write", path, e));
    put(&(text.len() as u64).to_le_bytes())?;
    put(text.as_bytes())?;

    for spec in order {
        let mut sink = TensorSink { out: &mut *out, path, spec, left: spec.bytes().unwrap_or(0) };
        fill(spec, &mut sink)?;
        if sink.left != 0 {
            return Err(FormatError::Shape {
                op: "write",
                name: spec.name.clone(),
                expected: format!("{} bytes", spec.bytes().unwrap_or(0)),
                got: format!("{} fewer", sink.left),
            });
        }
    }
    Ok(())
}

/// Writes f32 tensors, stored as `element` (F32, BF16 or F16), to a file:
/// aside, synced, renamed.
pub fn write_safetensors<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    element: ElementType,
) -> Result<(), FormatError> {
    let tensors: Vec<_> = tensors.into_iter().collect();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, shape, _)| TensorSpec::new(*name, shape, element)).collect();
    let by_name: std::collections::HashMap<&str, &[f32]> =
        tensors.iter().map(|(name, _, data)| (*name, *data)).collect();
    crate::durable::write_file_with(path, |out| {
        write_safetensors_to(out, path, &specs, |spec, sink| sink.write(Values::F32(by_name[spec.name.as_str()])))
    })
}
