//! Programs on the first GPU against the definition.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::program::{
    Axis, Initial, Program, Rule, Scalars, State, StateBuffer, StateSlice, StateType, Value, interpret,
};

use super::lower::{LEAST_BUFFERS, Lowered, Pass};
use super::{launch, state};
use crate::ops::testing::{bits, gpu_for_test, gpu_of};
use crate::ops::{Device, ProgramState};
use crate::random::Key;

const EIGHT_BIT: [StateType; 2] = [StateType::BlockwiseU8 { signed: true }, StateType::BlockwiseU8 { signed: false }];

/// One element, vectors that lie and stand, ends of cubes, blocks and pieces.
const SIZES: &[(usize, usize)] =
    &[(1, 1), (1, 7), (5, 1), (3, 5), (1, 513), (300, 1), (8, 576), (100, 7), (257, 259), (3, 4097)];

/// A step of its own size and sign at every place.
fn wave(n: usize, seed: f32) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.731 + seed).sin() * (1.0 + (i % 17) as f32)).collect()
}

fn shape(rows: usize, columns: usize) -> TensorShape {
    TensorShape { shape: vec![rows, columns], name: "w".into(), kind: TensorKind::Matrix }
}

fn values(buffer: &mut StateBuffer) -> Vec<f32> {
    let slice = buffer.slice();
    let mut values = vec![0.0; slice.elements()];
    slice.read(0, &mut values);
    values
}

/// What a parameter and its states are after some steps.
type After = (Vec<f32>, Vec<StateBuffer>);

fn by_definition(program: &Program, start: &[f32], steps: u64, gradient: &dyn Fn(u64) -> Vec<f32>) -> After {
    let (mut p, mut states) = (start.to_vec(), program.initial_states(start).unwrap());
    for step in 1..=steps {
        let mut slices: Vec<StateSlice> = states.iter_mut().map(StateBuffer::slice).collect();
        let scalars = Scalars { learning_rate: 0.01, step };
        interpret(program, &mut p, &gradient(step), &mut slices, &scalars).unwrap();
    }
    (p, states)
}

/// With kernels of at most `most` buffers, or as many as the device has.
fn on_gpu(
    gpu: &Device,
    program: &Program,
    start: &[f32],
    steps: u64,
    gradient: &dyn Fn(u64) -> Vec<f32>,
    most: Option<usize>,
) -> After {
    let shape = [program.rows(), program.columns()];
    let mut p = gpu.upload(&shape, start).unwrap();
    let mut states = gpu.program_states(program, &p).unwrap();
    for step in 1..=steps {
        let g = gpu.upload(&shape, &gradient(step)).unwrap();
        let scalars = Scalars { learning_rate: 0.01, step };
        match most {
            None => gpu.optimizer_step(program, &mut p, &g, &mut states, &scalars).unwrap(),
            Some(most) => {
                let lowered = Lowered::new(program, most);
                let states = state::checked(gpu_of(gpu), program, &mut states).unwrap();
                launch(gpu_of(gpu), program, &lowered, &mut p, &g, states, &scalars, &mut Vec::new()).unwrap();
            }
        }
    }
    (gpu.read(&p).unwrap(), states.iter().map(|state| gpu.read_state(state).unwrap()).collect())
}

#[track_caller]
fn near(name: &str, tolerance: f32, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}: elements");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let same = got == expected || (got.is_nan() && expected.is_nan());
        let apart = (got - expected).abs();
        assert!(same || apart <= tolerance * expected.abs().max(1.0), "{name}, {i}: {got} against {expected}");
    }
}

