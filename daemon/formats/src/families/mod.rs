//! The model families, each one file: all that sets a family apart is data in its
//! [`Family`] value. The readers of `config.json`, of GGUF files and of weights, and
//! the engine's decoder, are written once and read this data.
//!
//! # Source
//! transformers 5.23, `models/*/configuration_*.py` and `modeling_*.py`; llama.cpp,
//! `conversion/*.py`, `src/llama-model.cpp` and `gguf-py/gguf/tensor_mapping.py`.

mod gemma2;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

/// All families. A new one is a line here, a module above, and its file.
pub static FAMILIES: &[&Family] = &[
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &smollm3::FAMILY,
    &gpt2::FAMILY,
    &olmo2::FAMILY,
];

/// The model types that the engine has a decoder for, as `config.json` spells them.
pub fn supported_model_types() -> String {
    let types = FAMILIES.iter().map(|family| match family.wrapper {
        Some(wrapper) => format!("{} ({wrapper})", family.model_type),
        None => family.model_type.to_string(),
    });
    types.collect::<Vec<_>>().join(", ")
}

/// All that sets a family apart.
#[derive(Debug)]
pub struct Family {
    /// The `model_type` of `config.json`.
    pub model_type: &'static str,
    /// The `model_type` of a multimodal model, the text half of which is this family.
    pub wrapper: Option<&'static str>,
    /// transformers' class of the language model.
    pub class_name: &'static str,
    /// transformers' class of a reward model: a `score` layer on the decoder in the
    /// language-model head's place.
    pub reward_class_name: &'static str,
    /// How `config.json` describes a model of the family.
    pub(crate) config: ConfigFacts,
    /// How tensors of a folder are named.
    pub(crate) stored: StoredNames,
    /// How a GGUF file describes a model of the family.
    pub(crate) gguf: GgufFacts,
    /// What the model is made of.
    pub parts: Parts,
}

impl Family {
    /// The family of a `model_type`, that of a multimodal wrapper included: the text
    /// half of such a model is used.
    pub fn of_model_type(model_type: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.model_type == model_type || f.wrapper == Some(model_type)).copied()
    }
}

/// A family is what its `model_type` says.
impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.model_type == other.model_type
    }
}

/// Keys of `config.json`. In a list the first key that is there counts.
#[derive(Debug)]
pub(crate) struct ConfigKeys {
    pub hidden_size: &'static [&'static str],
    pub layers: &'static [&'static str],
    pub heads: &'static [&'static str],
    /// None: as many as query heads.
    pub kv_heads: Option<&'static str>,
    /// None: hidden size / heads.
    pub head_dim: Option<&'static str>,
    pub intermediate_size: &'static str,
    pub max_positions: &'static [&'static str],
    pub epsilon: &'static str,
    pub activation: &'static str,
}

/// The keys of most families.
pub(crate) const KEYS: ConfigKeys = ConfigKeys {
    hidden_size: &["hidden_size"],
    layers: &["num_hidden_layers"],
    heads: &["num_attention_heads"],
    kv_heads: Some("num_key_value_heads"),
    head_dim: Some("head_dim"),
    intermediate_size: "intermediate_size",
    max_positions: &["max_position_embeddings"],
    epsilon: "rms_norm_eps",
    activation: "hidden_act",
};

/// What transformers' configuration class assumes for an absent key.
#[derive(Debug)]
pub(crate) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// None: as many as query heads.
    pub kv_heads: Option<usize>,
    /// None: hidden size / heads.
    pub head_dim: Option<usize>,
    pub intermediate_size: Width,
    pub epsilon: f64,
    pub max_positions: usize,
    pub theta: f64,
    pub tied: bool,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    /// transformers' name of the nonlinearity.
    pub activation: &'static str,
}

/// The defaults of transformers' LlamaConfig.
pub(crate) const DEFAULTS: Defaults = Defaults {
    vocab_size: 32000,
    hidden_size: 4096,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    intermediate_size: Width::Fixed(11008),
    epsilon: 1e-6,
    max_positions: 2048,
    theta: 10_000.0,
    tied: false,
    bos: Some(1),
    eos: Some(2),
    pad: None,
    activation: "silu",
};

