//! Checks of optimizer programs: an Adam with every kind of
//! instruction, beside the interpreter that defines them.

use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::program::{Axis, Program, Rule, Scalars, StateBuffer, StateSlice, StateType, interpret};

use crate::error::{Result, TensorError};
use crate::ops::Device;
use crate::ops::check::{Check, Pairs, random};

pub(crate) const CHECKS: &[Check] =
    &[Check { operation: "optimizer_step", tolerance: 2e-5, products: false, run: optimizer_step }];

fn program(rows: usize, columns: usize) -> Result<Program> {
    let shape = TensorShape { shape: vec![rows, columns], name: "w".into(), kind: TensorKind::Matrix };
    let rule = Rule::new(&shape);
    let (p, g) = (rule.parameter(), rule.gradient());
    let (m, v) = (rule.state("m", StateType::F32), rule.state("v", StateType::F32));
    let m_new = m.lerp(g, 0.1);
    let v_new = v.lerp(g.square(), 0.01);
    rule.set(m, m_new);
    rule.set(v, v_new);
    // A reduction of each kind takes part.
    let rows_largest = p.abs().maximum(Axis::EachRow);
    let column_mean = g.square().mean(Axis::EachColumn);
    let all = g.norm();
    let update = m_new / (v_new.sqrt() + 1e-8) + rows_largest * 0.01 + column_mean * 0.1 + all * 1e-3;
    rule.finish(p - rule.learning_rate() * update)
        .map_err(|error| TensorError::Failed { op: "optimizer_step", reason: error.to_string() })
}

fn optimizer_step(ops: &Device) -> Result<Pairs> {
    let failed = |error: finetuned_plugin_api::PluginError| TensorError::Failed {
        op: "optimizer_step",
        reason: error.to_string(),
    };
    let mut pairs = Vec::new();
    for (rows, columns) in [(1, 1), (1, 513), (5, 1), (100, 7), (33, 257)] {
        let program = program(rows, columns)?;
        let n = rows * columns;
        let mut want = random(1, n);
        let mut want_states = program.initial_states(&want).map_err(failed)?;
        let mut parameter = ops.upload(&[rows, columns], &want)?;
        let mut states = ops.program_states(&program, &parameter)?;
        for step in 1..=3 {
            let gradient = random(10 + step, n);
            let scalars = Scalars { learning_rate: 0.01, step: step.into() };
            let mut slices: Vec<StateSlice> = want_states.iter_mut().map(StateBuffer::slice).collect();
            interpret(&program, &mut want, &gradient, &mut slices, &scalars).map_err(failed)?;
            let gradient = ops.upload(&[rows, columns], &gradient)?;
            ops.optimizer_step(&program, &mut parameter, &gradient, &mut states, &scalars)?;
        }
        pairs.push((ops.read(&parameter)?, want));
        for (state, want) in states.iter().zip(&mut want_states) {
            let mut got = ops.read_state(state)?;
            let values = |buffer: &mut StateBuffer| {
                let slice = buffer.slice();
                let mut values = vec![0.0; slice.elements()];
                slice.read(0, &mut values);
                values
            };
            let mut again = ops.read_state(&ops.write_state(ops.read_state(state)?)?)?;
            pairs.push((values(&mut again), values(&mut got)));
            pairs.push((values(&mut got), values(want)));
        }
    }
    Ok(pairs)
}