/// Three steps of a program by the definition, twice on the GPU, and once in
/// kernels of the fewest buffers.
fn check(name: &str, tolerance: f32, build: impl Fn(&Rule) -> Result<Program, PluginError>) {
    let Some(gpu) = gpu_for_test() else { return };
    for &(rows, columns) in SIZES {
        let name = format!("{name} {rows}x{columns}");
        let program = build(&Rule::new(&shape(rows, columns))).unwrap();
        let start = wave(rows * columns, 0.3);
        let gradient = |step| wave(rows * columns, step as f32);
        let mut expected = by_definition(&program, &start, 3, &gradient);
        let mut got = on_gpu(&gpu, &program, &start, 3, &gradient, None);
        let again = on_gpu(&gpu, &program, &start, 3, &gradient, None);
        assert_eq!(bits(&got.0), bits(&again.0), "{name}: two runs differ");
        assert!(got.1 == again.1, "{name}: the states of two runs differ");
        let split = on_gpu(&gpu, &program, &start, 3, &gradient, Some(LEAST_BUFFERS));
        near(&format!("{name} in small kernels"), tolerance, &split.0, &got.0);
        near(&name, tolerance, &got.0, &expected.0);
        for (got, expected) in got.1.iter_mut().zip(&mut expected.1) {
            // A quotient's last bit may choose the next code.
            let coarse = matches!(got, StateBuffer::BlockwiseU8 { .. });
            let (got, expected) = (values(got), values(expected));
            let largest = expected.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
            near(&format!("{name}, a state"), if coarse { 0.02 * largest } else { tolerance }, &got, &expected);
        }
    }
}

fn adamw(rule: &Rule, kind: [StateType; 2]) -> Result<Program, PluginError> {
    let (p, g, t, lr) = (rule.parameter(), rule.gradient(), rule.step(), rule.learning_rate());
    let (m, v) = (rule.state("m", kind[0]), rule.state("v", kind[1]));
    let new_m = m.lerp(g, 0.1);
    let new_v = v * 0.999 + g * g * 0.001;
    rule.set(m, new_m);
    rule.set(v, new_v);
    let correction1 = 1.0 - rule.constant(0.9).pow(t);
    let correction2 = 1.0 - rule.constant(0.999).pow(t);
    let denominator = new_v.sqrt() * (1.0 / correction2.sqrt()) + 1e-8;
    rule.finish(p * (1.0 - lr * 0.01) - lr / correction1 * (new_m / denominator))
}

#[test]
fn adamw_is_one_kernel_and_agrees() {
    for kind in [[StateType::F32; 2], EIGHT_BIT] {
        let program = adamw(&Rule::new(&shape(64, 48)), kind).unwrap();
        // The fewest buffers that wgpu promises, less those of the runtime.
        let lowered = Lowered::new(&program, 5);
        let [Pass::Chain(chain)] = &lowered.passes[..] else { panic!("{:?}", lowered.passes) };
        assert_eq!((chain.places.len(), chain.code.sinks.len(), lowered.buffers), (4, 3, 0));
    }
    check("adamw", 2e-6, |rule| adamw(rule, [StateType::F32; 2]));
    check("adamw in 8 bits", 2e-3, |rule| adamw(rule, EIGHT_BIT));
}

