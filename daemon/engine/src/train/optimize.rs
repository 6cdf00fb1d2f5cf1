//! The optimizer's side of a step: per trained tensor one program and its
//! states, or the states of an optimizer that steps by a callback on the host.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{Optimizer, TensorShape};
use finetuned_plugin_api::program::{Initial, Program, Scalars, State, StateBuffer, StateType};
use finetuned_shaders::ops::ProgramState;
use finetuned_shaders::{Device, Weight};

use crate::error::EngineError;
use crate::model::decoder::Decoder;
use crate::model::parameters::{Gradients, ParameterId};

struct Rule {
    id: ParameterId,
    way: Way,
}

enum Way {
    Program {
        program: Program,
        /// For optimizers that evaluate at another point than they train at.
        evaluation: Option<Program>,
        states: Vec<ProgramState>,
    },
    /// The optimizer's own callback; its states never leave the host.
    Host { shape: TensorShape, descriptions: Vec<State>, states: Vec<Vec<f32>> },
}

pub struct Rules {
    rules: Vec<Rule>,
    /// Called per step if it steps on the host.
    optimizer: Box<dyn Optimizer>,
}

/// What an optimizer needs beside parameters and gradients, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptimizerBytes {
    pub states: u64,
    /// While a step runs: a program's temporaries, or the host's copies of the
    /// largest tensor and its gradient.
    pub scratch: u64,
}

impl Rules {
    /// Asks the optimizer for the program of every trained tensor and makes its
    /// states.
    ///
    /// # Errors
    /// A program or a state that does not fit, no memory.
    pub fn new(ops: &Device, model: &Decoder, optimizer: Box<dyn Optimizer>) -> Result<Rules, EngineError> {
        let rules = model
            .parameters
            .trainable()
            .into_iter()
            .map(|id| {
                let shape = tensor_shape(model, id);
                if optimizer.host().is_some() {
                    let descriptions = host_states(optimizer.as_ref(), &shape)?;
                    let parameter = ops.read(model.parameters.tensor(id)?)?;
                    let first = |state: &State| match StateBuffer::new(state, &parameter) {
                        StateBuffer::F32(values) => values,
                        StateBuffer::BlockwiseU8 { .. } => Vec::new(),
                    };
                    let states = descriptions.iter().map(first).collect();
                    return Ok(Rule { id, way: Way::Host { shape, descriptions, states } });
                }
                let program = optimizer.rule(&shape)?;
                let evaluation = optimizer.evaluation(&shape)?;
                let states = ops.program_states(&program, model.parameters.tensor(id)?)?;
                Ok(Rule { id, way: Way::Program { program, evaluation, states } })
            })
            .collect::<Result<_, EngineError>>()?;
        Ok(Rules { rules, optimizer })
    }

    /// What an optimizer takes for this model, whose tensors need no values.
    ///
    /// # Errors
    /// A shape for which it has no rule.
    pub fn bytes(ops: &Device, model: &Decoder, optimizer: Box<dyn Optimizer>) -> Result<OptimizerBytes, EngineError> {
        if optimizer.host().is_some() {
            // Its states would be made on the host: only their sizes are asked for.
            let mut bytes = OptimizerBytes { states: 0, scratch: 0 };
            for id in model.parameters.trainable() {
                let shape = tensor_shape(model, id);
                let states = host_states(optimizer.as_ref(), &shape)?;
                bytes.states += states.iter().map(|state| state.bytes() as u64).sum::<u64>();
                bytes.scratch = bytes.scratch.max(8 * shape.elements() as u64);
            }
            return Ok(bytes);
        }
        let before = ops.allocated_bytes().0;
        let rules = Rules::new(ops, model, optimizer)?;
        let states = ops.allocated_bytes().0 - before;
        // Tensors of one shape share a program, and all programs their temporaries.
        let mut programs: Vec<Program> = Vec::new();
        for rule in &rules.rules {
            let Way::Program { program, .. } = &rule.way else { continue };
            let size = |p: &Program| (p.rows(), p.columns());
            if !programs.iter().any(|known| size(known) == size(program) && known == program) {
                programs.push(program.clone());
            }
        }
        Ok(OptimizerBytes { states, scratch: ops.program_scratch_bytes(&programs) })
    }

    /// Bytes that a step copies to the host and back, if the optimizer steps
    /// there.
    pub fn copied_bytes(&self) -> Option<u64> {
        self.optimizer.host()?;
        let elements = self.rules.iter().map(|rule| match &rule.way {
            Way::Host { shape, .. } => shape.elements() as u64,
            Way::Program { .. } => 0,
        });
        // The tensor there and back, and its gradient there.
        Some(12 * elements.sum::<u64>())
    }

