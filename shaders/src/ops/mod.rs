//! The operations of a training step, as one object-safe trait.
//!
//! A virtual call is small beside a kernel, and no type parameter of a
//! runtime leaves this crate: the engine holds an `Arc<dyn Ops>` and is the
//! same code on every device.
//!
//! # Conventions
//! - `N` tokens of a micro-batch lie flat, one document after another, without
//!   padding; [`Segments`] holds where each document begins. `C` is the width
//!   of the residual stream, `H` and `G` the query and key/value heads, `D` a
//!   head's width, `V` the vocabulary, `R` an adapter's rank.
//! - A weight is `[out, in]`, as in the checkpoint: `y = x Wᵀ + b`.
//! - The gradient of `x` is `dx`. An argument `into: Option<Tensor>` is the
//!   accumulator to add to; `None` makes a new tensor.
//! - Every operation checks its shapes and returns [`TensorError`]; none
//!   panics.
//! - Results do not depend on the number of threads' timing: the same call on
//!   the same device gives the same bits.

pub mod attention;
pub(crate) mod check;
pub mod columns;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod gated;
pub mod gather;
pub mod layer_norm;
pub mod linear;
pub mod matmul;
pub(crate) mod memory;
pub mod nf4;
pub mod program;
pub mod random_weight;
pub mod reduce;
pub mod rms_norm;
pub mod rotary;
pub mod token_logp;

#[cfg(test)]
pub(crate) mod testing;

use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};

use crate::error::Result;
use crate::random::Key;
use crate::tensor::Tensor;

/// The checks of all operations, in the order of a step. A new operation adds its line.
pub(crate) const CHECKS: &[&[check::Check]] = &[
    memory::conformance::CHECKS,
    random_weight::conformance::CHECKS,
    elementwise::conformance::CHECKS,
    columns::conformance::CHECKS,
    reduce::conformance::CHECKS,
    gather::conformance::CHECKS,
    dropout::conformance::CHECKS,
    embedding::conformance::CHECKS,
    rms_norm::conformance::CHECKS,
    layer_norm::conformance::CHECKS,
    rotary::conformance::CHECKS,
    gated::conformance::CHECKS,
    matmul::conformance::CHECKS,
    nf4::conformance::CHECKS,
    linear::conformance::CHECKS,
    attention::conformance::CHECKS,
    token_logp::conformance::CHECKS,
    program::conformance::CHECKS,
];

/// Where the documents of a flat micro-batch begin and end:
/// `bounds[i]..bounds[i + 1]` are the tokens of document `i`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    bounds: Vec<usize>,
}

impl Segments {
    /// From the lengths of the documents; empty ones are dropped.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Segments {
        let mut bounds = vec![0];
        let mut end = 0;
        for length in lengths.into_iter().filter(|length| *length > 0) {
            end += length;
            bounds.push(end);
        }
        Segments { bounds }
    }

    /// All tokens.
    pub fn tokens(&self) -> usize {
        self.bounds.last().copied().unwrap_or(0)
    }

    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }

    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.bounds.windows(2).map(|w| w[0]..w[1])
    }

    pub fn longest(&self) -> usize {
        self.ranges().map(|r| r.len()).max().unwrap_or(0)
    }

    /// Position of every token in its own document, from 0.
    pub fn positions(&self) -> Vec<u32> {
        self.ranges().flat_map(|r| 0..r.len() as u32).collect()
    }

    pub fn bounds(&self) -> &[usize] {
        &self.bounds
    }
}

/// What a device says of itself.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// `cpu` or `vulkan:0 NVIDIA …`.
    pub name: String,
    /// Threads (CPU) or compute units.
    pub parallelism: usize,
    /// Memory in bytes, 0 where unknown.
    pub memory_bytes: u64,
    /// Whether that is the host's own memory: the CPU, a graphics part of the
    /// processor, a rasterizer that runs on it.
    pub shares_host_memory: bool,
    /// By how much of itself an operand of a matrix product may be rounded: 0 for
    /// f32, 1/256 for tensor cores of bf16.
    pub product_rounding: f64,
    /// Whether tensors lie in the host's own memory.
    pub on_host: bool,
}

/// A tensor's values on their way to the host: calling it waits for them.
pub type Reading<'a> = Box<dyn FnOnce() -> Result<Vec<f32>> + Send + 'a>;

