//! What to change if a run does not fit.

use crate::recipe::{Method, Recipe};

/// The first thing to change that would help most.
pub(super) fn remedy(recipe: &Recipe, longest: usize, on_host: bool) -> String {
    let mut ideas = Vec::new();
    if recipe.train.micro_batch_size != 1 && recipe.train.batch_size > 1 {
        ideas.push("train.micro_batch_size = 1".to_string());
    }
    if !recipe.train.gradient_checkpointing {
        ideas.push("train.gradient_checkpointing = true".into());
    } else if !recipe.train.offload_activations && !on_host {
        ideas.push("train.offload_activations = true".into());
    }
    if longest > 512 {
        ideas.push(format!("a train.sequence_length below {longest}"));
    }
    match recipe.method {
        Method::Full => ideas.push("method = \"lora\"".into()),
        Method::Lora => ideas.push("method = \"qlora\"".into()),
        Method::Qlora => ideas.push("a smaller base model".into()),
    }
    format!("try {}", ideas.join(", or "))
}
