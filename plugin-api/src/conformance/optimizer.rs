//! The checks of optimizers.

use serde_json::Map;

use super::{Check, words};
use crate::optimizer::{HostOptimizer, Optimizer, TensorKind, TensorShape};
use crate::program::{Program, Scalars, StateBuffer, StateSlice, interpret};
use crate::registry::{Entry, Registry};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "create", help: "it is made with its defaults, many times and beside itself", run: create },
    Check {
        name: "rule",
        help: "it has a program for a vector, a matrix and adapters",
        run: |entry| check(entry, rule),
    },
    Check { name: "finite", help: "ten steps stay finite, with zero gradients too", run: |entry| check(entry, finite) },
    Check { name: "progress", help: "it walks down a quadratic", run: |entry| check(entry, progress) },
    Check { name: "determinism", help: "the same steps give the same bits", run: |entry| check(entry, determinism) },
    Check { name: "state", help: "resuming from saved state changes no bit", run: state },
];

fn optimizer(entry: &Entry) -> Result<Box<dyn Optimizer>, String> {
    let mut registry = Registry::default();
    registry.add(entry.clone()).map_err(words)?;
    registry.optimizer(&entry.descriptor.name, &Map::new()).map_err(words)
}

fn create(entry: &Entry) -> Result<(), String> {
    (0..64).try_for_each(|_| optimizer(entry).map(|_| ()))
}

/// Runs a check of programs for each tensor, or the check of host steps.
fn check(entry: &Entry, of: impl Fn(&dyn Optimizer, &TensorShape) -> Result<(), String>) -> Result<(), String> {
    let made = optimizer(entry)?;
    if let Some(host) = made.host() {
        return host_step(host);
    }
    tensors().iter().try_for_each(|tensor| {
        of(made.as_ref(), tensor).map_err(|why| format!("a {:?} of {:?}: {why}", tensor.kind, tensor.shape))
    })
}

fn rule(optimizer: &dyn Optimizer, tensor: &TensorShape) -> Result<(), String> {
    let program = optimizer.rule(tensor).map_err(words)?;
    if program.elements() != tensor.elements() {
        return Err(format!("the program is for {} elements", program.elements()));
    }
    optimizer.evaluation(tensor).map(|_| ()).map_err(words)
}

fn finite(optimizer: &dyn Optimizer, tensor: &TensorShape) -> Result<(), String> {
    let mut run = Run::new(optimizer, tensor)?;
    let n = tensor.elements();
    (0..10).try_for_each(|step| {
        let gradient = if step % 4 == 0 { vec![0.0; n] } else { wave(n, step) };
        run.step(&gradient, 1e-2)
    })
}

fn progress(optimizer: &dyn Optimizer, tensor: &TensorShape) -> Result<(), String> {
    let mut run = Run::new(optimizer, tensor)?;
    let height = |p: &[f32]| p.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    let start = height(&run.parameter);
    for _ in 0..50 {
        let gradient: Vec<f32> = run.parameter.iter().map(|x| 2.0 * x).collect();
        run.step(&gradient, 1e-3)?;
    }
    let end = height(&run.parameter);
    if end < start { Ok(()) } else { Err(format!("fifty steps down x² lead from {start:.4} to {end:.4}")) }
}

fn determinism(optimizer: &dyn Optimizer, tensor: &TensorShape) -> Result<(), String> {
    same_bits(optimizer, tensor, Ok)
}

fn state(entry: &Entry) -> Result<(), String> {
    let other = optimizer(entry)?;
    check(entry, |optimizer, tensor| {
        // As a checkpoint: through bytes, into another instance's program.
        same_bits(optimizer, tensor, |run| {
            let text = serde_json::to_string(&run.states).map_err(|error| error.to_string())?;
            let states = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            Ok(Run { program: other.rule(tensor).map_err(words)?, states, ..run })
        })
    })
}

/// Six steps, twice; the second time `halfway` has its turn after the third.
fn same_bits(
    optimizer: &dyn Optimizer,
    tensor: &TensorShape,
    halfway: impl Fn(Run) -> Result<Run, String>,
) -> Result<(), String> {
    let (mut whole, mut parts) = (Run::new(optimizer, tensor)?, Run::new(optimizer, tensor)?);
    for step in 0..6 {
        if step == 3 {
            parts = halfway(parts)?;
        }
        let gradient = wave(tensor.elements(), step);
        whole.step(&gradient, 1e-2)?;
        parts.step(&gradient, 1e-2)?;
    }
    if whole.parameter == parts.parameter && whole.states == parts.states {
        Ok(())
    } else {
        Err("the same steps give other bits".into())
    }
}

/// What a host step is checked for in place of a program, which it has none of: its numbers
/// stay finite, and the same steps give the same bits.
fn host_step(host: &dyn HostOptimizer) -> Result<(), String> {
    for tensor in tensors() {
        let n = tensor.elements();
        let run = || -> Result<Vec<f32>, String> {
            let mut parameter: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() + 0.1).collect();
            let states = host.states(&tensor).map_err(words)?;
            let mut states: Vec<Vec<f32>> = states.iter().map(|state| vec![0.0; state.elements()]).collect();
            for step in 1..=20 {
                let gradient: Vec<f32> = parameter.iter().map(|x| 2.0 * x).collect();
                let scalars = Scalars { learning_rate: 1e-3, step };
                host.step(&tensor, &mut parameter, &gradient, &mut states, &scalars).map_err(words)?;
            }
            Ok(parameter)
        };
        let (a, b) = (run()?, run()?);
        if a.iter().any(|x| !x.is_finite()) {
            return Err(format!("a parameter of {:?} is no longer finite", tensor.shape));
        }
        if a != b {
            return Err(format!("the same steps give other bits for {:?}", tensor.shape));
        }
    }
    Ok(())
}

/// A tensor under training.
struct Run {
    program: Program,
    parameter: Vec<f32>,
    states: Vec<StateBuffer>,
    step: u64,
}

impl Run {
    fn new(optimizer: &dyn Optimizer, tensor: &TensorShape) -> Result<Run, String> {
        let program = optimizer.rule(tensor).map_err(words)?;
        let parameter: Vec<f32> = (0..tensor.elements()).map(|i| (i as f32 * 0.7).sin() + 0.1).collect();
        let states = program.initial_states(&parameter).map_err(words)?;
        Ok(Run { program, parameter, states, step: 0 })
    }

    fn step(&mut self, gradient: &[f32], learning_rate: f64) -> Result<(), String> {
        self.step += 1;
        let scalars = Scalars { learning_rate, step: self.step };
        let mut slices: Vec<StateSlice> = self.states.iter_mut().map(StateBuffer::slice).collect();
        interpret(&self.program, &mut self.parameter, gradient, &mut slices, &scalars).map_err(words)?;
        match self.parameter.iter().position(|x| !x.is_finite()) {
            Some(i) => Err(format!("after step {} parameter {i} is {}", self.step, self.parameter[i])),
            None => Ok(()),
        }
    }
}

fn tensors() -> Vec<TensorShape> {
    let tensor = |shape: &[usize], kind| TensorShape { shape: shape.to_vec(), name: "layers.0.weight".into(), kind };
    vec![
        tensor(&[24], TensorKind::Norm),
        tensor(&[6, 10], TensorKind::Matrix),
        tensor(&[4, 33], TensorKind::LoraA),
        tensor(&[33, 4], TensorKind::LoraB),
        tensor(&[5, 3], TensorKind::Embedding),
        tensor(&[1], TensorKind::Bias),
    ]
}

fn wave(n: usize, step: u64) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 1.7 + step as f32).sin()).collect()
}
