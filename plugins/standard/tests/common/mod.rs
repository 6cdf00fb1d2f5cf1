//! Small batches for the tests of losses.

#![allow(dead_code, reason = "each test file uses its own part")]

use finetuned_plugin_api::loss::{
    Batch, BeforeStep, Gradients, Loss, Needs, OwnedBatch, Role, Sequence, Statistic, Totals,
};
use finetuned_plugin_api::registry::Objective;

pub fn objective(name: &str, parameters: &str) -> Objective {
    let registry = finetuned_standard::registry().unwrap();
    registry.objective(name, &serde_json::from_str(parameters).unwrap()).unwrap()
}

/// A sequence to be: token log-probabilities under policy and reference; the
/// first `prompt` of them are the prompt's.
#[derive(Clone)]
pub struct Row {
    pub role: Role,
    pub pair: Option<u32>,
    pub label: Option<bool>,
    pub prompt: usize,
    pub logp: Vec<f32>,
    pub reference: Vec<f32>,
    pub value: f32,
}

impl Row {
    pub fn new(role: Role, prompt: usize, logp: &[f32], reference: &[f32]) -> Row {
        let (logp, reference) = (logp.to_vec(), reference.to_vec());
        Row { role, pair: None, label: None, prompt, logp, reference, value: 0.0 }
    }
}

/// A batch of these rows with what `needs` asks for; its totals are its own.
pub fn batch(rows: &[Row], needs: &Needs) -> OwnedBatch {
    let mut batch = OwnedBatch::default();
    let (mut logp, mut reference, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let start = logp.len();
        // Without `prompt_logp` a prompt's tokens are not read at all.
        let skip = if needs.prompt_logp { 0 } else { row.prompt };
        for i in skip..row.logp.len() {
            logp.push(row.logp[i]);
            reference.push(row.reference[i]);
            batch.completion.push(i >= row.prompt);
            batch.weight.push(1.0);
            batch.token.push(i as u32);
        }
        let tokens = start..logp.len();
        batch.sequences.push(Sequence {
            tokens,
            role: row.role,
            pair: row.pair,
            label: row.label,
            ..Sequence::default()
        });
        values.push(row.value);
    }
    // From the token's own logp, so that it does not depend on how a step is cut.
    let wave = |offset: f32, scale: f32| logp.iter().map(|x| offset + scale * (x * 13.0).sin()).collect();
    for statistic in Statistic::ALL.into_iter().filter(|statistic| needs.asks(*statistic)) {
        batch.statistics[statistic] = Some(match statistic {
            Statistic::Logp => logp.clone(),
            Statistic::MeanLogp => wave(-6.0, 1.0),
            Statistic::Entropy => wave(2.0, 0.5),
            Statistic::Lse => wave(1.0, 3.0),
            Statistic::Value => values.clone(),
        });
    }
    batch.reference_logp = needs.reference_logp.then_some(reference);
    batch.totals = Totals::of(&batch.sequences, &batch.weight, &batch.completion);
    batch
}

/// A whole step as the engine runs it: the pass before it, then every
/// micro-batch with the totals of the whole; the sum of what they return.
pub fn step(loss: &dyn Loss, micro_batches: &[OwnedBatch], kl: Option<&OwnedBatch>) -> (Gradients, Vec<OwnedBatch>) {
    let needs = loss.needs();
    let context = match (needs.before_step, kl) {
        (BeforeStep::KlCompletions, Some(kl)) => loss.before_step(&kl.view()).unwrap(),
        _ => Vec::new(),
    };
    let mut totals = Totals::default();
    micro_batches.iter().for_each(|batch| totals.add(&batch.totals));
    let mut sum = Gradients::default();
    let mut seen = Vec::new();
    for batch in micro_batches {
        let mut batch = batch.clone();
        batch.totals = totals;
        batch.context = context.clone();
        let out = evaluate(loss, &batch.view());
        sum.loss += out.loss;
        sum.derivatives.iter_mut().for_each(|(statistic, sum)| sum.extend(&out.derivatives[statistic]));
        out.metrics.iter().for_each(|(name, value)| sum.metric(name, *value));
        seen.push(batch);
    }
    (sum, seen)
}

pub fn evaluate(loss: &dyn Loss, batch: &Batch) -> Gradients {
    let mut out = Gradients::default();
    loss.evaluate(batch, &mut out).unwrap();
    out.check(&loss.needs(), batch).unwrap();
    out
}

/// Eight pairs, or sixteen labelled rows with their mismatched completions, of
/// uneven lengths.
pub fn rows(data: Data) -> Vec<Row> {
    let logp = |row: usize, n: usize, shift: f32| -> Vec<f32> {
        (0..n).map(|i| -1.5 + shift - ((row * 7 + i * 3) as f32).sin()).collect()
    };
    (0..16)
        .map(|row| {
            let n = 3 + (row * 5) % 4;
            let (role, pair, label) = match data {
                Data::Plain => (Role::Plain, None, None),
                Data::Pairs if row % 2 == 0 => (Role::Chosen, Some(row as u32 / 2), None),
                Data::Pairs => (Role::Rejected, Some(row as u32 / 2), None),
                Data::Labelled => (Role::Completion, None, Some(row % 3 != 0)),
                Data::Kl => (Role::KlCompletion, None, None),
            };
            let shift = if data == Data::Kl { 0.2 } else { 0.0 };
            Row {
                pair,
                label,
                value: (row as f32 * 0.9).cos(),
                ..Row::new(role, row % 3, &logp(row, n, shift), &logp(row + 3, n, 0.0))
            }
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Plain,
    Pairs,
    Labelled,
    Kl,
}

/// Every objective that ships, with parameters that reach all of its terms.
pub const OBJECTIVES: &[(&str, &str, Data)] = &[
    ("cross-entropy", r#"{"label_smoothing": 0.1, "z_loss": 0.01}"#, Data::Plain),
    ("cross-entropy", "{}", Data::Plain),
    ("focal", "{}", Data::Plain),
    ("focal", r#"{"gamma": 0.5}"#, Data::Plain),
    ("entropy-bonus", r#"{"coefficient": 0.3}"#, Data::Plain),
    ("dpo", "{}", Data::Pairs),
    ("dpo", r#"{"label_smoothing": 0.2, "rpo_alpha": 0.7}"#, Data::Pairs),
    ("dpo", r#"{"variant": "hinge", "beta": 0.5}"#, Data::Pairs),
    ("dpo", r#"{"variant": "ipo"}"#, Data::Pairs),
    ("dpo", r#"{"variant": "robust", "label_smoothing": 0.1}"#, Data::Pairs),
    ("kto", r#"{"desirable_weight": 1.3, "undesirable_weight": 0.6}"#, Data::Labelled),
    ("orpo", "{}", Data::Pairs),
    ("cpo", "{}", Data::Pairs),
    ("simpo", "{}", Data::Pairs),
    ("reward-model", r#"{"centering": 0.01}"#, Data::Pairs),
    ("unlikelihood", r#"{"alpha": 0.5}"#, Data::Labelled),
];
