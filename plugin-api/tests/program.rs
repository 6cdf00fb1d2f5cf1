//! Programs: what is refused, and what a step computes by the definition.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::program::{Axis, Program, Rule, Scalars, StateBuffer, StateSlice, StateType, interpret};

fn tensor(shape: &[usize]) -> TensorShape {
    TensorShape { shape: shape.to_vec(), name: "w".into(), kind: TensorKind::Matrix }
}

fn adamw(tensor: &TensorShape, kind: StateType) -> Result<Program, PluginError> {
    let rule = Rule::new(tensor);
    let (p, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
    let (m, v) = (rule.state("m", kind), rule.state("v", kind));
    let m1 = m * 0.9 + g * 0.1;
    let v1 = v * 0.999 + g * g * 0.001;
    rule.set(m, m1);
    rule.set(v, v1);
    let c1 = 1.0 - rule.constant(0.9).pow(t);
    let c2 = 1.0 - rule.constant(0.999).pow(t);
    rule.finish(p - lr * (m1 / c1) / ((v1 / c2).sqrt() + 1e-8))
}

fn step(program: &Program, p: &mut [f32], g: &[f32], states: &mut [StateBuffer], step: u64) {
    let mut slices: Vec<StateSlice> = states.iter_mut().map(StateBuffer::slice).collect();
    interpret(program, p, g, &mut slices, &Scalars { learning_rate: 0.01, step }).unwrap();
}

#[test]
fn the_first_adam_step_moves_by_the_learning_rate() {
    let program = adamw(&tensor(&[2, 3]), StateType::F32).unwrap();
    let mut p = [1.0; 6];
    let g = [3.0, -0.2, 1e-3, 7.0, -1.0, 0.5];
    let mut states = program.initial_states(&p).unwrap();
    step(&program, &mut p, &g, &mut states, 1);
    for (p, g) in p.iter().zip(g) {
        assert!((p - (1.0 - 0.01 * g.signum())).abs() < 1e-6, "{p}");
    }
}

#[test]
fn a_program_crosses_as_text_bit_for_bit_and_is_checked_on_arrival() {
    let program = adamw(&tensor(&[4, 5]), StateType::BlockwiseU8 { signed: true }).unwrap();
    let text = serde_json::to_string(&program).unwrap();
    assert_eq!(serde_json::from_str::<Program>(&text).unwrap(), program);
    let broken = text.replace("\"parameter\":", "\"parameter\":9");
    let error = serde_json::from_str::<Program>(&broken).unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
}

#[test]
fn mistakes_are_named_with_their_place() {
    let refused = |build: &dyn Fn(&Rule) -> Result<Program, PluginError>| {
        let rule = Rule::new(&tensor(&[2, 3]));
        build(&rule).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&|r| r.finish(r.parameter() + r.gradient().transpose())),
        "optimizer program, instruction 3: Add of 2 by 3 and 3 by 2"
    );
    assert_eq!(
        refused(&|r| r.finish(r.gradient().sum(Axis::EachRow))),
        "optimizer program, instruction 1: the new parameter has 2 by 1 elements, expected 2 by 3"
    );
    assert_eq!(
        refused(&|r| r.finish(r.parameter().matmul(r.gradient()))),
        "optimizer program, instruction 2: matrix product of 2 by 3 and 2 by 3"
    );
    assert_eq!(
        refused(&|r| r.finish(r.parameter() * f64::NAN)),
        "optimizer program, instruction 1: the constant NaN is not finite"
    );
    assert_eq!(
        refused(&|r| {
            r.row_state("a");
            r.row_state("a");
            r.finish(r.parameter())
        }),
        "optimizer program, instruction 0: two states are called 'a'"
    );
    let late =
        r#"{"rows":1,"columns":1,"states":[],"code":[{"unary":["negate",1]},"parameter"],"parameter":0,"updates":[]}"#;
    let error = serde_json::from_str::<Program>(late).unwrap_err().to_string();
    assert!(error.contains("instruction 0: uses value 1 before it is defined"), "{error}");
}

#[test]
fn reductions_products_and_broadcasts() {
    let rule = Rule::new(&tensor(&[2, 3]));
    let g = rule.gradient();
    let rows = rule.row_state("rows");
    let columns = rule.column_state("columns");
    rule.set(rows, g.mean(Axis::EachRow));
    rule.set(columns, g.maximum(Axis::EachColumn));
    let scaled = g / g.norm() + g.matmul(g.transpose()).matmul(g) + g.sum(Axis::EachColumn);
    let program = rule.finish(scaled.less(0.0).select(-1.0, scaled)).unwrap();
    let g = [1.0, 2.0, 3.0, -4.0, 5.0, -6.0];
    let mut p = [0.0; 6];
    let mut states = program.initial_states(&p).unwrap();
    step(&program, &mut p, &g, &mut states, 1);
    assert_eq!(states[0], StateBuffer::F32(vec![2.0, -5.0 / 3.0]));
    assert_eq!(states[1], StateBuffer::F32(vec![1.0, 5.0, 3.0]));
    // g gᵀ = [[14, −12], [−12, 77]].
    let norm = 91f32.sqrt();
    let expected = [
        1.0 / norm + 14.0 + 48.0 - 3.0,
        2.0 / norm + 28.0 - 60.0 + 7.0,
        3.0 / norm + 42.0 + 72.0 - 3.0,
        -4.0 / norm - 12.0 - 308.0 - 3.0,
        5.0 / norm - 24.0 + 385.0 + 7.0,
        -6.0 / norm - 36.0 - 462.0 - 3.0,
    ];
    for (got, expected) in p.iter().zip(expected) {
        let expected = if expected < 0.0 { -1.0 } else { expected };
        assert!((got - expected).abs() < 1e-4, "{got} against {expected}");
    }
}

#[test]
fn eight_bit_moments_stay_near_the_exact_ones() {
    let n = 1000;
    let exact = adamw(&tensor(&[n]), StateType::F32).unwrap();
    let rough = adamw(&tensor(&[n]), StateType::BlockwiseU8 { signed: true }).unwrap();
    assert_eq!(rough.state_bytes(), 2 * (n + 16));
    let start: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let (mut a, mut b) = (start.clone(), start.clone());
    let (mut sa, mut sb) = (exact.initial_states(&start).unwrap(), rough.initial_states(&start).unwrap());
    for t in 1..=20 {
        let g: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11 + t as f32 * 0.2).cos()).collect();
        step(&exact, &mut a, &g, &mut sa, t);
        step(&rough, &mut b, &g, &mut sb, t);
    }
    let moved: f32 = a.iter().zip(&start).map(|(a, s)| (a - s).abs()).sum::<f32>() / n as f32;
    let apart: f32 = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f32>() / n as f32;
    assert!(apart < 0.1 * moved, "{apart} apart after moving {moved}");
}
