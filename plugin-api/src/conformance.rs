//! The conformance kit: what a plugin must do beyond its types.
//!
//! [`checks`] names the checks of a kind; [`run`] runs one. `finetune plugin
//! test` runs each in a process of its own, because a broken plugin may take
//! its process along.

use std::time::{Duration, Instant};

use serde_json::Map;

use crate::PluginError;
use crate::alignment::DataKind;
use crate::loss::{Batch, BeforeStep, Gradients, Loss, Needs, OwnedBatch, Role, Sequence, Totals};
use crate::optimizer::{Optimizer, TensorKind, TensorShape};
use crate::program::{Program, Scalars, StateBuffer, StateSlice, interpret};
use crate::registry::{Entry, Kind, Objective, Registry};

/// The checks of a kind, in the order to run them: (name, what it checks).
pub fn checks(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Loss | Kind::Alignment => &[
            ("create", "it is made with its defaults, many times and beside itself"),
            ("gradient", "derivatives equal finite differences, on random and edge batches"),
            ("masked", "tokens of weight 0 get a derivative of 0 and do not matter"),
            ("permutation", "the order of rows does not matter"),
            ("accumulation", "1 x 8 equals 8 x 1"),
            ("determinism", "the same batch gives the same bits, in another instance too"),
            ("fused", "a token rule agrees with evaluate to the bit"),
            ("state", "its state comes back from a checkpoint"),
            ("speed", "a call takes less than 2 microseconds a token"),
        ],
        Kind::Optimizer => &[
            ("create", "it is made with its defaults, many times and beside itself"),
            ("rule", "it has a program for a vector, a matrix and adapters"),
            ("finite", "ten steps stay finite, with zero gradients too"),
            ("progress", "it walks down a quadratic"),
            ("determinism", "the same steps give the same bits"),
            ("state", "resuming from saved state changes no bit"),
        ],
    }
}

/// Runs one check.
///
/// # Errors
/// Why the plugin fails it, in a line or a few.
pub fn run(entry: &Entry, check: &str) -> Result<(), String> {
    match entry.descriptor.kind {
        Kind::Optimizer => optimizer_check(entry, check),
        Kind::Loss | Kind::Alignment => objective_check(entry, check),
    }
}

fn words(error: PluginError) -> String {
    error.to_string()
}

fn objective(entry: &Entry) -> Result<Objective, String> {
    let mut registry = Registry::default();
    registry.add(entry.clone()).map_err(words)?;
    registry.objective(&entry.descriptor.name, &Map::new()).map_err(words)
}

fn optimizer(entry: &Entry) -> Result<Box<dyn Optimizer>, String> {
    let mut registry = Registry::default();
    registry.add(entry.clone()).map_err(words)?;
    registry.optimizer(&entry.descriptor.name, &Map::new()).map_err(words)
}

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / ((1u64 << 24) as f32)
    }
}

/// A row: what a micro-batch is made of, a pair or a single answer.
#[derive(Clone)]
struct Row {
    parts: Vec<Part>,
}

#[derive(Clone)]
struct Part {
    role: Role,
    label: Option<bool>,
    reward: Option<f64>,
    prompt: usize,
    /// Per token: logp, reference logp, entropy, lse, mean logp, weight.
    tokens: Vec<[f32; 6]>,
    value: f32,
}

fn rows(data: DataKind, count: usize, seed: u64, longest: usize) -> Vec<Row> {
    let mut numbers = Numbers(seed);
    let mut part = |role, label, reward| {
        let n = 1 + (numbers.next() * longest as f32) as usize;
        let prompt = if n > 2 { 1 } else { 0 };
        let tokens = (0..n)
            .map(|_| {
                let logp = -0.05 - 4.0 * numbers.next();
                let reference = logp + 0.6 * (numbers.next() - 0.5);
                [
                    logp,
                    reference.min(-0.01),
                    3.0 * numbers.next(),
                    2.0 * numbers.next() - 1.0,
                    -6.0 - numbers.next(),
                    1.0,
                ]
            })
            .collect();
        Part { role, label, reward, prompt, tokens, value: 2.0 * numbers.next() - 1.0 }
    };
    (0..count)
        .map(|row| Row {
            parts: match data {
                DataKind::Supervised | DataKind::Prompts => vec![part(Role::Plain, None, None)],
                DataKind::Pairs => vec![part(Role::Chosen, None, None), part(Role::Rejected, None, None)],
                DataKind::Labelled => vec![part(Role::Completion, Some(row % 2 == 0), None)],
                DataKind::Rewards => vec![part(Role::Completion, None, Some(row as f64 - 1.0))],
            },
        })
        .collect()
}