#[test]
fn sgd_lion_and_schedule_free_agree() {
    check("sgd", 1e-6, |rule| {
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let momentum = rule.state("momentum", StateType::F32);
        let new = rule.step().less(1.5).select(g, momentum * 0.9 + g);
        rule.set(momentum, new);
        rule.finish(p - lr * (g + new * 0.9))
    });
    check("lion", 1e-6, |rule| {
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let m = rule.state("m", StateType::F32);
        rule.set(m, m * 0.99 + g * 0.01);
        rule.finish(p * (1.0 - lr * 0.1) - lr * (m * 0.9 + g * 0.1).sign())
    });
    check("schedule-free", 1e-5, |rule| {
        let (y, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
        let (z, v) = (rule.copy_of_parameter("z"), rule.state("v", StateType::F32));
        let weights = rule.scalar_state("weights");
        let new_v = v * 0.999 + g * g * 0.001;
        let sum = weights + lr * lr;
        let c = lr * lr / sum;
        let update = g / (new_v.sqrt() / (1.0 - rule.constant(0.999).pow(t)).sqrt() + 1e-8) + y * 0.01;
        rule.set(z, z - lr * update);
        rule.set(v, new_v);
        rule.set(weights, sum);
        rule.finish(y + (z - y) * c + update * (lr * (0.9 * (1.0 - c) - 1.0)))
    });
}

#[test]
fn adafactor_agrees() {
    check("adafactor", 1e-5, |rule| {
        let (p, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
        let newness = t.pow(-0.8);
        let (rows, columns) = (rule.row_state("rows"), rule.column_state("columns"));
        let squared = g * g;
        let new_rows = rows + (squared.mean(Axis::EachRow) - rows) * newness;
        let new_columns = columns + (squared.mean(Axis::EachColumn) - columns) * newness;
        rule.set(rows, new_rows);
        rule.set(columns, new_columns);
        let variance = new_rows / new_rows.mean(Axis::All).max(1e-7) * new_columns;
        let update = g / variance.max(1e-14).sqrt();
        let (rows, columns) = rule.size();
        let root = ((rows * columns) as f64).sqrt();
        let alpha = (p.norm() / root).max(1e-3) * lr.min(1.0 / t.sqrt());
        rule.finish(p - alpha / (update.norm() / root).max(1.0) * update)
    });
}

#[test]
fn muon_and_products_agree() {
    fn orthogonal<'r>(x: Value<'r>, steps: usize, rounded: impl Fn(Value<'r>) -> Value<'r>) -> Value<'r> {
        let (rows, columns) = x.size();
        let tall = rows > columns;
        let mut x = rounded(x);
        if tall {
            x = x.transpose();
        }
        x = rounded(x / rounded(x.norm()).max(1e-7));
        for _ in 0..steps {
            let gram = rounded(x.matmul(x.transpose()));
            let polynomial = rounded(gram * -4.7750 + gram.matmul(gram) * 2.0315);
            x = rounded(x * 3.4445 + polynomial.matmul(x));
        }
        if tall { x.transpose() } else { x }
    }
    fn muon(rule: &Rule, bf16: bool) -> Result<Program, PluginError> {
        let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
        let (rows, columns) = rule.size();
        let m = rule.state("momentum", StateType::F32);
        let new = m.lerp(g, 0.05);
        rule.set(m, new);
        // The definition's loops are slow.
        let steps = if rows.min(columns) > 200 { 1 } else { 3 };
        let direction = orthogonal(g.lerp(new, 0.95), steps, |x| if bf16 { x.round_bf16() } else { x });
        rule.finish(p * 0.999 - lr * direction)
    }
    check("muon", 1e-4, |rule| muon(rule, false));
    // Sums in another order may round to the next bf16, 0.4% away, of a step of 0.01.
    check("muon in bf16", 1e-3, |rule| muon(rule, true));
    check("products and transposes", 1e-4, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let (rows, columns) = rule.size();
        if rows.max(columns) > 600 {
            return rule.finish(p - g.transpose().transpose());
        }
        let gram = g.transpose().matmul(g);
        let both = (gram + gram.transpose()) / gram.norm().max(1e-6);
        rule.finish(p + p.matmul(both.transpose()) * 0.01)
    });
}

#[test]
fn broadcasts_maxima_and_small_states_agree() {
    check("maxima", 2e-6, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let (largest, steps) = (rule.scalar_state("largest"), rule.scalar_state("steps"));
        let new = largest.max(g.abs().maximum(Axis::All));
        rule.set(largest, new);
        rule.set(steps, rule.step());
        let rows = g.maximum(Axis::EachRow) + steps;
        let columns = (g * rows).maximum(Axis::EachColumn).sign();
        rule.finish(p - g / new * 0.1 + columns * rows.abs() * 1e-3)
    });
    check("small states that swap", 1e-6, |rule| {
        let (a, b) = (rule.row_state("a"), rule.row_state("b"));
        rule.set(a, b + rule.step());
        rule.set(b, a);
        let (c, d) = (rule.scalar_state("c"), rule.scalar_state("d"));
        rule.set(c, d);
        rule.set(d, c + rule.learning_rate());
        rule.finish(rule.parameter() + a * c)
    });
    check("a copy, and a swap", 1e-6, |rule| {
        let z = rule.copy_of_parameter("z");
        rule.set(z, rule.parameter());
        rule.finish(z - rule.gradient() * 0.1)
    });
    check("a sum of an 8-bit state", 2e-2, |rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let m = rule.state("m", StateType::BlockwiseU8 { signed: true });
        rule.set(m, m * 0.5 + g);
        let rows = (m * p).mean(Axis::EachRow);
        rule.finish(p - rows / (8.0 + rows.abs()) + m.mean(Axis::EachColumn) * 1e-3)
    });
}

