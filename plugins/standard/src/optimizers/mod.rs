//! Optimizers, as programs.

pub mod adafactor;
pub mod adamw;
pub mod adamw_8bit;
pub mod lion;
pub mod muon;
pub mod schedule_free_adamw;
pub mod sgd;

use finetuned_plugin_api::parameters::Parameter;

fn beta1(default: f64) -> Parameter {
    Parameter::number("beta1", default, "decay of the first moment, a step").range(0.0, 0.999_999)
}

fn beta2(default: f64) -> Parameter {
    Parameter::number("beta2", default, "decay of the second moment, a step").range(0.0, 0.999_999_9)
}

fn epsilon(default: f64) -> Parameter {
    Parameter::number("epsilon", default, "keeps a division from zero").range(0.0, 1.0)
}

fn weight_decay(default: f64) -> Parameter {
    Parameter::number("weight_decay", default, "part of the parameter taken off, a unit of learning rate")
        .range(0.0, 1e3)
}