/// A batch of rows with what `needs` asks for; pairs are numbered from `first`.
fn batch(rows: &[Row], needs: &Needs, first: usize) -> OwnedBatch {
    let mut batch = OwnedBatch::default();
    let mut columns: [Vec<f32>; 6] = Default::default();
    let mut values = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        for part in &row.parts {
            let start = columns[0].len();
            let skip = if needs.prompt_logp { 0 } else { part.prompt };
            for (i, token) in part.tokens.iter().enumerate().skip(skip) {
                columns.iter_mut().zip(token).for_each(|(column, value)| column.push(*value));
                batch.completion.push(i >= part.prompt);
                batch.token.push(i as u32 + 7);
            }
            let paired = matches!(part.role, Role::Chosen | Role::Rejected);
            batch.sequences.push(Sequence {
                tokens: start..columns[0].len(),
                role: part.role,
                pair: paired.then_some((first + index) as u32),
                label: part.label,
                reward: part.reward,
                columns: needs.columns.iter().map(|_| f64::from(part.value)).collect(),
            });
            values.push(part.value);
        }
    }
    let [logp, reference, entropy, lse, mean_logp, weight] = columns;
    batch.entropy = needs.entropy.then_some(entropy);
    batch.lse = needs.lse.then_some(lse);
    batch.mean_logp = needs.mean_logp.then_some(mean_logp);
    batch.reference_logp = needs.reference_logp.then_some(reference);
    batch.values = needs.value.then_some(values);
    batch.totals = Totals::of(&batch.sequences, &weight, &batch.completion);
    (batch.logp, batch.weight) = (logp, weight);
    batch
}

/// A step's context, from the pass that the loss asks for.
fn context(loss: &dyn Loss, rows: &[Row]) -> Result<Vec<f64>, String> {
    let needs = loss.needs();
    if needs.before_step == BeforeStep::Nothing {
        return Ok(Vec::new());
    }
    let mut rows = rows.to_vec();
    if needs.before_step == BeforeStep::KlCompletions {
        rows.iter_mut().flat_map(|row| &mut row.parts).for_each(|part| part.role = Role::KlCompletion);
    }
    loss.before_step(&batch(&rows, &needs, 0).view()).map_err(words)
}

fn evaluate(loss: &dyn Loss, batch: &Batch) -> Result<Gradients, String> {
    let mut out = Gradients::default();
    loss.evaluate(batch, &mut out).map_err(words)?;
    out.check(&loss.needs(), batch).map_err(words)?;
    Ok(out)
}

/// Batches that a training run may hold, odd ones too: (name, rows).
fn samples(data: DataKind) -> Vec<(&'static str, Vec<Row>)> {
    let set = |rows: &mut Vec<Row>, f: &dyn Fn(&mut [f32; 6])| {
        rows.iter_mut().flat_map(|row| &mut row.parts).flat_map(|part| &mut part.tokens).for_each(f);
    };
    let mut sure = rows(data, 2, 5, 4);
    set(&mut sure, &|token| token[0] = -1e-3);
    let mut hopeless = rows(data, 2, 6, 4);
    set(&mut hopeless, &|token| token[0] *= 10.0);
    let mut twice = rows(data, 2, 7, 5);
    twice[1] = twice[0].clone();
    if data == DataKind::Labelled {
        twice[1].parts[0].label = Some(false);
    }
    vec![
        ("random", rows(data, 4, 1, 9)),
        ("other random", rows(data, 5, 2, 20)),
        ("one token", rows(data, 1, 3, 1)),
        ("sure tokens", sure),
        ("hopeless tokens", hopeless),
        ("a row twice", twice),
    ]
}

type Pick = fn(&mut OwnedBatch) -> Option<&mut Vec<f32>>;