#[test]
fn more_buffers_than_a_kernel_binds() {
    // Eight states that change places, each with the others: what one kernel
    // writes the next must still read as it was.
    let turn = |rule: &Rule| {
        let (p, g) = (rule.parameter(), rule.gradient());
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let states: Vec<Value> = names.iter().map(|name| rule.copy_of_parameter(name)).collect();
        let mut all = p;
        for (index, state) in states.iter().enumerate() {
            rule.set(*state, states[(index + 3) % 8] * 0.5 + g);
            all = all * 0.5 + *state * (index as f64);
        }
        rule.finish(all * states[0].sign() + p)
    };
    let program = turn(&Rule::new(&shape(8, 8))).unwrap();
    for most in [LEAST_BUFFERS, 5, 7, 16] {
        let lowered = Lowered::new(&program, most);
        for pass in &lowered.passes {
            let Pass::Chain(chain) = pass else { panic!("{pass:?}") };
            assert!(chain.places.len() <= most, "{} buffers of {most}", chain.places.len());
        }
        assert_eq!(lowered.passes.len() == 1, most == 16);
    }
    check("eight states", 2e-5, turn);
}

/// Every operation on every pair of numbers that are special to one of them.
#[test]
fn special_numbers_follow_the_definition() {
    let Some(gpu) = gpu_for_test() else { return };
    let special = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        3.0,
        -3.0,
        1.5,
        -2.5,
        1e-3,
        1.003_906_3,
        1.011_718_8,
        7e3,
        2e7,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    let n = special.len();
    let p: Vec<f32> = special.iter().flat_map(|a| vec![*a; n]).collect();
    let g: Vec<f32> = (0..n).flat_map(|_| special).collect();
    macro_rules! operations {
        ($($name:literal, $tolerance:literal: |$a:ident, $b:ident| $value:expr;)*) => {{
            $({
                let rule = Rule::new(&shape(n, n));
                let ($a, $b) = (rule.parameter(), rule.gradient());
                let program = rule.finish($value + 0.0 * (rule.parameter().less(9.0))).unwrap();
                let expected = by_definition(&program, &p, 1, &|_| g.clone());
                let got = on_gpu(&gpu, &program, &p, 1, &|_| g.clone(), None);
                for (i, (got, expected)) in got.0.iter().zip(&expected.0).enumerate() {
                    let same = got == expected || (got.is_nan() && expected.is_nan());
                    let apart = (got - expected).abs();
                    assert!(
                        same || apart <= $tolerance * expected.abs(),
                        "{} of {} and {}: {got}, not {expected}", $name, p[i], g[i]
                    );
                }
            })*
        }};
    }
    operations! {
        "add", 0.0: |a, b| a + b;
        "subtract", 0.0: |a, b| a - b;
        "multiply", 0.0: |a, b| a * b;
        "divide", 1e-6: |a, b| a / b;
        "minimum", 0.0: |a, b| a.min(b);
        "maximum", 0.0: |a, b| a.max(b);
        "power", 2e-5: |a, b| a.pow(b);
        "less", 0.0: |a, b| a.less(b);
        "select", 0.0: |a, b| a.select(b, 5.0);
        "negate", 0.0: |a, b| -a + b * 0.0;
        "absolute", 0.0: |a, b| a.abs() + b * 0.0;
        "sign", 0.0: |a, b| a.sign() + b * 0.0;
        "square root", 1e-6: |a, b| a.sqrt() + b * 0.0;
        "exponential", 1e-3: |a, b| a.exp() + b * 0.0;
        "logarithm", 1e-5: |a, b| a.ln() + b * 0.0;
        "rounding", 0.0: |a, b| a.round_bf16() + b * 0.0;
        "sums", 1e-6: |a, b| a.sum(Axis::EachRow) + b.sum(Axis::EachColumn);
        "maxima", 0.0: |a, b| a.maximum(Axis::EachRow).min(b.maximum(Axis::EachColumn));
        "all maxima", 0.0: |a, b| (a - b).maximum(Axis::All) + (b - b).maximum(Axis::EachRow);
    }
}