impl DeviceInfo {
    /// The type that matrix products round their operands to.
    pub fn products(&self) -> &'static str {
        match self.product_rounding {
            rounding if rounding > 1.0 / 1024.0 => "bf16",
            rounding if rounding > 0.0 => "f16",
            _ => "f32",
        }
    }
}

/// A linear layer's weight `[out, in]`, in the type it is kept in.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32 or bf16 elements.
    Dense(Tensor),
    /// 4-bit NormalFloat blocks (QLoRA).
    Nf4(crate::ops::nf4::Nf4Weight),
}

/// How the elements of a [`Weight`] are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightKind {
    F32,
    Bf16,
    /// NF4; the flag says whether the block scales are quantised as well.
    Nf4 {
        double_quant: bool,
    },
}

/// The angle table of rotary embeddings, one per rope base of a model.
///
/// Angles are `position · inverse_frequency` in f32, as PyTorch computes them.
#[derive(Debug, Clone)]
pub struct RotaryTable {
    /// `[max_positions, rotary_dim / 2]`, times the attention scaling.
    pub cos: Tensor,
    pub sin: Tensor,
    /// How many of a head's `D` elements turn; pairs are (i, i + rotary_dim/2).
    pub rotary_dim: usize,
}

/// The shape and the numbers of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale · q·k`.
    pub scale: f32,
    /// `cap · tanh(score / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// A query at position i sees keys j with `i - window < j <= i`.
    pub window: Option<usize>,
}

/// The gate's nonlinearity in a gated MLP, or the plain MLP's (GPT-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    Silu,
    /// The tanh form of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// The exact form, with erf.
    Gelu,
}

/// Which statistics of the next-token distribution are wanted beside `logp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatisticSet {
    pub entropy: bool,
    pub mean_logp: bool,
    /// Whether the target is the most likely token (for accuracy).
    pub correct: bool,
}

/// Statistics of each asked-for token, in nats, on the host: kilobytes,
/// whatever the vocabulary.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenStatistics {
    /// log p(target).
    pub logp: Vec<f32>,
    /// log-sum-exp of the (soft-capped) logits.
    pub lse: Vec<f32>,
    /// −Σ p log p; empty where not asked for.
    pub entropy: Vec<f32>,
    /// The mean over the vocabulary of log p (label smoothing).
    pub mean_logp: Vec<f32>,
    /// Whether no token is more likely than the target; empty where not asked
    /// for.
    pub correct: Vec<bool>,
}

/// d loss / d statistic for each token. An empty vector is zero everywhere.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenCoefficients {
    pub logp: Vec<f32>,
    pub lse: Vec<f32>,
    pub entropy: Vec<f32>,
    pub mean_logp: Vec<f32>,
}

/// The LM head: logits `= softcap(h Wᵀ + b)`.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// `[V, C]`.
    pub weight: &'a Weight,
    /// `cap · tanh(logit / cap)` (Gemma 2).
    pub softcap: Option<f32>,
    /// At most this many rows of logits exist at a time; 0 lets the device
    /// choose.
    pub chunk_rows: usize,
}

/// A device as the rest of the program holds it.
pub type Device = dyn Ops;

/// A device: memory and the operations of a training step.
pub trait Ops: Send + Sync {
    fn info(&self) -> DeviceInfo;