fn objective_check(entry: &Entry, check: &str) -> Result<(), String> {
    let made = objective(entry)?;
    let loss = made.loss();
    let needs = loss.needs();
    let data = made.alignment_needs().map_or(DataKind::Supervised, |needs| needs.data);
    match check {
        "create" => {
            let many = (0..64).map(|_| objective(entry)).collect::<Result<Vec<_>, _>>()?;
            let all_alike = many.iter().all(|other| other.loss().needs() == needs);
            if all_alike {
                Ok(())
            } else {
                Err("two instances with the same parameters ask for different statistics".into())
            }
        }
        "gradient" => {
            for (name, rows) in samples(data) {
                let mut start = batch(&rows, &needs, 0);
                start.context = context(loss, &rows)?;
                gradient(loss, &start).map_err(|why| format!("{name}: {why}"))?;
            }
            Ok(())
        }
        "masked" => {
            let rows = rows(data, 4, 11, 9);
            let mut clean = batch(&rows, &needs, 0);
            clean.context = context(loss, &rows)?;
            let masked: Vec<usize> = (0..clean.logp.len()).filter(|i| i % 3 == 1).collect();
            masked.iter().for_each(|i| clean.weight[*i] = 0.0);
            clean.totals = Totals::of(&clean.sequences, &clean.weight, &clean.completion);
            let expected = evaluate(loss, &clean.view())?;
            let mut moved = clean.clone();
            masked.iter().for_each(|i| moved.logp[*i] -= 3.0);
            let got = evaluate(loss, &moved.view())?;
            if let Some(i) = masked.iter().find(|i| got.dlogp[**i] != 0.0) {
                return Err(format!("token {i} has weight 0 but dlogp {}", got.dlogp[*i]));
            }
            if got.loss != expected.loss {
                return Err(format!("a masked token changes the loss from {} to {}", expected.loss, got.loss));
            }
            all_masked(loss, &clean)
        }
        "permutation" => {
            let rows = rows(data, 5, 13, 9);
            let mut turned = rows.clone();
            turned.reverse();
            let context = context(loss, &rows)?;
            let of = |rows: &[Row]| {
                let mut batch = batch(rows, &needs, 0);
                batch.context = context.clone();
                evaluate(loss, &batch.view())
            };
            same_number("the loss", of(&rows)?.loss, of(&turned)?.loss, 1e-9)
        }
        "accumulation" => {
            let rows = rows(data, 8, 17, 9);
            let context = context(loss, &rows)?;
            let totals = batch(&rows, &needs, 0).totals;
            let run = |size: usize| -> Result<(f64, Vec<f32>), String> {
                let (mut sum, mut dlogp) = (0.0, Vec::new());
                for (index, rows) in rows.chunks(size).enumerate() {
                    let mut batch = batch(rows, &needs, index * size);
                    batch.totals = totals;
                    batch.context = context.clone();
                    let out = evaluate(loss, &batch.view())?;
                    sum += out.loss;
                    dlogp.extend(out.dlogp);
                }
                Ok((sum, dlogp))
            };
            let ((whole, dwhole), (parts, dparts)) = (run(8)?, run(1)?);
            same_number("the loss", whole, parts, 1e-9)?;
            for (i, (a, b)) in dwhole.iter().zip(&dparts).enumerate() {
                same_number(&format!("dlogp of token {i}"), f64::from(*a), f64::from(*b), 1e-5)?;
            }
            Ok(())
        }
        "determinism" => {
            let rows = rows(data, 6, 19, 30);
            let mut batch = batch(&rows, &needs, 0);
            batch.context = context(loss, &rows)?;
            let expected = evaluate(loss, &batch.view())?;
            let other = objective(entry)?;
            for _ in 0..3 {
                for loss in [loss, other.loss()] {
                    if evaluate(loss, &batch.view())? != expected {
                        return Err("the same batch gave two results".into());
                    }
                }
            }
            Ok(())
        }
        "fused" => {
            let rows = rows(data, 4, 23, 9);
            let mut batch = batch(&rows, &needs, 0);
            batch.weight.iter_mut().step_by(3).for_each(|weight| *weight = 0.25);
            let Some(rule) = loss.separable(&batch.totals) else { return Ok(()) };
            let mut by_rule = Gradients::default();
            rule.evaluate(&needs, &batch.view(), &mut by_rule).map_err(words)?;
            let out = evaluate(loss, &batch.view())?;
            same_number("the loss", out.loss, by_rule.loss, 1e-9)?;
            let alike = out.dlogp == by_rule.dlogp
                && out.dentropy == by_rule.dentropy
                && out.dmean_logp == by_rule.dmean_logp
                && out.dlse == by_rule.dlse;
            if alike { Ok(()) } else { Err("derivatives of the rule and of evaluate differ".into()) }
        }
        "state" => {
            let mut first = objective(entry)?;
            for step in 0..3 {
                first.loss_mut().end_step(1.0 / (1.0 + f64::from(step)), &[("metric".into(), 0.5)]).map_err(words)?;
            }
            let state = first.loss().state().map_err(words)?;
            let mut second = objective(entry)?;
            second.loss_mut().restore(&state).map_err(words)?;
            if second.loss().state().map_err(words)? != state {
                return Err("the state read back is another".into());
            }
            let rows = rows(data, 4, 29, 9);
            let mut batch = batch(&rows, &needs, 0);
            batch.context = context(loss, &rows)?;
            if evaluate(first.loss(), &batch.view())? != evaluate(second.loss(), &batch.view())? {
                return Err("an instance with restored state computes something else".into());
            }
            Ok(())
        }
        "speed" => {
            let rows = rows(data, 64, 31, 120);
            let mut batch = batch(&rows, &needs, 0);
            batch.context = context(loss, &rows)?;
            let time = (0..5)
                .map(|_| {
                    let start = Instant::now();
                    evaluate(loss, &batch.view()).map(|_| start.elapsed())
                })
                .collect::<Result<Vec<Duration>, _>>()?;
            let best = time.into_iter().min().unwrap_or_default();
            let limit = Duration::from_micros(2) * batch.logp.len().max(1) as u32;
            if best <= limit {
                Ok(())
            } else {
                Err(format!("{} tokens take {best:?}, more than {limit:?}", batch.logp.len()))
            }
        }
        other => Err(format!("there is no check '{other}'")),
    }
}

