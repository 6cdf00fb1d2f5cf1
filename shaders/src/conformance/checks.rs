//! The list of checks.

use super::{Check, matrices, nf4, optimizer, rows};

pub(super) fn all() -> Vec<Check> {
    vec![
        Check { operation: "memory", run: rows::memory },
        Check { operation: "random_weight", run: rows::random_weight },
        Check { operation: "add_scaled", run: rows::add_scaled },
        Check { operation: "divide", run: rows::divide },
        Check { operation: "columns", run: rows::columns },
        Check { operation: "sum_squares", run: rows::sum_squares },
        Check { operation: "gather_rows", run: rows::gather },
        Check { operation: "dropout", run: rows::dropout },
        Check { operation: "embedding", run: rows::embedding },
        Check { operation: "embedding_backward", run: rows::embedding_backward },
        Check { operation: "rms_norm", run: rows::rms_norm },
        Check { operation: "rms_norm_backward", run: rows::rms_norm_backward },
        Check { operation: "layer_norm", run: rows::layer_norm },
        Check { operation: "layer_norm_backward", run: rows::layer_norm_backward },
        Check { operation: "rotary", run: rows::rotary },
        Check { operation: "gated", run: rows::gated },
        Check { operation: "gated_backward", run: rows::gated_backward },
        Check { operation: "activation", run: rows::activation },
        Check { operation: "matmul", run: matrices::matmul },
        Check { operation: "nf4_quantise", run: nf4::quantise },
        Check { operation: "nf4", run: nf4::dequantise },
        Check { operation: "linear", run: matrices::linear },
        Check { operation: "linear_backward", run: matrices::linear_backward },
        Check { operation: "linear_weight_backward", run: matrices::linear_weight_backward },
        Check { operation: "dora_norm", run: matrices::dora_norm },
        Check { operation: "attention", run: matrices::attention },
        Check { operation: "attention_backward", run: matrices::attention_backward },
        Check { operation: "attention_cached", run: matrices::attention_cached },
        Check { operation: "token_logp", run: matrices::token_logp },
        Check { operation: "token_logp_backward", run: matrices::token_logp_backward },
        Check { operation: "optimizer_step", run: optimizer::optimizer_step },
    ]
}
