//! Optimizers against PyTorch, bitsandbytes and their own formulas.

use finetuned_plugin_api::optimizer::{Optimizer, TensorKind, TensorShape};
use finetuned_plugin_api::program::{Scalars, StateBuffer, StateSlice, interpret};
use finetuned_standard::registry;
use safetensors::SafeTensors;

fn optimizer(name: &str, parameters: &str) -> Box<dyn Optimizer> {
    registry().unwrap().optimizer(name, &serde_json::from_str(parameters).unwrap()).unwrap()
}

fn tensor(shape: &[usize], kind: TensorKind) -> TensorShape {
    TensorShape { shape: shape.to_vec(), name: "w".into(), kind }
}

/// A parameter, its optimizer's program and state.
struct Run {
    program: finetuned_plugin_api::program::Program,
    parameter: Vec<f32>,
    states: Vec<StateBuffer>,
    step: u64,
}

impl Run {
    fn new(optimizer: &dyn Optimizer, tensor: &TensorShape, start: Vec<f32>) -> Run {
        let program = optimizer.rule(tensor).unwrap();
        let states = program.initial_states(&start).unwrap();
        Run { program, parameter: start, states, step: 0 }
    }

    fn step(&mut self, gradient: &[f32], learning_rate: f64) {
        self.step += 1;
        let mut states: Vec<StateSlice> = self.states.iter_mut().map(StateBuffer::slice).collect();
        let scalars = Scalars { learning_rate, step: self.step };
        interpret(&self.program, &mut self.parameter, gradient, &mut states, &scalars).unwrap();
    }
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |worst, x| if x.is_nan() { x } else { worst.max(x) })
}