/// A program drawn by chance: any operation on any values whose shapes agree.
fn drawn(key: u32, rows: usize, columns: usize) -> Program {
    let rule = Rule::new(&shape(rows, columns));
    let numbers = Key::new(29, 0, key).uniform_vec(400, 0.0, 1.0);
    let mut numbers = numbers.into_iter().cycle();
    let mut draw = |n: usize| ((numbers.next().unwrap() * n as f32) as usize).min(n - 1);
    let (p, g) = (rule.parameter(), rule.gradient());
    let a = rule.state("a", StateType::F32);
    let b = rule.state("b", EIGHT_BIT[draw(2)]);
    let (r, c, s) = (rule.row_state("r"), rule.column_state("c"), rule.scalar_state("s"));
    let lr = rule.learning_rate();
    let mut known = vec![p, g, a, b, r, c, s, lr, rule.step()];
    for _ in 0..24 {
        let (x, y) = (known[draw(known.len())], known[draw(known.len())]);
        let fits = |x: usize, y: usize| x == y || x == 1 || y == 1;
        let agree = fits(x.size().0, y.size().0) && fits(x.size().1, y.size().1);
        let value = match draw(12) {
            0 => x.abs() * 0.5,
            1 => -x,
            2 => (x.abs() + 0.5).sqrt(),
            3 => x.mean([Axis::All, Axis::EachRow, Axis::EachColumn][draw(3)]),
            4 => x.maximum([Axis::All, Axis::EachRow, Axis::EachColumn][draw(3)]),
            5 => (x * 0.1).min(3.0).max(-3.0).exp(),
            6 if agree => x + y,
            7 if agree => x - y,
            8 if agree => x * y / (y.abs() + 1.0),
            9 if agree => x.min(y),
            10 if agree => x.max(y * 0.5),
            11 if agree => x.transpose().transpose() + y,
            _ => x * 0.25 + lr,
        };
        known.push(value);
    }
    let full: Vec<Value> = known.iter().copied().filter(|value| value.size() == (rows, columns)).collect();
    rule.set(a, full[draw(full.len())] * 0.5);
    rule.set(b, full[draw(full.len())].abs() * 0.5);
    for state in [r, c, s] {
        let same: Vec<Value> = known.iter().copied().filter(|value| value.size() == state.size()).collect();
        rule.set(state, same[draw(same.len())] * 0.5);
    }
    let last = full[full.len() - 1];
    rule.finish(p * 0.5 + last / (last.abs() + 1.0)).unwrap()
}

#[test]
fn programs_drawn_by_chance_agree() {
    let Some(gpu) = gpu_for_test() else { return };
    for key in 0..24 {
        let (rows, columns) = [(1, 1), (1, 300), (70, 1), (7, 45), (65, 130)][key as usize % 5];
        let program = drawn(key, rows, columns);
        let start = wave(rows * columns, 0.1 * key as f32);
        let gradient = |step| wave(rows * columns, step as f32);
        let expected = by_definition(&program, &start, 1, &gradient);
        for most in [None, Some(LEAST_BUFFERS)] {
            let got = on_gpu(&gpu, &program, &start, 1, &gradient, most);
            near(&format!("program {key}, {rows}x{columns}"), 5e-5, &got.0, &expected.0);
            let states = program.states().iter().zip(got.1.iter().zip(&expected.1));
            for (state, (got, expected)) in states.filter(|(state, _)| state.kind == StateType::F32) {
                let (got, expected) = (values(&mut got.clone()), values(&mut expected.clone()));
                near(&format!("program {key}, {rows}x{columns}, state {}", state.name), 5e-5, &got, &expected);
            }
        }
    }
}

#[test]
fn states_move_between_devices_to_the_byte() {
    let Some(gpu) = gpu_for_test() else { return };
    let cpu = Device::cpu(Some(1)).unwrap();
    for n in [1, 2, 3, 255, 256, 257, 1023, 4097] {
        for kind in [StateType::F32, EIGHT_BIT[0], EIGHT_BIT[1]] {
            let state = State { name: "s".into(), rows: 1, columns: n, kind, initial: Initial::Parameter };
            let buffer = StateBuffer::new(&state, &wave(n, 0.7));
            let on_cpu = cpu.write_state(buffer.clone()).unwrap();
            let there = gpu.write_state(cpu.read_state(&on_cpu).unwrap()).unwrap();
            assert!(gpu.read_state(&there).unwrap() == buffer, "{n} of {kind:?}");
        }
    }
    // And what a program begins with is the same on both.
    let program = adamw(&Rule::new(&shape(3, 300)), EIGHT_BIT).unwrap();
    let p = gpu.upload(&[3, 300], &wave(900, 0.0)).unwrap();
    let states: Vec<StateBuffer> =
        gpu.program_states(&program, &p).unwrap().iter().map(|state| gpu.read_state(state).unwrap()).collect();
    assert!(states == program.initial_states(&wave(900, 0.0)).unwrap());
}

