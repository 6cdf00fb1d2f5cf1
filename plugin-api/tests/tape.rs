//! The tape's derivatives against finite differences, and what a batch checks.

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{
    Gradients, Loss, Needs, OwnedBatch, Per, PerStatistic, Role, Sequence, Statistic, TokenRule, Totals,
};
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};

fn sequence(tokens: std::ops::Range<usize>, role: Role, pair: Option<u32>) -> Sequence {
    Sequence { tokens, role, pair, ..Sequence::default() }
}

fn batch() -> OwnedBatch {
    let n = 7;
    let sequences = vec![sequence(0..4, Role::Chosen, Some(0)), sequence(4..7, Role::Rejected, Some(0))];
    let weight = vec![1.0, 1.0, 0.0, 0.5, 1.0, 2.0, 1.0];
    let completion = vec![false, true, true, true, false, true, true];
    OwnedBatch {
        statistics: PerStatistic::from_fn(|statistic| {
            let line = |start: f32, slope: f32| (0..n).map(|i| start + slope * i as f32).collect();
            Some(match statistic {
                Statistic::Logp => line(-0.3, -0.35),
                Statistic::MeanLogp => line(-5.0, -0.1),
                Statistic::Entropy => line(1.0, 0.2),
                Statistic::Lse => line(0.5, 0.1),
                Statistic::Value => vec![0.7, -0.4],
            })
        }),
        reference_logp: Some((0..n).map(|i| -0.5 - 0.3 * i as f32).collect()),
        totals: Totals::of(&sequences, &weight, &completion),
        token: vec![5; n],
        context: vec![],
        weight,
        completion,
        sequences,
    }
}

/// Every operation of the tape at once.
struct Everything;

impl Formula for Everything {
    fn needs(&self) -> Needs {
        Needs { reference_logp: true, ..Needs::of(Statistic::ALL) }
    }

    fn loss<'t>(&self, b: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let (chosen, rejected) = b.pairs()?[0];
        let margin = chosen.log_ratio() * 0.3 - rejected.mean_log_ratio();
        let odds = chosen.mean_logp() - chosen.mean_logp().log1mexp();
        let tokens = b.logp().exp() * b.entropy()? / (b.lse()? + 2.0) + b.mean_logp()?.powf(3.0) * 1e-2;
        let value = (chosen.value()? - rejected.value()?).sigmoid().ln();
        let clipped = (b.logp() - b.constants([-0.9; 7])).abs().at_least(0.3).at_most(1.2);
        let held = b.logp().detach() * b.logp();
        Ok(-margin.log_sigmoid() + odds * odds + b.token_mean(tokens + clipped + held) - value
            + rejected.whole_logp().relu()
            + (1.0 - chosen.whole_logp()).relu() / 3.0)
    }
}

fn loss_of(batch: &OwnedBatch) -> f64 {
    let mut out = Gradients::default();
    Everything.evaluate(&batch.view(), &mut out).unwrap();
    out.loss
}

#[test]
fn derivatives_equal_finite_differences() {
    let start = batch();
    let mut out = Gradients::default();
    Everything.evaluate(&start.view(), &mut out).unwrap();
    out.check(&Formula::needs(&Everything), &start.view()).unwrap();
    // `held` has a detached factor, whose derivative finite differences see.
    let held = |i: usize| f64::from(start.weight[i]) * f64::from(start.view().logp()[i]) / start.totals.weight();
    for statistic in Statistic::ALL {
        let derivative = &out.derivatives[statistic];
        assert_eq!(derivative.len(), if statistic.per() == Per::Token { 7 } else { 2 });
        for (i, derivative) in derivative.iter().enumerate() {
            let at = |h: f32| {
                let mut moved = start.clone();
                let values = moved.statistics[statistic].as_mut().unwrap();
                values[i] += h;
                (f64::from(values[i]), loss_of(&moved))
            };
            let ((x1, y1), (x0, y0)) = (at(1e-3), at(-1e-3));
            let mut expected = (y1 - y0) / (x1 - x0);
            if statistic == Statistic::Logp {
                expected -= held(i);
            }
            let error = (f64::from(*derivative) - expected).abs();
            assert!(error < 2e-5 * (1.0 + expected.abs()), "{statistic:?} {i}: {derivative} against {expected}");
        }
    }
    assert_eq!(out.derivatives[Statistic::Logp][2], 0.0, "a masked token has no derivative");
}

#[test]
fn a_masked_token_may_hold_anything() {
    let mut broken = batch();
    let clean = loss_of(&broken);
    broken.logp_mut()[2] = f32::NEG_INFINITY;
    broken.statistics[Statistic::Entropy].as_mut().unwrap()[2] = f32::NAN;
    assert_eq!(loss_of(&broken), clean);
}

#[test]
fn a_pair_without_its_partner_is_refused() {
    let mut alone = batch();
    alone.sequences[1].pair = Some(3);
    let error = Everything.evaluate(&alone.view(), &mut Gradients::default()).unwrap_err();
    assert_eq!(error.to_string(), "pair 0 has no rejected sequence of its own in its micro-batch");
    let mut missing = batch();
    missing.statistics[Statistic::Entropy] = None;
    let error = Everything.evaluate(&missing.view(), &mut Gradients::default()).unwrap_err();
    assert_eq!(error.to_string(), "the batch lacks entropy, which the loss asks for");
}

#[test]
fn a_token_rule_is_a_linear_loss() {
    let batch = batch();
    let needs = Needs::of([Statistic::MeanLogp]);
    let (logp, mean_logp) = (-0.9 / 5.5, -0.1 / 5.5);
    let rule = TokenRule::of([(Statistic::Logp, logp), (Statistic::MeanLogp, mean_logp)]);
    let mut out = Gradients::default();
    rule.evaluate(&needs, &batch.view(), &mut out).unwrap();
    let by_hand: f64 = (0..7)
        .map(|i| {
            let of = |statistic| f64::from(batch.view().statistic(statistic).unwrap()[i]);
            f64::from(batch.weight[i]) * (logp * of(Statistic::Logp) + mean_logp * of(Statistic::MeanLogp))
        })
        .sum();
    assert!((out.loss - by_hand).abs() < 1e-12);
    for i in 0..7 {
        assert_eq!(out.derivatives[Statistic::Logp][i], TokenRule::derivative(logp, batch.weight[i]));
    }
}

#[test]
fn totals_of_parts_add_to_the_totals_of_the_whole() {
    let whole = batch();
    let mut sum = Totals::of(&whole.sequences[..1], &whole.weight, &whole.completion);
    sum.add(&Totals::of(&whole.sequences[1..], &whole.weight, &whole.completion));
    assert_eq!(sum, whole.totals);
    assert_eq!(sum.pairs, 1);
    assert_eq!((sum.role(Role::Chosen).tokens, sum.role(Role::Chosen).completion_weight), (3, 1.5));
}

#[test]
fn what_a_plugin_returns_is_checked() {
    let batch = batch();
    let needs = Needs::default();
    let mut out = Gradients::default();
    out.reset(&needs, &batch.view()).unwrap();
    out.check(&needs, &batch.view()).unwrap();
    out.derivatives[Statistic::Logp][3] = f32::NAN;
    assert_eq!(out.check(&needs, &batch.view()).unwrap_err().to_string(), "dlogp of token 3 is NaN");
    out.derivatives[Statistic::Logp].pop();
    assert_eq!(out.check(&needs, &batch.view()).unwrap_err().to_string(), "dlogp: expected 7 values, got 6");
}
