//! The checks of losses and alignment methods.

use std::time::{Duration, Instant};

use serde_json::Map;

use super::batches::{Row, batch, rows, samples};
use super::{Check, words};
use crate::alignment::DataKind;
use crate::loss::{Batch, BeforeStep, Gradients, Loss, Needs, OwnedBatch, Per, Role, Statistic, Totals};
use crate::registry::{Entry, Objective, Registry};

pub(super) const CHECKS: &[Check] = &[
    Check { name: "create", help: "it is made with its defaults, many times and beside itself", run: create },
    Check { name: "gradient", help: "derivatives equal finite differences, on random and edge batches", run: gradient },
    Check { name: "masked", help: "tokens of weight 0 get a derivative of 0 and do not matter", run: masked },
    Check { name: "permutation", help: "the order of rows does not matter", run: permutation },
    Check { name: "accumulation", help: "1 x 8 equals 8 x 1", run: accumulation },
    Check {
        name: "determinism",
        help: "the same batch gives the same bits, in another instance too",
        run: determinism,
    },
    Check { name: "fused", help: "a token rule agrees with evaluate to the bit", run: fused },
    Check { name: "state", help: "its state comes back from a checkpoint", run: state },
    Check { name: "speed", help: "a call takes less than 2 microseconds per token", run: speed },
];

/// An instance with its defaults, and what it asks for.
struct Subject {
    objective: Objective,
    needs: Needs,
    data: DataKind,
}

impl Subject {
    fn new(entry: &Entry) -> Result<Subject, String> {
        let mut registry = Registry::default();
        registry.add(entry.clone()).map_err(words)?;
        let objective = registry.objective(&entry.descriptor.name, &Map::new()).map_err(words)?;
        let data = objective.alignment_needs().map_or(DataKind::Supervised, |needs| needs.data);
        Ok(Subject { needs: objective.loss().needs(), data, objective })
    }

    fn loss(&self) -> &dyn Loss {
        self.objective.loss()
    }

    /// A batch of these rows with the context of a step that holds them alone.
    fn batch(&self, rows: &[Row]) -> Result<OwnedBatch, String> {
        let mut batch = batch(rows, &self.needs, 0);
        batch.context = self.context(rows)?;
        Ok(batch)
    }

    /// The context of a step of these rows, from the pass that the loss asks for.
    fn context(&self, rows: &[Row]) -> Result<Vec<f64>, String> {
        if self.needs.before_step == BeforeStep::Nothing {
            return Ok(Vec::new());
        }
        let mut rows = rows.to_vec();
        if self.needs.before_step == BeforeStep::KlCompletions {
            rows.iter_mut().flat_map(|row| &mut row.parts).for_each(|part| part.role = Role::KlCompletion);
        }
        self.loss().before_step(&batch(&rows, &self.needs, 0).view()).map_err(words)
    }

    fn evaluate(&self, batch: &OwnedBatch) -> Result<Gradients, String> {
        evaluate(self.loss(), &batch.view())
    }
}

fn evaluate(loss: &dyn Loss, batch: &Batch) -> Result<Gradients, String> {
    let mut out = Gradients::default();
    loss.evaluate(batch, &mut out).map_err(words)?;
    out.check(&loss.needs(), batch).map_err(words)?;
    Ok(out)
}

fn create(entry: &Entry) -> Result<(), String> {
    let needs = Subject::new(entry)?.needs;
    let many = (0..64).map(|_| Subject::new(entry)).collect::<Result<Vec<_>, _>>()?;
    if many.iter().all(|other| other.needs == needs) {
        Ok(())
    } else {
        Err("two instances with the same parameters ask for different statistics".into())
    }
}