/// A batch without a single counted token must work too.
fn all_masked(loss: &dyn Loss, batch: &OwnedBatch) -> Result<(), String> {
    let mut batch = batch.clone();
    batch.weight.fill(0.0);
    batch.totals = Totals::of(&batch.sequences, &batch.weight, &batch.completion);
    let out = evaluate(loss, &batch.view()).map_err(|why| format!("with every token masked: {why}"))?;
    match out.dlogp.iter().position(|d| *d != 0.0) {
        Some(i) => Err(format!("with every token masked: token {i} has dlogp {}", out.dlogp[i])),
        None => Ok(()),
    }
}

fn gradient(loss: &dyn Loss, start: &OwnedBatch) -> Result<(), String> {
    let out = evaluate(loss, &start.view())?;
    let picks: [(&str, Pick, Option<&Vec<f32>>); 5] = [
        ("logp", |b| Some(&mut b.logp), Some(&out.dlogp)),
        ("entropy", |b| b.entropy.as_mut(), out.dentropy.as_ref()),
        ("lse", |b| b.lse.as_mut(), out.dlse.as_ref()),
        ("mean_logp", |b| b.mean_logp.as_mut(), out.dmean_logp.as_ref()),
        ("value", |b| b.values.as_mut(), out.dvalue.as_ref()),
    ];
    for (name, pick, derivative) in picks {
        for (i, derivative) in derivative.into_iter().flatten().enumerate() {
            let at = |h: f32| -> Result<(f64, f64), String> {
                let mut moved = start.clone();
                let Some(slice) = pick(&mut moved) else { return Err(format!("no {name}")) };
                slice[i] += h;
                let x = f64::from(slice[i]);
                Ok((x, evaluate(loss, &moved.view())?.loss))
            };
            // A step that keeps log p below 0.
            let h = if name == "logp" { (-start.logp[i] / 4.0).min(1e-3) } else { 1e-3 };
            let ((x1, y1), (x0, y0), (_, y)) = (at(h)?, at(-h)?, at(0.0)?);
            let expected = (y1 - y0) / (x1 - x0);
            // At a kink (a hinge, a clamp) either side's slope will do.
            let (left, right) = ((y - y0) / f64::from(h), (y1 - y) / f64::from(h));
            let slack = 1e-4 + 5e-3 * expected.abs() + 0.6 * (left - right).abs();
            if (f64::from(*derivative) - expected).abs() > slack {
                return Err(format!("d{name} of token {i} is {derivative}, finite differences give {expected:.6}"));
            }
        }
    }
    Ok(())
}

