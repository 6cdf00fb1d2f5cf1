//! The executor against the definition.

use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::program::{
    Axis, Program, Rule, Scalars, StateBuffer, StateSlice, StateType, Value, interpret,
};

use super::cpu::{Scratch, run};
use crate::cpu::workers::Workers;

fn tensor(rows: usize, columns: usize) -> TensorShape {
    TensorShape { shape: vec![rows, columns], name: "w".into(), kind: TensorKind::Matrix }
}

fn wave(n: usize, seed: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.731 + seed).sin() * (1.0 + (i % 17) as f32)).collect()
}

/// Sizes around the ends of blocks and pieces, and the shapes of adapters.
const SIZES: &[(usize, usize)] =
    &[(1, 1), (1, 7), (5, 1), (3, 5), (16, 32), (1, 513), (8, 576), (100, 7), (257, 259), (2, 70_001), (1100, 130)];

/// Three steps of a program on both, and how far the results may be apart.
fn check(name: &str, tolerance: f32, build: impl Fn(&Rule) -> Result<Program, finetuned_plugin_api::PluginError>) {
    let mut scratch = Scratch::default();
    for &(rows, columns) in SIZES {
        let program = build(&Rule::new(&tensor(rows, columns))).unwrap();
        let n = rows * columns;
        let start = wave(n, 0.3);
        let mut expected = (start.clone(), program.initial_states(&start).unwrap());
        let mut got = Vec::new();
        for threads in [1, 3] {
            let workers = Workers::new(threads).unwrap();
            let (mut p, mut states) = (start.clone(), program.initial_states(&start).unwrap());
            for step in 1..=3 {
                let gradient = wave(n, step as f32);
                let scalars = Scalars { learning_rate: 0.01, step };
                let slices = states.iter_mut().map(StateBuffer::slice);
                run(&workers, &program, &mut p, &gradient, slices, &scalars, &mut scratch).unwrap();
                if threads == 1 {
                    let mut slices: Vec<StateSlice> = expected.1.iter_mut().map(StateBuffer::slice).collect();
                    interpret(&program, &mut expected.0, &gradient, &mut slices, &scalars).unwrap();
                }
            }
            got.push((p, states));
        }
        assert_eq!(got[0], got[1], "{name} {rows}x{columns}: threads change bits");
        close(&format!("{name} {rows}x{columns}"), tolerance, &got[0].0, &expected.0);
        for (got, expected) in got[0].1.iter_mut().zip(&mut expected.1) {
            let read = |state: &mut StateBuffer| {
                let state = state.slice();
                let mut values = vec![0.0; state.elements()];
                state.read(0, &mut values);
                values
            };
            close(&format!("{name} {rows}x{columns}, a state"), tolerance, &read(got), &read(expected));
        }
    }
}

fn close(name: &str, tolerance: f32, got: &[f32], expected: &[f32]) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let apart = (got - expected).abs();
        assert!(apart <= tolerance * expected.abs().max(1.0), "{name}, {i}: {got} against {expected}");
    }
}