/// A default width of the feed-forward block.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Width {
    Fixed(usize),
    /// This many times the hidden size.
    TimesHidden(usize),
}

/// How `config.json` describes a model.
#[derive(Debug)]
pub(crate) struct ConfigFacts {
    pub keys: ConfigKeys,
    pub defaults: Defaults,
    /// Of q, k and v.
    pub attention_bias: Bias,
    /// Of the attention's output.
    pub output_bias: OutputBias,
    pub mlp_bias: Bias,
    pub softcaps: Option<Softcaps>,
    pub query_scale: QueryScale,
    pub positions: Positions,
    pub windows: Windows,
    /// Flags that must not be set, each with what to tell the user.
    pub refused: &'static [(&'static str, &'static str)],
}

/// The description of a Llama.
pub(crate) const CONFIG: ConfigFacts = ConfigFacts {
    keys: KEYS,
    defaults: DEFAULTS,
    attention_bias: Bias::Key("attention_bias"),
    output_bias: OutputBias::AsAttention,
    mlp_bias: Bias::Never,
    softcaps: None,
    query_scale: QueryScale::Head,
    positions: Positions::ROTARY,
    windows: Windows::None,
    refused: &[],
};

/// Whether linear layers have a bias.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bias {
    Always,
    Never,
    /// As this key says; if it is absent there is none.
    Key(&'static str),
}

/// Whether the attention's output has a bias.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OutputBias {
    /// If q, k and v have.
    AsAttention,
    Never,
}

/// Defaults of `attn_logit_softcapping` and `final_logit_softcapping`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Softcaps {
    pub attention: Option<f64>,
    pub logits: Option<f64>,
}

/// What q·k is multiplied by.
#[derive(Debug, Clone, Copy)]
pub(crate) enum QueryScale {
    /// 1/√head_dim.
    Head,
    /// 1/√n, n this key's number.
    Scalar { key: &'static str, default: f64 },
    /// 1/√head_dim if this flag is set or absent, else 1.
    Flag(&'static str),
}

/// How a model knows positions.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Positions {
    /// A learned vector per position.
    Learned,
    Rotary {
        /// `partial_rotary_factor` is read.
        partial: bool,
        /// Default base of the sliding layers, if they have another one.
        local_theta: Option<f64>,
        layers: RotaryLayers,
    },
}

impl Positions {
    /// Every layer rotates whole heads, by one base.
    pub(crate) const ROTARY: Positions =
        Positions::Rotary { partial: false, local_theta: None, layers: RotaryLayers::All };
}

/// Which layers rotate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RotaryLayers {
    All,
    /// As `no_rope_layers` lists, else all but every n-th, n by
    /// `no_rope_layer_interval`.
    Listed {
        interval: usize,
    },
}

/// Which layers see only a window.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Windows {
    None,
    /// Every layer, if there is a `sliding_window`; this is its default.
    EveryLayer(Option<usize>),
    /// As `layer_types` lists, else by a pattern.
    Listed {
        /// Of `sliding_window`.
        default: Option<usize>,
        /// There is a window only if `use_sliding_window` is set.
        flagged: bool,
        pattern: WindowPattern,
    },
}

/// Which layers slide if no list says so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WindowPattern {
    /// The first, and every second after it.
    Alternating,
    /// All but every n-th, n by `sliding_window_pattern`; this is its default.
    AllButEvery(usize),
    /// Those without rope.
    WithoutRope,
    /// From `max_window_layers` on; this is its default.
    From(usize),
}

/// How tensors of a folder are named.
#[derive(Debug)]
pub(crate) struct StoredNames {
    /// What canonical names begin with. Some checkpoints lack it.
    pub prefix: &'static str,
    /// What a multimodal model puts before the names of its text half.
    pub wrappers: &'static [&'static str],
    /// Beginnings of names of what is no part of the language model.
    pub foreign: &'static [&'static str],
    /// Ends of names of stored tables that are no weights.
    pub tables: &'static [&'static str],
}

