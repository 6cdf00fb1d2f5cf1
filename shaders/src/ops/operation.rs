//! The list of operations: timing, the conformance checks and every call name them here.

use strum::{EnumIter, IntoStaticStr};

/// An operation that takes a device's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumIter, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum Operation {
    Zeros,
    Upload,
    UploadU32,
    UploadBf16,
    UploadNf4,
    RandomWeight,
    Read,
    ReadLater,
    Write,
    Copy,
    ReadWeight,
    AddScaled,
    Add,
    Divide,
    Scale,
    FillZero,
    ScaleRows,
    AddBias,
    BiasBackward,
    ScaleColumns,
    ColumnDot,
    SumSquares,
    GatherRows,
    ScatterRows,
    SplitColumns,
    JoinColumns,
    Dropout,
    Embedding,
    EmbeddingBackward,
    RmsNorm,
    RmsNormBackward,
    LayerNorm,
    LayerNormBackward,
    Matmul,
    Linear,
    LinearBackward,
    LinearWeightBackward,
    DoraNorm,
    Rotary,
    Attention,
    AttentionBackward,
    AttentionCached,
    WriteRows,
    Gated,
    GatedBackward,
    Activation,
    ActivationBackward,
    Logits,
    TokenLogp,
    TokenLogpBackward,
    TokenLogpFused,
    ProgramStates,
    ReadState,
    WriteState,
    OptimizerStep,
}

impl Operation {
    /// The name of the method, as reports print it.
    pub fn name(self) -> &'static str {
        self.into()
    }
}