fn adamw(rule: &Rule, kind: [StateType; 2]) -> Result<Program, finetuned_plugin_api::PluginError> {
    let (p, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
    let (m, v) = (rule.state("m", kind[0]), rule.state("v", kind[1]));
    let m1 = m.lerp(g, 0.1);
    let v1 = v * 0.95 + g * g * 0.05;
    rule.set(m, m1);
    rule.set(v, v1);
    let c1 = 1.0 - rule.constant(0.9).pow(t);
    let c2 = 1.0 - rule.constant(0.95).pow(t);
    rule.finish(p * (1.0 - lr * 0.1) - lr / c1 * (m1 / (v1.sqrt() / c2.sqrt() + 1e-8)))
}

#[test]
fn elementwise_programs_give_the_definitions_bits() {
    check("adamw", 0.0, |rule| adamw(rule, [StateType::F32; 2]));
    let eight_bit = [StateType::BlockwiseU8 { signed: true }, StateType::BlockwiseU8 { signed: false }];
    check("adamw in 8 bits", 0.0, |rule| adamw(rule, eight_bit));
    check("every operation", 0.0, |rule| {
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let small = (p.abs() + 0.1).ln().exp().min(3.0).max(g.sign() * 0.5);
        let chosen = g.less(p).select(small.pow(1.5), -p.round_bf16());
        let constant = p.less(0.0).select(lr, 2.0);
        rule.finish(chosen * 0.1 + (1.0 - g / (small + 1.0)) * constant)
    });
    check("a copy, and a swap", 0.0, |rule| {
        let z = rule.copy_of_parameter("z");
        let old = rule.state("old", StateType::F32);
        rule.set(z, rule.parameter());
        rule.set(old, rule.learning_rate() + rule.gradient() * 0.0);
        rule.finish(z - rule.gradient() * 0.1)
    });
}

#[test]
fn reductions_and_broadcasts_agree() {
    check("adafactor", 1e-5, |rule| {
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let (rows, columns) = (rule.row_state("rows"), rule.column_state("columns"));
        let squared = g * g;
        let new_rows = rows + (squared.mean(Axis::EachRow) - rows) * 0.5;
        let new_columns = columns + (squared.mean(Axis::EachColumn) - columns) * 0.5;
        rule.set(rows, new_rows);
        rule.set(columns, new_columns);
        let update = g / (new_rows / new_rows.mean(Axis::All) * new_columns).max(1e-12).sqrt();
        let limit = update.norm().max(1.0);
        rule.finish(p - p.norm().max(1e-3) * lr / limit * update)
    });
    check("maxima and small states", 1e-6, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let (largest, steps) = (rule.scalar_state("largest"), rule.scalar_state("steps"));
        let new = largest.max(g.abs().maximum(Axis::All));
        rule.set(largest, new);
        rule.set(steps, rule.step());
        let rows = g.maximum(Axis::EachRow) + steps;
        let columns = (g * rows).maximum(Axis::EachColumn).sign();
        rule.finish(p - g / new * 0.1 + columns * rows.abs() * 1e-3)
    });
    check("small states that swap", 0.0, |rule| {
        let (a, b) = (rule.row_state("a"), rule.row_state("b"));
        rule.set(a, b + rule.step());
        rule.set(b, a);
        let (c, d) = (rule.scalar_state("c"), rule.scalar_state("d"));
        rule.set(c, d);
        rule.set(d, c + rule.learning_rate());
        rule.finish(rule.parameter() + a * c)
    });
    check("a sum of an eight-bit state", 1e-5, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let m = rule.state("m", StateType::BlockwiseU8 { signed: true });
        rule.set(m, m * 0.5 + g);
        let rows = (m * p).sum(Axis::EachRow);
        rule.finish(p - rows / (1.0 + rows.abs()) * m.sum(Axis::EachColumn).sign())
    });
}

#[test]
fn matrix_products_agree() {
    fn orthogonal<'r>(mut x: Value<'r>, steps: usize) -> Value<'r> {
        let (rows, columns) = x.size();
        let tall = rows > columns;
        if tall {
            x = x.transpose();
        }
        x = x / x.norm().max(1e-7);
        for _ in 0..steps {
            let gram = x.matmul(x.transpose());
            x = x * 3.4445 + (gram * -4.7750 + gram.matmul(gram) * 2.0315).matmul(x);
        }
        if tall { x.transpose() } else { x }
    }
    check("muon", 1e-3, |rule| {
        // The largest sizes would take the definition's loops too long.
        let (rows, columns) = rule.size();
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let m = rule.state("momentum", StateType::F32);
        let m1 = m.lerp(g, 0.05);
        rule.set(m, m1);
        let steps = if rows * columns > 60_000 { 1 } else { 3 };
        rule.finish(p * 0.999 - lr * orthogonal(g.lerp(m1, 0.95), steps))
    });
    check("transposes of products", 1e-4, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let (rows, columns) = rule.size();
        if rows.max(columns) > 600 {
            return rule.finish(p - g);
        }
        let gram = g.transpose().matmul(g);
        let both = (gram + gram.transpose()) / gram.norm().max(1e-6);
        rule.finish(p + p.matmul(both.transpose()) * 0.01)
    });
}

#[test]
fn wrong_sizes_are_refused() {
    let workers = Workers::new(1).unwrap();
    let program = adamw(&Rule::new(&tensor(4, 4)), [StateType::F32; 2]).unwrap();
    let scalars = Scalars { learning_rate: 0.1, step: 1 };
    let (mut p, g) = (vec![0.0; 16], vec![0.0; 16]);
    let mut scratch = Scratch::default();
    let mut states = program.initial_states(&p).unwrap();
    let slices = states.iter_mut().take(1).map(StateBuffer::slice);
    let error = run(&workers, &program, &mut p, &g, slices, &scalars, &mut scratch).unwrap_err();
    assert_eq!(error.to_string(), "optimizer_step: expected 2 states, got 1");
    let slices = states.iter_mut().map(StateBuffer::slice);
    let error = run(&workers, &program, &mut p[..8], &g, slices, &scalars, &mut scratch).unwrap_err();
    assert_eq!(error.to_string(), "optimizer_step: expected 16, got 8 and 16");
}
