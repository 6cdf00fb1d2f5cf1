//! Batches as a training run may hold them, odd ones too.

use crate::alignment::DataKind;
use crate::loss::{Needs, OwnedBatch, PerStatistic, Role, Sequence, Statistic, Totals};

/// Numbers that look random and are the same everywhere.
struct Numbers(u64);

impl Numbers {
    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 40) as f32) / ((1u64 << 24) as f32)
    }

    /// A value that the statistic can have.
    fn statistic(&mut self, statistic: Statistic) -> f32 {
        match statistic {
            Statistic::Logp => -0.05 - 4.0 * self.next(),
            Statistic::MeanLogp => -6.0 - self.next(),
            Statistic::Entropy => 3.0 * self.next(),
            Statistic::Lse | Statistic::Value => 2.0 * self.next() - 1.0,
        }
    }
}

/// A row of a dataset: its sequences are in the same micro-batch.
#[derive(Clone)]
pub(super) struct Row {
    pub parts: Vec<Part>,
}

/// A sequence to be. Its first `prompt` tokens belong to the prompt.
#[derive(Clone)]
pub(super) struct Part {
    pub role: Role,
    pub label: Option<bool>,
    reward: Option<f64>,
    prompt: usize,
    pub tokens: Vec<Token>,
    value: f32,
}

#[derive(Clone)]
pub(super) struct Token {
    pub statistics: PerStatistic<f32>,
    reference_logp: f32,
}

/// `count` rows of sequences of 1 to `longest` tokens.
pub(super) fn rows(data: DataKind, count: usize, seed: u64, longest: usize) -> Vec<Row> {
    let mut numbers = Numbers(seed);
    let mut part = |role, label, reward| {
        let n = 1 + (numbers.next() * longest as f32) as usize;
        let prompt = if n > 2 { 1 } else { 0 };
        let tokens = (0..n)
            .map(|_| {
                let statistics = PerStatistic::from_fn(|statistic| numbers.statistic(statistic));
                let reference = statistics[Statistic::Logp] + 0.6 * (numbers.next() - 0.5);
                Token { statistics, reference_logp: reference.min(-0.01) }
            })
            .collect();
        Part { role, label, reward, prompt, tokens, value: numbers.statistic(Statistic::Value) }
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

/// A batch of rows with what `needs` asks for. Pairs are numbered from `first`.
pub(super) fn batch(rows: &[Row], needs: &Needs, first: usize) -> OwnedBatch {
    let mut batch = OwnedBatch::default();
    let mut statistics: PerStatistic<Vec<f32>> = PerStatistic::default();
    let mut reference = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        for part in &row.parts {
            let start = batch.token.len();
            let skip = if needs.prompt_logp { 0 } else { part.prompt };
            for (i, token) in part.tokens.iter().enumerate().skip(skip) {
                statistics.iter_mut().for_each(|(statistic, list)| list.push(token.statistics[statistic]));
                reference.push(token.reference_logp);
                batch.completion.push(i >= part.prompt);
                batch.token.push(i as u32 + 7);
                batch.weight.push(1.0);
            }
            let paired = matches!(part.role, Role::Chosen | Role::Rejected);
            batch.sequences.push(Sequence {
                tokens: start..batch.token.len(),
                role: part.role,
                pair: paired.then_some((first + index) as u32),
                label: part.label,
                reward: part.reward,
                // One number per column, each another one.
                columns: (0..needs.columns.len()).map(|at| f64::from(part.value) + at as f64).collect(),
            });
        }
    }
    statistics[Statistic::Value] = rows.iter().flat_map(|row| &row.parts).map(|part| part.value).collect();
    for (statistic, list) in statistics.iter_mut().filter(|(statistic, _)| needs.asks(*statistic)) {
        batch.statistics[statistic] = Some(std::mem::take(list));
    }
    batch.reference_logp = needs.reference_logp.then_some(reference);
    batch.totals = Totals::of(&batch.sequences, &batch.weight, &batch.completion);
    batch
}

/// Batches that a training run may hold: (name, rows).
pub(super) fn samples(data: DataKind) -> Vec<(&'static str, Vec<Row>)> {
    let set = |rows: &mut Vec<Row>, f: &dyn Fn(&mut f32)| {
        let tokens = rows.iter_mut().flat_map(|row| &mut row.parts).flat_map(|part| &mut part.tokens);
        tokens.for_each(|token| f(&mut token.statistics[Statistic::Logp]));
    };
    let mut sure = rows(data, 2, 5, 4);
    set(&mut sure, &|logp| *logp = -1e-3);
    let mut hopeless = rows(data, 2, 6, 4);
    set(&mut hopeless, &|logp| *logp *= 10.0);
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