/// Blocks are quantised as on the CPU: values that are f32 states there.
#[test]
fn blocks_of_8_bits_have_the_cpus_codes() {
    let Some(gpu) = gpu_for_test() else { return };
    for (kind, signed) in [(EIGHT_BIT[0], true), (EIGHT_BIT[1], false)] {
        let rule = Rule::new(&shape(1, 2050));
        let m = rule.state("m", kind);
        rule.set(m, rule.gradient());
        let program = rule.finish(m + rule.parameter()).unwrap();
        let mut gradient = wave(2050, 0.2);
        gradient[300] = f32::NAN;
        gradient[600] = f32::NEG_INFINITY;
        gradient[768..1024].fill(0.0);
        gradient.iter_mut().filter(|_| !signed).for_each(|x| *x = x.abs());
        let expected = by_definition(&program, &vec![0.5; 2050], 2, &|_| gradient.clone());
        let got = on_gpu(&gpu, &program, &vec![0.5; 2050], 2, &|_| gradient.clone(), None);
        let (
            [StateBuffer::BlockwiseU8 { codes: got_codes, scales: got_scales, .. }],
            [StateBuffer::BlockwiseU8 { codes, scales, .. }],
        ) = (&got.1[..], &expected.1[..])
        else {
            panic!("states of 8 bits")
        };
        assert_eq!(bits(got_scales), bits(scales));
        // A quotient that is not exact may fall on the other side of a half way.
        let apart = got_codes.iter().zip(codes).filter(|(got, code)| got != code).count();
        let near = got_codes.iter().zip(codes).all(|(got, code)| got.abs_diff(*code) <= 1);
        assert!(near && apart <= codes.len() / 100, "{apart} codes differ");
        near_or_broken(&got.0, &expected.0);
    }
}

fn near_or_broken(got: &[f32], expected: &[f32]) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let both_broken = !got.is_finite() && !expected.is_finite();
        assert!(both_broken || (got - expected).abs() <= 0.6, "{i}: {got} against {expected}");
    }
}

#[test]
fn wrong_tensors_are_refused() {
    let Some(gpu) = gpu_for_test() else { return };
    let program = adamw(&Rule::new(&shape(4, 4)), [StateType::F32; 2]).unwrap();
    let scalars = Scalars { learning_rate: 0.1, step: 1 };
    let mut p = gpu.zeros(&[4, 4]).unwrap();
    let g = gpu.zeros(&[4, 4]).unwrap();
    let mut states = gpu.program_states(&program, &p).unwrap();
    let error = |p: &mut crate::Tensor, states: &mut [ProgramState]| {
        gpu.optimizer_step(&program, p, &g, states, &scalars).unwrap_err().to_string()
    };
    assert_eq!(error(&mut p, &mut states[..1]), "optimizer_step: expected 2 states, got 1");
    let mut small = gpu.zeros(&[2, 4]).unwrap();
    assert_eq!(error(&mut small, &mut states), "optimizer_step: expected 16, got 8 and 16");
    let shared = p.clone();
    assert!(error(&mut p, &mut states).contains("shares its storage"));
    drop(shared);
    let eight = adamw(&Rule::new(&shape(4, 4)), EIGHT_BIT).unwrap();
    let mut others = gpu.program_states(&eight, &p).unwrap();
    assert!(error(&mut p, &mut others).contains("state 0 of 16 elements"));
    let cpu = Device::cpu(Some(1)).unwrap();
    let mut host = [cpu.write_state(StateBuffer::F32(vec![0.0; 16])).unwrap(), states.remove(1)];
    assert!(error(&mut p, &mut host).contains("cpu"));
    let broken = StateBuffer::BlockwiseU8 { codes: vec![0; 300], scales: vec![0.0], signed: true };
    assert_eq!(gpu.write_state(broken).unwrap_err().to_string(), "write_state: expected 2 scales for 300 codes, got 1");
}
