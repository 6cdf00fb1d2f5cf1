//! What a checkpoint is to the engine: named tensors that are read one at a time.

use crate::error::FormatError;
use crate::families::Family;

/// How a tensor's elements are stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredType {
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// GGUF: blocks of 32, 8 bits, one f16 scale.
    Q8_0,
    /// GGUF: blocks of 32, 4 bits, one f16 scale.
    Q4_0,
    /// GGUF: blocks of 32, 4 bits, f16 scale and minimum.
    Q4_1,
    /// GGUF: blocks of 32, 5 bits, one f16 scale.
    Q5_0,
    /// GGUF: blocks of 32, 5 bits, f16 scale and minimum.
    Q5_1,
    /// GGUF: super-blocks of 256, 4 bits, 6-bit scales and minima.
    Q4K,
    /// GGUF: super-blocks of 256, 5 bits, 6-bit scales and minima.
    Q5K,
    /// GGUF: super-blocks of 256, 6 bits, 8-bit scales.
    Q6K,
}

impl StoredType {
    /// Elements of one block; 1 for plain floats.
    pub fn block_elements(self) -> usize {
        match self {
            StoredType::F32 | StoredType::F16 | StoredType::BF16 => 1,
            StoredType::Q4K | StoredType::Q5K | StoredType::Q6K => 256,
            _ => 32,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            StoredType::F32 => 4,
            StoredType::F16 | StoredType::BF16 => 2,
            StoredType::Q8_0 => 34,
            StoredType::Q4_0 => 18,
            StoredType::Q4_1 => 20,
            StoredType::Q5_0 => 22,
            StoredType::Q5_1 => 24,
            StoredType::Q4K => 144,
            StoredType::Q5K => 176,
            StoredType::Q6K => 210,
        }
    }
}

/// Shape and storage of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Hugging Face's shape, row-major: a linear layer is `[out, in]`, a GPT-2
    /// Conv1D `[in, out]`.
    pub shape: Vec<usize>,
    /// The type in the file.
    pub stored: StoredType,
}

impl TensorInfo {
    /// The number of elements. Sources check at opening that it fits.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A tensor that is not stored but made up of uniform random numbers. Who loads it
/// may make it if it is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RandomTensor {
    /// Seed of the random stream.
    pub seed: u64,
    /// Number of the stream among those of the seed.
    pub place: u32,
    /// The numbers lie in [−scale, scale).
    pub scale: f32,
}

/// A checkpoint's tensors, under canonical names, read one at a time.
///
/// Canonical names are those of transformers' causal language models:
/// `model.embed_tokens.weight`, `model.layers.0.self_attn.q_proj.weight`,
/// `model.norm.weight`, `lm_head.weight`; for gpt2 `transformer.wte.weight`,
/// `transformer.h.0.attn.c_attn.weight`, `transformer.ln_f.weight`. A file
/// whose names lack or add a prefix is read under the canonical ones.
/// `lm_head.weight` is not listed if the config ties it to the embedding; a
/// reward model's value head is `score.weight`.
///
/// A source never holds more than the tensor being read.
pub trait TensorSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<String>;

    /// Shape and storage, or `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads a tensor as f32 into `out`, row-major, dequantised.
    ///
    /// # Errors
    /// An unknown name, an `out` of the wrong length, a file that cannot be read.
    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError>;

    /// Reads a tensor as f32, row-major, dequantised.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError>;

    /// How a tensor is made up; `None` for one that is stored, as all tensors of a
    /// file are.
    fn random(&self, name: &str) -> Option<RandomTensor> {
        let _ = name;
        None
    }
}

/// The canonical name of a checkpoint's tensor, or `None` for one that is no
/// part of the language model (vision towers, stored masks and tables).
pub(crate) fn canonical_name(family: &Family, stored: &str) -> Option<String> {
    let names = &family.stored;
    let bare = names.wrappers.iter().find_map(|wrapper| stored.strip_prefix(wrapper)).unwrap_or(stored);
    let bare = bare.strip_prefix(names.prefix).unwrap_or(bare);
    let foreign = names.foreign.iter().any(|foreign| bare.starts_with(foreign));
    if foreign || names.tables.iter().any(|table| bare.ends_with(table)) {
        return None;
    }
    if bare.starts_with("lm_head.") || bare.starts_with("score.") {
        return Some(bare.to_string());
    }
    Some(format!("{}{bare}", names.prefix))
}

/// A buffer of `elements` zeros, or an error where memory for it cannot be had.
pub(crate) fn zeros(name: &str, elements: usize) -> Result<Vec<f32>, FormatError> {
    let mut out = Vec::new();
    out.try_reserve_exact(elements).map_err(|_| FormatError::Shape {
        op: "read",
        name: name.to_string(),
        expected: format!("memory for {elements} numbers"),
        got: "less".to_string(),
    })?;
    out.resize(elements, 0.0);
    Ok(out)
}