/// The names of most families. Multimodal gemma3: `language_model.model.` in
/// transformers 4, `model.language_model.` in 5.
pub(crate) const STORED: StoredNames = StoredNames {
    prefix: "model.",
    wrappers: &["model.language_model.", "language_model."],
    foreign: &["vision_tower.", "multi_modal_projector."],
    tables: &[".rotary_emb.inv_freq"],
};

/// How a GGUF file describes a model.
#[derive(Debug)]
pub(crate) struct GgufFacts {
    /// `general.architecture`, and the beginning of the keys.
    pub name: &'static str,
    /// Key of the norm's epsilon.
    pub epsilon: &'static str,
    /// The head is the embedding, even if the file holds it again.
    pub always_tied: bool,
    /// What llama.cpp assumes for an absent `rope.freq_base`.
    pub theta: f64,
    pub window: GgufWindow,
    /// The query's scale is not stored: it is a head's, but in the model of this many
    /// layers hidden size / heads.
    pub wide_query_layers: Option<u64>,
    /// Every n-th layer has no rope. Not stored.
    pub no_rope_interval: Option<u64>,
    /// The file's names of tensors outside the layers, and the canonical ones.
    pub globals: &'static [(&'static str, &'static str)],
    /// The file's names of a layer's modules, and the canonical ones.
    pub modules: &'static [(&'static str, &'static str)],
    /// Modules whose rows the converter reordered within each head, for a rope that
    /// turns neighbours instead of halves.
    pub permuted: &'static [&'static str],
    /// Runs of spaces are pieces, and the order of pieces is the order of merges.
    pub spaces_are_pieces: bool,
    /// Special tokens swallow the space after them, which the file does not say.
    pub tokens_swallow_space: bool,
}

/// What is known of windows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum GgufWindow {
    /// Nothing.
    None,
    /// Never used.
    Off,
    /// Stored if there is one.
    Stored,
    /// Stored; this is its default.
    Default(u64),
    /// Stored with the layers that have it; by default all but every n-th.
    Layers(u64),
    /// Must not be there, and what to tell the user.
    Refused(&'static str),
}

const Q_AND_K: &[&str] = &["self_attn.q_proj", "self_attn.k_proj"];

/// The facts of a Llama in a GGUF file.
pub(crate) const GGUF: GgufFacts = GgufFacts {
    name: "llama",
    epsilon: "attention.layer_norm_rms_epsilon",
    always_tied: false,
    theta: 10_000.0,
    window: GgufWindow::None,
    wide_query_layers: None,
    no_rope_interval: None,
    globals: &[
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
    ],
    modules: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    permuted: Q_AND_K,
    spaces_are_pieces: false,
    tokens_swallow_space: false,
};

/// The modules of a Gemma layer: the name that is the second norm of two elsewhere is
/// the third of four here.
pub(crate) const GEMMA_MODULES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// What a model is made of, with the canonical names. Names of a layer's parts are
/// within the layer.
#[derive(Debug)]
pub struct Parts {
    /// The embedding matrix.
    pub embedding: &'static str,
    /// The learned positions; None: the model rotates queries and keys.
    pub position_embedding: Option<&'static str>,
    /// The embedding is multiplied by √hidden_size.
    pub scaled_embedding: bool,
    /// What the names of the layers begin with, before the layer's number.
    pub layers: &'static str,
    /// Module of the norm after the last layer.
    pub final_norm: &'static str,
    /// The LM head, if it is not the embedding.
    pub head: &'static str,
    /// The kind of every norm.
    pub norm: NormKind,
    /// Before attention.
    pub norm_attention: Option<&'static str>,
    /// After attention, before the stream.
    pub post_attention: Option<&'static str>,
    /// Before the feed-forward branch.
    pub norm_mlp: Option<&'static str>,
    /// After the feed-forward branch, before the stream.
    pub post_mlp: Option<&'static str>,
    /// Norms of queries and keys, before they rotate.
    pub qk_norm: Option<QkNorm>,
    /// To queries, keys and values.
    pub projection: Projection,
    /// From the mixed values to the stream.
    pub attention_output: &'static str,
    /// From the stream to the inner width.
    pub mlp_input: MlpInput,
    /// From the inner width to the stream.
    pub mlp_output: &'static str,
    /// Linear layers are stored `[in, out]` (GPT-2's Conv1D).
    pub transposed: bool,
}

