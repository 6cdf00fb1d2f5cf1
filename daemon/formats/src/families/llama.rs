//! Llama 1 to 3, SmolLM2, TinyLlama and their kin.

use super::{Bias, CONFIG, ConfigFacts, Family, GGUF, PARTS, STORED};

pub static FAMILY: Family = Family {
    model_type: "llama",
    wrapper: None,
    class_name: "LlamaForCausalLM",
    reward_class_name: "LlamaForSequenceClassification",
    config: ConfigFacts { mlp_bias: Bias::Key("mlp_bias"), ..CONFIG },
    stored: STORED,
    gguf: GGUF,
    parts: PARTS,
};