    pub fn step(
        &mut self,
        ops: &Device,
        model: &mut Decoder,
        gradients: &Gradients,
        scalars: &Scalars,
    ) -> Result<(), EngineError> {
        for rule in &mut self.rules {
            let Some(gradient) = gradients.get(rule.id) else { continue };
            let Weight::Dense(value) = &mut model.parameters.get_mut(rule.id).value else { continue };
            match &mut rule.way {
                Way::Program { program, states, .. } => {
                    ops.optimizer_step(program, value, gradient, states, scalars)?;
                }
                Way::Host { shape, states, .. } => {
                    let host = self.optimizer.host().ok_or_else(no_host)?;
                    let mut parameter = ops.read(value)?;
                    host.step(shape, &mut parameter, &ops.read(gradient)?, states, scalars)?;
                    if parameter.iter().chain(states.iter().flatten()).any(|x| !x.is_finite()) {
                        return Err(EngineError::NotFinite {
                            step: scalars.step as usize,
                            what: format!("the optimizer's update of {}, or a state of it,", shape.name),
                            remedy: "the last checkpoint is kept; lower train.learning_rate".into(),
                        });
                    }
                    ops.write(value, &parameter)?;
                }
            }
        }
        Ok(())
    }

    /// Puts the evaluation point's values into the model and returns the
    /// training point's, to be handed to [`Rules::back_to_training`]. Empty for
    /// most optimizers.
    pub fn to_evaluation(
        &mut self,
        ops: &Device,
        model: &mut Decoder,
        scalars: &Scalars,
    ) -> Result<Vec<(ParameterId, Weight)>, EngineError> {
        let mut kept = Vec::new();
        for rule in &mut self.rules {
            let Way::Program { program: trained, evaluation: Some(program), states: kept_states } = &rule.way else {
                continue;
            };
            let mut value = ops.copy(model.parameters.tensor(rule.id)?)?;
            let zero = ops.zeros(value.shape())?;
            // It names the training program's states that it reads, and writes none.
            let mut states = Vec::with_capacity(program.states().len());
            for wanted in program.states() {
                let at = trained.states().iter().position(|s| s.name == wanted.name).ok_or_else(|| {
                    PluginError::Failed(format!(
                        "the optimizer's evaluation reads a state {} that it does not keep",
                        wanted.name
                    ))
                })?;
                states.push(ops.write_state(ops.read_state(&kept_states[at])?)?);
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
    pub fn export(&self, ops: &Device, model: &Decoder) -> Result<Vec<(String, StateBuffer)>, EngineError> {
        let mut out = Vec::new();
        for rule in &self.rules {
            let name = &model.parameters.get(rule.id).name;
            match &rule.way {
                Way::Program { program, states, .. } => {
                    for (state, description) in states.iter().zip(program.states()) {
                        out.push((format!("{name}::{}", description.name), ops.read_state(state)?));
                    }
                }
                Way::Host { descriptions, states, .. } => {
                    for (state, description) in states.iter().zip(descriptions) {
                        out.push((format!("{name}::{}", description.name), StateBuffer::F32(state.clone())));
                    }
                }
            }
        }
        Ok(out)
    }

    /// Puts back what [`Rules::export`] gave; `take` finds a state by its name, None if
    /// there is none.
    ///
    /// # Errors
    /// A state that is absent or of another size; what `take` returns.
    pub fn import(
        &mut self,
        ops: &Device,
        model: &Decoder,
        mut take: impl FnMut(&str) -> Result<Option<StateBuffer>, EngineError>,
    ) -> Result<(), EngineError> {
        for rule in &mut self.rules {
            let name = model.parameters.get(rule.id).name.clone();
            let mut buffer = |description: &State| {
                let state = format!("{name}::{}", description.name);
                let found = take(&state)?.filter(|buffer| buffer.clone().slice().fits(description));
                found.ok_or(EngineError::OtherOptimizerState { state })
            };
            match &mut rule.way {
                Way::Program { program, states, .. } => {
                    for (state, description) in states.iter_mut().zip(program.states()) {
                        *state = ops.write_state(buffer(description)?)?;
                    }
                }
                Way::Host { descriptions, states, .. } => {
                    for (state, description) in states.iter_mut().zip(descriptions.iter()) {
                        if let StateBuffer::F32(values) = buffer(description)? {
                            *state = values;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The states of an optimizer that steps on the host: f32, and as they are kept.
fn host_states(optimizer: &dyn Optimizer, shape: &TensorShape) -> Result<Vec<State>, EngineError> {
    let states = optimizer.host().ok_or_else(no_host)?.states(shape)?;
    let (rows, columns) = shape.matrix();
    for state in &states {
        let whole = state.initial != Initial::Parameter || (state.rows, state.columns) == (rows, columns);
        if state.kind != StateType::F32 || !whole {
            return Err(EngineError::Plugin(PluginError::Failed(format!(
                "the optimizer's state '{}' for a tensor of {:?}: on the host states are f32, and one that starts as the parameter has its shape",
                state.name, shape.shape
            ))));
        }
    }
    Ok(states)
}

fn no_host() -> EngineError {
    PluginError::Failed("the optimizer no longer steps on the host".into()).into()
}

/// A trained tensor as optimizers see it.
pub fn tensor_shape(model: &Decoder, id: ParameterId) -> TensorShape {
    let parameter = model.parameters.get(id);
    TensorShape { shape: parameter.shape.clone(), name: parameter.name.clone(), kind: parameter.kind }
}
