//! A GGUF file's tensors as a [`TensorSource`]: canonical names, Hugging Face
//! layout, dequantised.

use super::container::{GgufFile, Tensor};
use super::dequantize::dequantize;
use super::names::canonical_name;
use crate::config::ModelConfig;
use crate::error::FormatError;
use crate::families::NormKind;
use crate::tensors::{TensorInfo, TensorSource, zeros};
use std::collections::BTreeMap;

/// Quantised bytes are read in pieces of about this size.
const CHUNK_BYTES: usize = 1 << 20;

/// What llama.cpp's converter did to a tensor, to be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// Rows of q and k were reordered within each head, for a rope that turns
    /// neighbours instead of halves.
    Permutation {
        head_dim: usize,
    },
    /// Gemma's norms compute with 1 + w; the file holds 1 + w.
    PlusOne,
    /// GPT-2's Conv1D is `[in, out]`; the file holds `[out, in]`.
    Transposition,
}

#[derive(Debug)]
struct Place {
    tensor: Tensor,
    undo: Undo,
}

#[derive(Debug)]
pub(crate) struct GgufSource {
    file: GgufFile,
    places: BTreeMap<String, Place>,
}

impl GgufSource {
    pub(crate) fn new(file: GgufFile, config: &ModelConfig) -> Result<GgufSource, FormatError> {
        let mut places = BTreeMap::new();
        for (stored, tensor) in &file.tensors {
            let Some(name) = canonical_name(config.family, stored) else {
                if !is_known_table(stored) {
                    return Err(FormatError::unsupported(
                        &file.path,
                        format!("tensor {stored:?} in a {} model", config.family.model_type),
                        "this variant of the architecture has no decoder here",
                    ));
                }
                continue;
            };
            let undo = undo(config, &name, tensor);
            if let Undo::Permutation { head_dim } = undo
                && (head_dim == 0 || !tensor.shape[0].is_multiple_of(head_dim))
            {
                return Err(FormatError::damaged(
                    &file.path,
                    format!("tensor {stored:?} has {} rows, no multiple of {head_dim}", tensor.shape[0]),
                ));
            }
            let place = Place { tensor: tensor.clone(), undo };
            if places.insert(name.clone(), place).is_some() {
                return Err(FormatError::damaged(&file.path, format!("two tensors are {name:?}")));
            }
        }
        Ok(GgufSource { file, places })
    }

    fn find(&self, name: &str) -> Result<&Place, FormatError> {
        self.places
            .get(name)
            .ok_or_else(|| FormatError::NoSuchTensor { path: self.file.path.clone(), name: name.to_string() })
    }

    /// Dequantises whole rows `first..` into `out`, in the file's order.
    fn read_rows(&self, tensor: &Tensor, first: usize, out: &mut [f32]) -> Result<(), FormatError> {
        let row_bytes = tensor.row() / tensor.stored.block_elements() * tensor.stored.block_bytes();
        let rows = out.len() / tensor.row();
        let rows_at_once = (CHUNK_BYTES / row_bytes).clamp(1, rows.max(1));
        let mut bytes = vec![0; rows_at_once * row_bytes];
        let mut offset = tensor.start + (first * row_bytes) as u64;
        for out in out.chunks_mut(rows_at_once * tensor.row()) {
            let bytes = &mut bytes[..out.len() / tensor.row() * row_bytes];
            self.file.read_at(bytes, offset)?;
            offset += bytes.len() as u64;
            dequantize(tensor.stored, bytes, out);
        }
        Ok(())
    }

    fn read_place(&self, place: &Place, out: &mut [f32]) -> Result<(), FormatError> {
        let tensor = &place.tensor;
        match place.undo {
            Undo::Nothing => self.read_rows(tensor, 0, out),
            Undo::PlusOne => {
                self.read_rows(tensor, 0, out)?;
                out.iter_mut().for_each(|w| *w -= 1.0);
                Ok(())
            }
            Undo::Permutation { head_dim } => {
                // A bias is a column: "rows" of one element.
                let row = if tensor.shape.len() == 1 { 1 } else { tensor.row() };
                if row == 1 {
                    let mut stored = zeros("bias", out.len())?;
                    self.read_rows(tensor, 0, &mut stored)?;
                    for (stored, out) in stored.chunks(head_dim).zip(out.chunks_mut(head_dim)) {
                        unpermute(stored, out, 1);
                    }
                    return Ok(());
                }
                let mut stored = zeros("head", head_dim * row)?;
                for (head, out) in out.chunks_mut(head_dim * row).enumerate() {
                    self.read_rows(tensor, head * head_dim, &mut stored)?;
                    unpermute(&stored, out, row);
                }
                Ok(())
            }
            Undo::Transposition => {
                let (outs, ins) = (tensor.shape[0], tensor.shape[1]);
                let mut stored = zeros("matrix", outs * ins)?;
                self.read_rows(tensor, 0, &mut stored)?;
                for (i, row) in out.chunks_mut(outs).enumerate() {
                    for (o, y) in row.iter_mut().enumerate() {
                        *y = stored[o * ins + i];
                    }
                }
                Ok(())
            }
        }
    }
}

/// One head: the file's row 2i+j is Hugging Face's row j·half+i.
fn unpermute(stored: &[f32], out: &mut [f32], row: usize) {
    let half = stored.len() / row / 2;
    for i in 0..half {
        for j in 0..2 {
            let from = (2 * i + j) * row;
            let to = (j * half + i) * row;
            out[to..to + row].copy_from_slice(&stored[from..from + row]);
        }
    }
}

fn undo(config: &ModelConfig, name: &str, tensor: &Tensor) -> Undo {
    let family = config.family;
    let parts = &family.parts;
    let is_of = |module: &&str| name.contains(&format!(".{module}."));
    if family.gguf.permuted.iter().any(is_of) {
        return Undo::Permutation { head_dim: config.head_dim };
    }
    let offset = matches!(parts.norm, NormKind::Rms { offset } if offset != 0.0);
    if offset && name.ends_with("norm.weight") {
        return Undo::PlusOne;
    }
    let embedding = name == parts.embedding || Some(name) == parts.position_embedding;
    if parts.transposed && tensor.shape.len() == 2 && !embedding {
        return Undo::Transposition;
    }
    Undo::Nothing
}

/// Tensors that a supported file may hold besides weights.
fn is_known_table(stored: &str) -> bool {
    stored == "output.weight"
        || stored == "rope_freqs.weight"
        || stored.starts_with("rope_factors_")
        || stored.ends_with(".attn_rot_embd.weight")
        || stored.ends_with(".rope_freqs.weight")
}

impl TensorSource for GgufSource {
    fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let place = self.places.get(name)?;
        let mut shape = place.tensor.shape.clone();
        if place.undo == Undo::Transposition {
            shape.reverse();
        }
        Some(TensorInfo { shape, stored: place.tensor.stored })
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        let place = self.find(name)?;
        let elements: usize = place.tensor.shape.iter().product();
        if out.len() != elements {
            return Err(FormatError::Shape {
                op: "read",
                name: name.to_string(),
                expected: format!("a buffer of {elements}"),
                got: out.len().to_string(),
            });
        }
        self.read_place(place, out)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let place = self.find(name)?;
        let mut out = zeros(name, place.tensor.shape.iter().product())?;
        self.read_place(place, &mut out)?;
        Ok(out)
    }
}