    // ---- memory -----------------------------------------------------------
    /// f32 zeros.
    fn zeros(&self, shape: &[usize]) -> Result<Tensor>;
    fn upload(&self, shape: &[usize], values: &[f32]) -> Result<Tensor>;
    fn upload_u32(&self, shape: &[usize], values: &[u32]) -> Result<Tensor>;
    /// Rounds to bf16 (to nearest, ties to even).
    fn upload_bf16(&self, shape: &[usize], values: &[f32]) -> Result<Tensor>;
    /// Quantises a weight `[out, in]` to NF4 in blocks of 64 of the flattened
    /// weight, as bitsandbytes does; `double_quant` quantises the block scales
    /// to 8 bits in blocks of 256.
    fn upload_nf4(&self, shape: &[usize], values: &[f32], double_quant: bool) -> Result<Weight>;
    /// A weight that no checkpoint has, made on the device: uniform numbers in
    /// [−scale, scale), element i from word i of the key's stream. They are the same
    /// on every device, and are then rounded or quantised as an upload's.
    fn random_weight(&self, shape: &[usize], scale: f32, key: Key, kind: WeightKind) -> Result<Weight>;
    /// Values as f32, whatever the float type.
    fn read(&self, x: &Tensor) -> Result<Vec<f32>>;
    /// The values of an f32 tensor as they are now. Where a device works behind the
    /// caller's back, what is queued after this call runs while they are copied.
    fn read_later(&self, x: &Tensor) -> Result<Reading<'_>> {
        let values = self.read(x)?;
        Ok(Box::new(move || Ok(values)))
    }
    /// Overwrites an f32 tensor.
    fn write(&self, x: &mut Tensor, values: &[f32]) -> Result<()>;
    /// A copy with storage of its own.
    fn copy(&self, x: &Tensor) -> Result<Tensor>;
    /// The weight's values as f32 `[out, in]`, dequantised.
    fn read_weight(&self, w: &Weight) -> Result<Vec<f32>>;
    /// Bytes of live tensors now, and the most since the last reset.
    fn allocated_bytes(&self) -> (u64, u64);
    fn reset_peak(&self);
    /// Gives back the buffers kept for reuse.
    fn trim(&self);
    /// Takes memory for the tensors that a step makes, before the step: what is
    /// made from now on lies there, and asks the driver for nothing. What a run
    /// keeps (weights, gradients, moments) is made before. A step that needs more
    /// than was reserved gets it where the device has it.
    ///
    /// # Errors
    /// [`TensorError::Memory`](crate::TensorError::Memory) where the device has not
    /// so much.
    fn reserve(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }
    /// Bytes that exist while the head `[V, C]` takes so many rows forth and back,
    /// beside its input and that one's gradient: a chunk of logits (where
    /// [`Head::chunk_rows`] is 0) and what goes with them.
    fn head_bytes(&self, rows: usize, vocabulary: usize, columns: usize) -> u64;
    /// Bytes of f32 values that exist at a time of a weight `[out, in]` that is
    /// kept in another type.
    fn unpacked_bytes(&self, outputs: usize, inputs: usize) -> u64;
    /// Bytes that the ledger counts for a tensor of so many bytes.
    fn tensor_bytes(&self, bytes: u64) -> u64 {
        bytes.max(4).next_multiple_of(4)
    }
    /// Bytes of the lists of indices that lie on the device while micro-batches of so
    /// many tokens go through it.
    fn index_bytes(&self, _tokens: usize) -> u64 {
        0
    }
    /// Whether a product that is added to a tensor exists by itself before.
    fn adds_apart(&self) -> bool {
        false
    }
    /// Waits for everything that was queued.
    ///
    /// # Errors
    /// What went wrong in it.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    // ---- elementwise and rows ----------------------------------------------
    /// y += alpha · x.
    fn add_scaled(&self, y: &mut Tensor, x: &Tensor, alpha: f32) -> Result<()>;
    /// a + b in new storage.
    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    /// a / b in new storage: DoRA's gain m / ‖W + s B A‖, and in its backward pass
    /// the magnitude's gradient.
    fn divide(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;
    fn scale(&self, y: &mut Tensor, alpha: f32) -> Result<()>;
    fn fill_zero(&self, y: &mut Tensor) -> Result<()>;
    /// Multiplies each row of an f32 matrix `[M, C]` by its factor. Through the
    /// host where a device has nothing better.
    ///
    /// # Errors
    /// [`TensorError::Shape`](crate::TensorError::Shape) where there is not one
    /// factor a row.
    fn scale_rows(&self, y: &mut Tensor, factors: &[f32]) -> Result<()> {
        if y.rows() != factors.len() {
            return Err(crate::error::shape_error(
                "scale_rows",
                format!("{} factors", y.rows()),
                factors.len().to_string(),
            ));
        }
        let mut values = self.read(y)?;
        let columns = (values.len() / factors.len().max(1)).max(1);
        for (row, factor) in values.chunks_mut(columns).zip(factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
        self.write(y, &values)
    }
    /// Adds `bias [C]` to each row.
    fn add_bias(&self, y: &mut Tensor, bias: &Tensor) -> Result<()>;
    /// dbias += column sums of dy.
    fn bias_backward(&self, dy: &Tensor, dbias: &mut Tensor) -> Result<()>;
    /// x·g with `g [C]` over the columns, in new storage (DoRA's magnitude).
    fn scale_columns(&self, x: &Tensor, g: &Tensor) -> Result<Tensor>;
    /// out [C] += Σ over rows of a ⊙ b (the gradient of a column scale).
    fn column_dot(&self, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<()>;
    /// Σ x² over all the tensors, in f64 or compensated f32.
    fn sum_squares(&self, tensors: &[&Tensor]) -> Result<f64>;
    /// Rows of x `[N, C]` at `indices`, as `[M, C]`.
    fn gather_rows(&self, x: &Tensor, indices: &[u32]) -> Result<Tensor>;
    /// A tensor of `rows` rows, zero but for `dy`'s rows at `indices` (repeated
    /// indices add up).
    fn scatter_rows(&self, rows: usize, indices: &[u32], dy: &Tensor) -> Result<Tensor>;
    /// Cuts the columns of x `[N, ΣC]` into tensors of these widths.
    fn split_columns(&self, x: &Tensor, widths: &[usize]) -> Result<Vec<Tensor>>;
    /// The reverse of [`Ops::split_columns`].
    fn join_columns(&self, parts: &[&Tensor]) -> Result<Tensor>;
    /// Inverted dropout: each element is zero with probability `p`, else
    /// x / (1 − p). The mask is a function of `key` and the element's place, so
    /// the backward pass calls this with the same key on dy.
    fn dropout(&self, x: &Tensor, p: f32, key: Key) -> Result<Tensor>;

    // ---- embedding -----------------------------------------------------------
    /// Rows of `table [V, C]` times `scale`.
    fn embedding(&self, ids: &[u32], table: &Tensor, scale: f32) -> Result<Tensor>;
    /// dtable[id] += scale · dy.
    fn embedding_backward(&self, ids: &[u32], dy: &Tensor, scale: f32, dtable: &mut Tensor) -> Result<()>;

    // ---- norms -----------------------------------------------------------------
    /// x / rms(x) · (w + offset) over groups of `w.len()` elements; offset is 1
    /// for Gemma. Returns y and 1/rms per group `[rows]`.
    fn rms_norm(&self, x: &Tensor, w: &Tensor, epsilon: f32, offset: f32) -> Result<(Tensor, Tensor)>;
    /// dx (added to `into`), and dw += … where wanted.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        rstd: &Tensor,
        offset: f32,
        into: Option<Tensor>,
        dw: Option<&mut Tensor>,
    ) -> Result<Tensor>;
    /// (x − mean)/std · w + b. Returns y and `[rows, 2]` of mean and 1/std.
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, epsilon: f32) -> Result<(Tensor, Tensor)>;
    fn layer_norm_backward(
        &self,
        dy: &Tensor,
        x: &Tensor,
        w: &Tensor,
        statistics: &Tensor,
        into: Option<Tensor>,
        dwb: Option<(&mut Tensor, &mut Tensor)>,
    ) -> Result<Tensor>;

    // ---- matrix products ---------------------------------------------------------
    /// alpha · op(a) op(b), added to `into`; op transposes where the flag says.
    fn matmul(
        &self,
        a: &Tensor,
        transpose_a: bool,
        b: &Tensor,
        transpose_b: bool,
        alpha: f32,
        into: Option<Tensor>,
    ) -> Result<Tensor>;
    /// x Wᵀ `[N, out]`.
    fn linear(&self, x: &Tensor, w: &Weight) -> Result<Tensor>;
    /// dy W `[N, in]`, added to `into`.
    fn linear_backward(&self, dy: &Tensor, w: &Weight, into: Option<Tensor>) -> Result<Tensor>;
    /// dw `[out, in]` += dyᵀ x.
    fn linear_weight_backward(&self, dy: &Tensor, x: &Tensor, dw: &mut Tensor) -> Result<()>;
    /// Euclidean norm of each row of `W + scale · B A`, `[out]`, without the
    /// whole sum in memory (DoRA). a `[R, in]`, b `[out, R]`.
    fn dora_norm(&self, w: &Weight, a: &Tensor, b: &Tensor, scale: f32) -> Result<Tensor>;

    // ---- attention ---------------------------------------------------------------
    /// Turns x `[N, heads·D]` in place by each token's position; `inverse`
    /// turns back (the backward pass).
    fn rotary(
        &self,
        x: &mut Tensor,
        positions: &[u32],
        table: &RotaryTable,
        head_dim: usize,
        inverse: bool,
    ) -> Result<()>;
    /// Causal attention within each document. q `[N, H·D]`, k and v `[N, G·D]`;
    /// query head h reads key head h / (H/G). Returns o `[N, H·D]` and the
    /// scores' log-sum-exp `[N, H]`.
    fn attention(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor)>;
    /// (dq, dk, dv), recomputing the scores: nothing of size T×T outlives a tile.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        dout: &Tensor,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        lse: &Tensor,
        segments: &Segments,
        spec: &AttentionSpec,
    ) -> Result<(Tensor, Tensor, Tensor)>;
    /// Attention of the last `n` positions of one sequence against its cache:
    /// q `[n, H·D]`; the caches `[capacity, G·D]` hold `length` rows, the last
    /// `n` of which belong to the queries.
    fn attention_cached(
        &self,
        q: &Tensor,
        k_cache: &Tensor,
        v_cache: &Tensor,
        length: usize,
        spec: &AttentionSpec,
    ) -> Result<Tensor>;
    /// Writes rows into a cache `[capacity, C]` from row `at` on.
    fn write_rows(&self, cache: &mut Tensor, at: usize, rows: &Tensor) -> Result<()>;

    // ---- MLP -----------------------------------------------------------------------
    /// act(gate) ⊙ up.
    fn gated(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor>;
    /// (dgate, dup).
    fn gated_backward(
        &self,
        dy: &Tensor,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)>;
    fn activation(&self, x: &Tensor, activation: Activation) -> Result<Tensor>;
    fn activation_backward(&self, dy: &Tensor, x: &Tensor, activation: Activation) -> Result<Tensor>;

    // ---- LM head and token statistics ------------------------------------------------
    /// The logits `[M, V]` themselves, for generation and tests.
    fn logits(&self, h: &Tensor, head: &Head) -> Result<Tensor>;
    /// Statistics of `targets` under the next-token distributions of `h [M, C]`,
    /// in chunks of rows: the whole logits matrix never exists.
    fn token_logp(&self, h: &Tensor, head: &Head, targets: &[u32], want: StatisticSet) -> Result<TokenStatistics>;
    /// dh `[M, C]`, and dW += …, from d loss / d statistic; recomputes the
    /// logits chunk by chunk.
    fn token_logp_backward(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<Tensor>;
    /// Both in one pass over the chunks, for losses whose coefficients are known
    /// beforehand (cross-entropy): the logits are computed once.
    #[allow(clippy::too_many_arguments)]
    fn token_logp_fused(
        &self,
        h: &Tensor,
        head: &Head,
        targets: &[u32],
        want: StatisticSet,
        coefficients: &TokenCoefficients,
        dweight: Option<&mut Tensor>,
    ) -> Result<(TokenStatistics, Tensor)>;

    // ---- optimizer ---------------------------------------------------------------------
    /// The states of a program on this device, as before the first step.
    fn program_states(&self, program: &Program, parameter: &Tensor) -> Result<Vec<ProgramState>>;
    /// A state's memory, for a checkpoint; and back.
    fn read_state(&self, state: &ProgramState) -> Result<StateBuffer>;
    fn write_state(&self, buffer: StateBuffer) -> Result<ProgramState>;
    /// Bytes of temporaries that steps of these programs keep, all of which share
    /// them; 0 where the device keeps none.
    fn program_scratch_bytes(&self, programs: &[Program]) -> u64 {
        let _ = programs;
        0
    }
    /// Runs an optimizer's program over one parameter tensor.
    fn optimizer_step(
        &self,
        program: &Program,
        parameter: &mut Tensor,
        gradient: &Tensor,
        states: &mut [ProgramState],
        scalars: &Scalars,
    ) -> Result<()>;
}

/// An optimizer's state on its device. The types of the elements are the
/// program's affair.
#[derive(Debug)]
pub struct ProgramState(pub(crate) StateStorage);

#[derive(Debug)]
pub(crate) enum StateStorage {
    Host(StateBuffer),
    /// Only the bytes are known.
    Counted(crate::counting::ledger::Counted),
    #[cfg(feature = "gpu")]
    Gpu(program::kernel::GpuState),
}
