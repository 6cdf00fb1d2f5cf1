//! The optimizer's side of a step: one program and its states for each trained
//! tensor.

use finetuned_plugin_api::optimizer::{Optimizer, TensorKind, TensorShape};
use finetuned_plugin_api::program::{Program, Scalars, StateBuffer};
use finetuned_shaders::ops::ProgramState;
use finetuned_shaders::{Ops, Weight};

use crate::error::EngineError;
use crate::model::decoder::Decoder;
use crate::model::parameters::{Gradients, Parameter, ParameterId, Role};

struct Rule {
    id: ParameterId,
    program: Program,
    /// For optimizers that evaluate at another point than they train at.
    evaluation: Option<Program>,
    states: Vec<ProgramState>,
}

pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    /// Asks the optimizer for each trained tensor's program and makes its
    /// states.
    ///
    /// # Errors
    /// An optimizer that only works by callback on host memory, a program that
    /// does not fit, no memory.
    pub fn new(ops: &dyn Ops, model: &Decoder, optimizer: &dyn Optimizer) -> Result<Rules, EngineError> {
        if optimizer.host().is_some() {
            return Err(EngineError::Other(
                "this optimizer updates by callback on host memory; only optimizers that give a program can be run"
                    .into(),
            ));
        }
        let rules = model
            .parameters
            .trainable()
            .into_iter()
            .map(|id| {
                let shape = tensor_shape(model, id);
                let program = optimizer.rule(&shape)?;
                let evaluation = optimizer.evaluation(&shape)?;
                let states = ops.program_states(&program, model.parameters.tensor(id)?)?;
                Ok(Rule { id, program, evaluation, states })
            })
            .collect::<Result<_, EngineError>>()?;
        Ok(Rules { rules })
    }

    /// Bytes that an optimizer's states will take, before there are any.
    pub fn state_bytes(optimizer: &dyn Optimizer, shapes: &[TensorShape]) -> Result<u64, EngineError> {
        shapes.iter().map(|shape| Ok(optimizer.rule(shape)?.state_bytes() as u64)).sum()
    }

    pub fn step(
        &mut self,
        ops: &dyn Ops,
        model: &mut Decoder,
        gradients: &Gradients,
        scalars: &Scalars,
    ) -> Result<(), EngineError> {
        for rule in &mut self.rules {
            let Some(gradient) = gradients.get(rule.id) else { continue };
            if let Weight::Dense(value) = &mut model.parameters.get_mut(rule.id).value {
                ops.optimizer_step(&rule.program, value, gradient, &mut rule.states, scalars)?;
            }
        }
        Ok(())
    }

    /// Puts the evaluation point's values into the model and returns the
    /// training point's, to be handed to [`Rules::back_to_training`]. Empty for
    /// most optimizers.
    pub fn to_evaluation(
        &mut self,
        ops: &dyn Ops,
        model: &mut Decoder,
        scalars: &Scalars,
    ) -> Result<Vec<(ParameterId, Weight)>, EngineError> {
        let mut kept = Vec::new();
        for rule in &mut self.rules {
            let Some(program) = &rule.evaluation else { continue };
            let mut value = ops.copy(model.parameters.tensor(rule.id)?)?;
            let zero = ops.zeros(value.shape())?;
            // It names the training program's states that it reads, and writes none.
            let mut states = Vec::with_capacity(program.states().len());
            for wanted in program.states() {
                let at = rule.program.states().iter().position(|s| s.name == wanted.name).ok_or_else(|| {
                    EngineError::Other(format!(
                        "the optimizer's evaluation reads a state {} that it does not keep",
                        wanted.name
                    ))
                })?;
                states.push(ops.write_state(ops.read_state(&rule.states[at])?)?);
            }
            ops.optimizer_step(program, &mut value, &zero, &mut states, scalars)?;
            let slot = &mut model.parameters.get_mut(rule.id).value;
            kept.push((rule.id, std::mem::replace(slot, Weight::Dense(value))));
        }
        Ok(kept)
    }

    pub fn back_to_training(model: &mut Decoder, kept: Vec<(ParameterId, Weight)>) {
        for (id, value) in kept {
            model.parameters.get_mut(id).value = value;
        }
    }

    /// Name and memory of every state, for the checkpoint.
    pub fn export(&self, ops: &dyn Ops, model: &Decoder) -> Result<Vec<(String, StateBuffer)>, EngineError> {
        let mut out = Vec::new();
        for rule in &self.rules {
            let name = &model.parameters.get(rule.id).name;
            for (state, description) in rule.states.iter().zip(rule.program.states()) {
                out.push((format!("{name}::{}", description.name), ops.read_state(state)?));
            }
        }
        Ok(out)
    }

    /// Puts back what [`Rules::export`] gave.
    ///
    /// # Errors
    /// A state that is absent or of another size.
    pub fn import(
        &mut self,
        ops: &dyn Ops,
        model: &Decoder,
        mut take: impl FnMut(&str) -> Option<StateBuffer>,
    ) -> Result<(), EngineError> {
        for rule in &mut self.rules {
            let name = model.parameters.get(rule.id).name.clone();
            for (state, description) in rule.states.iter_mut().zip(rule.program.states()) {
                let key = format!("{name}::{}", description.name);
                let buffer = take(&key).filter(|buffer| buffer.clone().slice().fits(description)).ok_or_else(|| {
                    EngineError::Other(format!(
                        "the checkpoint lacks the optimizer state {key}, or has another size of it"
                    ))
                })?;
                *state = ops.write_state(buffer)?;
            }
        }
        Ok(())
    }
}

/// A trained tensor as optimizers see it.
pub fn tensor_shape(model: &Decoder, id: ParameterId) -> TensorShape {
    let parameter = model.parameters.get(id);
    TensorShape { shape: parameter.shape.clone(), name: parameter.name.clone(), kind: kind(model, id, parameter) }
}

fn kind(model: &Decoder, id: ParameterId, parameter: &Parameter) -> TensorKind {
    match parameter.role {
        Role::Embedding if id == model.head && id != model.embedding => TensorKind::Head,
        Role::Embedding => TensorKind::Embedding,
        Role::Linear => TensorKind::Matrix,
        Role::Bias => TensorKind::Bias,
        Role::Norm => TensorKind::Norm,
        Role::Adapter if parameter.name.ends_with("lora_A.weight") => TensorKind::LoraA,
        Role::Adapter if parameter.name.ends_with("lora_B.weight") => TensorKind::LoraB,
        Role::Adapter => TensorKind::Magnitude,
        Role::ValueHead => TensorKind::ValueHead,
    }
}