fn same_number(what: &str, a: f64, b: f64, tolerance: f64) -> Result<(), String> {
    if (a - b).abs() <= tolerance * (1.0 + a.abs()) {
        return Ok(());
    }
    Err(format!("{what} is {a} one way and {b} the other"))
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

fn optimizer_check(entry: &Entry, check: &str) -> Result<(), String> {
    let made = optimizer(entry)?;
    if made.host().is_some() {
        // A host step is code of the plugin's own; it has no program to look at.
        return if check == "create" { Ok(()) } else { host_check(made.as_ref(), check) };
    }
    let named = |tensor: &TensorShape, why: String| format!("a {:?} of {:?}: {why}", tensor.kind, tensor.shape);
    match check {
        "create" => (0..64).try_for_each(|_| optimizer(entry).map(|_| ())),
        "rule" => {
            for tensor in tensors() {
                let program = made.rule(&tensor).map_err(|error| named(&tensor, words(error)))?;
                if program.elements() != tensor.elements() {
                    return Err(named(&tensor, format!("the program is for {} elements", program.elements())));
                }
                made.evaluation(&tensor).map_err(|error| named(&tensor, words(error)))?;
            }
            Ok(())
        }
        "finite" => {
            for tensor in tensors() {
                let mut run = Run::new(made.as_ref(), &tensor)?;
                let n = tensor.elements();
                for step in 0..10 {
                    let gradient = if step % 4 == 0 { vec![0.0; n] } else { wave(n, step) };
                    run.step(&gradient, 1e-2).map_err(|why| named(&tensor, why))?;
                }
            }
            Ok(())
        }
        "progress" => {
            for tensor in tensors() {
                let mut run = Run::new(made.as_ref(), &tensor)?;
                let height = |p: &[f32]| p.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
                let start = height(&run.parameter);
                for _ in 0..50 {
                    let gradient: Vec<f32> = run.parameter.iter().map(|x| 2.0 * x).collect();
                    run.step(&gradient, 1e-3)?;
                }
                let end = height(&run.parameter);
                if end >= start {
                    return Err(named(&tensor, format!("fifty steps down x² lead from {start:.4} to {end:.4}")));
                }
            }
            Ok(())
        }
        "determinism" | "state" => {
            for tensor in tensors() {
                let n = tensor.elements();
                let mut whole = Run::new(made.as_ref(), &tensor)?;
                let mut parts = Run::new(made.as_ref(), &tensor)?;
                for step in 0..6 {
                    whole.step(&wave(n, step), 1e-2)?;
                    if check == "state" && step == 3 {
                        // As a checkpoint: through bytes, into another instance's program.
                        let text = serde_json::to_string(&parts.states).map_err(|error| error.to_string())?;
                        let states = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                        let program = optimizer(entry)?.rule(&tensor).map_err(words)?;
                        parts = Run { program, states, parameter: parts.parameter.clone(), step: parts.step };
                    }
                    parts.step(&wave(n, step), 1e-2)?;
                }
                if whole.parameter != parts.parameter || whole.states != parts.states {
                    return Err(named(&tensor, "the same steps give other bits".into()));
                }
            }
            Ok(())
        }
        other => Err(format!("there is no check '{other}'")),
    }
}

/// The checks that a host step can have: finite, forward, the same twice.
fn host_check(optimizer: &dyn Optimizer, check: &str) -> Result<(), String> {
    let Some(host) = optimizer.host() else { return Ok(()) };
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
            return Err(format!("{check}: a parameter of {:?} is no longer finite", tensor.shape));
        }
        if a != b {
            return Err(format!("{check}: the same steps give other bits for {:?}", tensor.shape));
        }
    }
    Ok(())
}