#[test]
fn steps_equal_pytorch() {
    let file = SafeTensors::deserialize(include_bytes!("golden/optimizers.safetensors")).unwrap();
    let read = |name: String| -> Vec<f32> {
        let bytes = file.tensor(&name).unwrap().data();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    for (name, parameters) in [
        ("adamw", r#"{"beta2": 0.95, "weight_decay": 0.1}"#),
        ("sgd", r#"{"momentum": 0.9, "nesterov": true, "weight_decay": 0.01}"#),
        ("adafactor", "{}"),
        ("muon", "{}"),
    ] {
        let tensor = tensor(&[12, 20], TensorKind::Matrix);
        let mut run = Run::new(optimizer(name, parameters).as_ref(), &tensor, read(format!("{name}.start")));
        let (gradients, expected) = (read(format!("{name}.grads")), read(format!("{name}.params")));
        for (step, (gradient, expected)) in gradients.chunks(240).zip(expected.chunks(240)).enumerate() {
            run.step(gradient, 1e-2);
            let error = largest_difference(&run.parameter, expected);
            assert!(error <= 1e-6, "{name}, step {}: {error}", step + 1);
        }
    }
}

#[test]
fn eight_bit_steps_equal_bitsandbytes() {
    let expected: Vec<Vec<f32>> = serde_json::from_str(include_str!("golden/adamw_8bit.json")).unwrap();
    let n = 5000;
    let start = (0..n).map(|i| (f64::from(i) * 0.37).sin() as f32).collect();
    let adamw = optimizer("adamw-8bit", r#"{"beta2": 0.95, "weight_decay": 0.1}"#);
    let mut run = Run::new(adamw.as_ref(), &tensor(&[n as usize], TensorKind::Bias), start);
    assert!(run.program.state_bytes() < 3 * n as usize);
    for (t, expected) in (1..).zip(&expected) {
        let gradient: Vec<f32> = (0..n)
            .map(|i| {
                let fade = (-f64::from(i % 512) / 64.0).exp();
                ((f64::from(i) * 0.11 + f64::from(t) * 0.2).cos() * fade * f64::from(t)) as f32
            })
            .collect();
        run.step(&gradient, 1e-2);
        let got: Vec<f32> = run.parameter.iter().step_by(97).copied().collect();
        let error = largest_difference(&got, expected);
        assert!(error <= 2e-6, "step {t}: {error}");
    }
    let small = adamw.rule(&tensor(&[4095], TensorKind::Bias)).unwrap();
    assert_eq!(small.state_bytes(), 8 * 4095);
}

/// A gradient that changes from step to step.
fn gradient(step: usize, i: usize) -> f64 {
    (i as f64 * 0.7 + step as f64 + 0.3).sin() * (1.0 + step as f64)
}

#[test]
fn lion_equals_its_formula() {
    let lion = optimizer("lion", r#"{"weight_decay": 0.1}"#);
    let start: Vec<f32> = (0..30).map(|i| (i as f32).cos()).collect();
    let (mut p, mut m): (Vec<f64>, Vec<f64>) = (start.iter().map(|x| f64::from(*x)).collect(), vec![0.0; 30]);
    let mut run = Run::new(lion.as_ref(), &tensor(&[5, 6], TensorKind::LoraA), start);
    for step in 0..5 {
        let g: Vec<f32> = (0..30).map(|i| gradient(step, i) as f32).collect();
        run.step(&g, 1e-3);
        for i in 0..30 {
            let g = f64::from(g[i]);
            let direction = (0.9 * m[i] + 0.1 * g).signum();
            p[i] = p[i] * (1.0 - 1e-3 * 0.1) - 1e-3 * direction;
            m[i] = 0.99 * m[i] + 0.01 * g;
        }
        let expected: Vec<f32> = p.iter().map(|x| *x as f32).collect();
        assert!(largest_difference(&run.parameter, &expected) < 1e-6);
    }
}

#[test]
fn schedule_free_adamw_equals_the_papers_three_points() {
    let optimizer = optimizer("schedule-free-adamw", r#"{"weight_decay": 0.05}"#);
    let shape = tensor(&[40], TensorKind::Norm);
    let start: Vec<f32> = (0..40).map(|i| (i as f32).cos()).collect();
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    let (mut x, mut z, mut v) = (wide(&start), wide(&start), vec![0.0; 40]);
    let (mut total, mut largest) = (0.0, 0.0f64);
    let mut run = Run::new(optimizer.as_ref(), &shape, start);
    let evaluation = optimizer.evaluation(&shape).unwrap().unwrap();
    for step in 0..8 {
        let y: Vec<f64> = x.iter().zip(&z).map(|(x, z)| 0.1 * z + 0.9 * x).collect();
        let expected: Vec<f32> = y.iter().map(|y| *y as f32).collect();
        assert!(largest_difference(&run.parameter, &expected) < 1e-5, "y before step {step}");
        // A warm-up from 0 and a fall.
        let lr = [0.0, 1e-3, 2e-3, 2e-3, 2e-3, 1e-3, 1e-3, 5e-4][step];
        let g: Vec<f32> = (0..40).map(|i| gradient(step, i) as f32).collect();
        run.step(&g, lr);
        largest = largest.max(lr);
        total += largest * largest;
        let c = if total > 0.0 { largest * largest / total } else { 0.0 };
        for i in 0..40 {
            let g = f64::from(g[i]);
            v[i] = 0.999 * v[i] + 0.001 * g * g;
            let u = g / ((v[i] / (1.0 - 0.999f64.powi(step as i32 + 1))).sqrt() + 1e-8) + 0.05 * y[i];
            z[i] -= lr * u;
            x[i] = (1.0 - c) * x[i] + c * z[i];
        }
        // The point that is saved, from the training point and the state of the same name.
        let at = run.program.states().iter().position(|state| state.name == "z").unwrap();
        let mut saved = run.parameter.clone();
        let mut states = [run.states[at].clone()];
        let mut slices: Vec<StateSlice> = states.iter_mut().map(StateBuffer::slice).collect();
        let scalars = Scalars { learning_rate: lr, step: run.step };
        interpret(&evaluation, &mut saved, &[0.0; 40], &mut slices, &scalars).unwrap();
        let expected: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        assert!(largest_difference(&saved, &expected) < 1e-5, "x after step {step}");
    }
}

#[test]
fn muon_takes_matrices_either_way_up_and_leaves_the_rest_to_adamw() {
    let muon = optimizer("muon", "{}");
    let states = |shape: &[usize], kind| {
        let program = muon.rule(&tensor(shape, kind)).unwrap();
        program.states().iter().map(|state| state.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(states(&[6, 4], TensorKind::LoraB), ["momentum"]);
    assert_eq!(states(&[6], TensorKind::Norm), ["m", "v"]);
    assert_eq!(states(&[6, 4], TensorKind::Embedding), ["m", "v"]);

    // A tall matrix's step is the wide one's, transposed and scaled by √(rows / columns).
    let wide: Vec<f32> = (0..24).map(|i| gradient(0, i) as f32).collect();
    let tall: Vec<f32> = (0..24).map(|at| wide[(at % 4) * 6 + at / 4]).collect();
    let zero = r#"{"weight_decay": 0.0}"#;
    let step = |shape: &[usize], g: &[f32]| {
        let mut run = Run::new(optimizer("muon", zero).as_ref(), &tensor(shape, TensorKind::Matrix), vec![0.0; 24]);
        run.step(g, 1.0);
        run.parameter
    };
    let (a, b) = (step(&[4, 6], &wide), step(&[6, 4], &tall));
    let transposed: Vec<f32> = (0..24).map(|at| a[(at % 4) * 6 + at / 4] * 1.5f32.sqrt()).collect();
    assert!(largest_difference(&b, &transposed) < 0.02, "{b:?} {transposed:?}");
}

#[test]
fn every_rule_crosses_the_door_unchanged() {
    let registry = registry().unwrap();
    for entry in registry.entries() {
        let Ok(optimizer) = registry.optimizer(&entry.descriptor.name, &Default::default()) else { continue };
        for shape in [&[7][..], &[96, 64]] {
            let program = optimizer.rule(&tensor(shape, TensorKind::Matrix)).unwrap();
            let text = serde_json::to_string(&program).unwrap();
            assert_eq!(serde_json::from_str::<finetuned_plugin_api::program::Program>(&text).unwrap(), program);
        }
    }
}