/// The kind of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// RMSNorm, without a bias.
    Rms {
        /// Added to the weight.
        offset: f32,
    },
    /// LayerNorm, with a bias.
    Layer,
}

/// Norms of queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm {
    /// Module of the queries' norm.
    pub query: &'static str,
    /// Module of the keys' norm.
    pub key: &'static str,
    /// What is normed together.
    pub over: QkNormOver,
}

/// What a norm of queries or keys takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNormOver {
    /// Each head.
    Head,
    /// All heads of a token.
    Token,
}

/// Linear layers to queries, keys and values.
#[derive(Debug, Clone, Copy)]
pub enum Projection {
    /// One each.
    Split {
        /// To the queries.
        query: &'static str,
        /// To the keys.
        key: &'static str,
        /// To the values.
        value: &'static str,
    },
    /// One for all.
    Fused(&'static str),
}

/// Linear layers from the stream to the feed-forward branch's inner width.
#[derive(Debug, Clone, Copy)]
pub enum MlpInput {
    /// act(gate) ⊙ up, one layer each.
    Gated {
        /// To what passes the nonlinearity.
        gate: &'static str,
        /// To what is multiplied by it.
        up: &'static str,
    },
    /// act(gate) ⊙ up, one layer for both.
    FusedGated(&'static str),
    /// act(h).
    Plain(&'static str),
}

/// The parts of a Llama.
pub(crate) const PARTS: Parts = Parts {
    embedding: "model.embed_tokens.weight",
    position_embedding: None,
    scaled_embedding: false,
    layers: "model.layers",
    final_norm: "model.norm",
    head: "lm_head.weight",
    norm: NormKind::Rms { offset: 0.0 },
    norm_attention: Some("input_layernorm"),
    post_attention: None,
    norm_mlp: Some("post_attention_layernorm"),
    post_mlp: None,
    qk_norm: None,
    projection: Projection::Split { query: "self_attn.q_proj", key: "self_attn.k_proj", value: "self_attn.v_proj" },
    attention_output: "self_attn.o_proj",
    mlp_input: MlpInput::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj" },
    mlp_output: "mlp.down_proj",
    transposed: false,
};

/// A norm of each head of queries and keys.
pub(crate) const HEAD_NORMS: QkNorm =
    QkNorm { query: "self_attn.q_norm", key: "self_attn.k_norm", over: QkNormOver::Head };

/// The parts of a Gemma 2.
pub(crate) const GEMMA_PARTS: Parts = Parts {
    scaled_embedding: true,
    norm: NormKind::Rms { offset: 1.0 },
    post_attention: Some("post_attention_layernorm"),
    norm_mlp: Some("pre_feedforward_layernorm"),
    post_mlp: Some("post_feedforward_layernorm"),
    ..PARTS
};

/// What no Gemma may say.
pub(crate) const GEMMA_REFUSED: &[(&str, &str)] =
    &[("use_bidirectional_attention", "only causal language models can be trained")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_listed_once_under_its_own_names() {
        for (at, family) in FAMILIES.iter().enumerate() {
            for other in &FAMILIES[at + 1..] {
                assert_ne!(family.model_type, other.model_type);
                assert_ne!(family.gguf.name, other.gguf.name);
                assert_ne!(family.class_name, other.class_name);
                assert_ne!(family.reward_class_name, other.reward_class_name);
            }
        }
    }

    #[test]
    fn the_readme_names_every_family() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
        let line = format!("| models | {} |", supported_model_types());
        assert!(readme.contains(&line), "README.md does not say: {line}");
    }
}