fn gradient(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    for (name, rows) in samples(subject.data) {
        let start = subject.batch(&rows)?;
        finite_differences(&subject, &start).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

fn finite_differences(subject: &Subject, start: &OwnedBatch) -> Result<(), String> {
    let out = subject.evaluate(start)?;
    for statistic in Statistic::ALL.into_iter().filter(|statistic| subject.needs.asks(*statistic)) {
        let name = statistic.name();
        for (i, derivative) in out.derivatives[statistic].iter().enumerate() {
            let at = |h: f32| -> Result<(f64, f64), String> {
                let mut moved = start.clone();
                let Some(slice) = &mut moved.statistics[statistic] else { return Err(format!("no {name}")) };
                slice[i] += h;
                let x = f64::from(slice[i]);
                Ok((x, subject.evaluate(&moved)?.loss))
            };
            // A step that keeps log p below 0.
            let h = match statistic {
                Statistic::Logp => (-start.view().logp()[i] / 4.0).min(1e-3),
                _ => 1e-3,
            };
            let ((x1, y1), (x0, y0), (_, y)) = (at(h)?, at(-h)?, at(0.0)?);
            let expected = (y1 - y0) / (x1 - x0);
            // At a kink (a hinge, a clamp) either side's slope will do.
            let (left, right) = ((y - y0) / f64::from(h), (y1 - y) / f64::from(h));
            let slack = 1e-4 + 5e-3 * expected.abs() + 0.6 * (left - right).abs();
            if (f64::from(*derivative) - expected).abs() > slack {
                let of = match statistic.per() {
                    Per::Token => "token",
                    Per::Sequence => "sequence",
                };
                return Err(format!("d{name} of {of} {i} is {derivative}, finite differences give {expected:.6}"));
            }
        }
    }
    Ok(())
}

fn masked(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    let mut clean = subject.batch(&rows(subject.data, 4, 11, 9))?;
    let masked: Vec<usize> = (0..clean.weight.len()).filter(|i| i % 3 == 1).collect();
    masked.iter().for_each(|i| clean.weight[*i] = 0.0);
    clean.totals = Totals::of(&clean.sequences, &clean.weight, &clean.completion);
    let expected = subject.evaluate(&clean)?;
    let mut moved = clean.clone();
    masked.iter().for_each(|i| moved.logp_mut()[*i] -= 3.0);
    let got = subject.evaluate(&moved)?;
    let dlogp = &got.derivatives[Statistic::Logp];
    if let Some(i) = masked.iter().find(|i| dlogp[**i] != 0.0) {
        return Err(format!("token {i} has weight 0 but dlogp {}", dlogp[*i]));
    }
    if got.loss != expected.loss {
        return Err(format!("a masked token changes the loss from {} to {}", expected.loss, got.loss));
    }
    all_masked(&subject, clean)
}

/// A batch without a single trained token must work too.
fn all_masked(subject: &Subject, mut batch: OwnedBatch) -> Result<(), String> {
    batch.weight.fill(0.0);
    batch.totals = Totals::of(&batch.sequences, &batch.weight, &batch.completion);
    let out = subject.evaluate(&batch).map_err(|why| format!("with every token masked: {why}"))?;
    let dlogp = &out.derivatives[Statistic::Logp];
    match dlogp.iter().position(|d| *d != 0.0) {
        Some(i) => Err(format!("with every token masked: token {i} has dlogp {}", dlogp[i])),
        None => Ok(()),
    }
}

fn permutation(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    let rows = rows(subject.data, 5, 13, 9);
    let mut turned = rows.clone();
    turned.reverse();
    let context = subject.context(&rows)?;
    let of = |rows: &[Row]| {
        let mut batch = batch(rows, &subject.needs, 0);
        batch.context = context.clone();
        subject.evaluate(&batch)
    };
    same_number("the loss", of(&rows)?.loss, of(&turned)?.loss, 1e-9)
}

fn accumulation(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    let rows = rows(subject.data, 8, 17, 9);
    let context = subject.context(&rows)?;
    let totals = batch(&rows, &subject.needs, 0).totals;
    let run = |size: usize| -> Result<(f64, Vec<f32>), String> {
        let (mut sum, mut dlogp) = (0.0, Vec::new());
        for (index, rows) in rows.chunks(size).enumerate() {
            let mut batch = batch(rows, &subject.needs, index * size);
            batch.totals = totals;
            batch.context = context.clone();
            let out = subject.evaluate(&batch)?;
            sum += out.loss;
            dlogp.extend(&out.derivatives[Statistic::Logp]);
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

fn same_number(what: &str, a: f64, b: f64, tolerance: f64) -> Result<(), String> {
    if (a - b).abs() <= tolerance * (1.0 + a.abs()) {
        return Ok(());
    }
    Err(format!("{what} is {a} one way and {b} the other"))
}

fn determinism(entry: &Entry) -> Result<(), String> {
    let (subject, other) = (Subject::new(entry)?, Subject::new(entry)?);
    let batch = subject.batch(&rows(subject.data, 6, 19, 30))?;
    let expected = subject.evaluate(&batch)?;
    for _ in 0..3 {
        if subject.evaluate(&batch)? != expected || other.evaluate(&batch)? != expected {
            return Err("the same batch gave two results".into());
        }
    }
    Ok(())
}

fn fused(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    let mut batch = subject.batch(&rows(subject.data, 4, 23, 9))?;
    batch.weight.iter_mut().step_by(3).for_each(|weight| *weight = 0.25);
    let Some(rule) = subject.loss().separable(&batch.totals) else { return Ok(()) };
    let mut by_rule = Gradients::default();
    rule.evaluate(&subject.needs, &batch.view(), &mut by_rule).map_err(words)?;
    let out = subject.evaluate(&batch)?;
    same_number("the loss", out.loss, by_rule.loss, 1e-9)?;
    let mut per_token = Statistic::ALL.into_iter().filter(|statistic| statistic.per() == Per::Token);
    if per_token.all(|statistic| out.derivatives[statistic] == by_rule.derivatives[statistic]) {
        Ok(())
    } else {
        Err("derivatives of the rule and of evaluate differ".into())
    }
}

fn state(entry: &Entry) -> Result<(), String> {
    let (mut first, mut second) = (Subject::new(entry)?, Subject::new(entry)?);
    for step in 0..3 {
        let loss = 1.0 / (1.0 + f64::from(step));
        first.objective.loss_mut().end_step(loss, &[("metric".into(), 0.5)]).map_err(words)?;
    }
    let state = first.loss().state().map_err(words)?;
    second.objective.loss_mut().restore(&state).map_err(words)?;
    if second.loss().state().map_err(words)? != state {
        return Err("the state read back is another".into());
    }
    let batch = first.batch(&rows(first.data, 4, 29, 9))?;
    if first.evaluate(&batch)? != second.evaluate(&batch)? {
        return Err("an instance with restored state computes something else".into());
    }
    Ok(())
}

fn speed(entry: &Entry) -> Result<(), String> {
    let subject = Subject::new(entry)?;
    let batch = subject.batch(&rows(subject.data, 64, 31, 120))?;
    let time = (0..5)
        .map(|_| {
            let start = Instant::now();
            subject.evaluate(&batch).map(|_| start.elapsed())
        })
        .collect::<Result<Vec<Duration>, _>>()?;
    let best = time.into_iter().min().unwrap_or_default();
    let limit = Duration::from_micros(2) * batch.weight.len().max(1) as u32;
    if best <= limit {
        Ok(())
    } else {
        Err(format!("{} tokens take {best:?}, more than {limit:?}", batch.weight.len()))
    }
}
