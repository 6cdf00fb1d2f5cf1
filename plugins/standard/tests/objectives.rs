//! Every built-in objective: derivatives, accumulation, masks, fusing.

mod common;

use common::{Data, OBJECTIVES, batch, evaluate, objective, rows, step};
use finetuned_plugin_api::loss::{OwnedBatch, Per, Statistic, TokenRule};
use finetuned_plugin_api::registry::Kind;

#[test]
fn every_built_in_objective_is_in_these_tests() {
    for entry in finetuned_standard::registry().unwrap().entries() {
        let known = OBJECTIVES.iter().any(|(name, ..)| *name == entry.descriptor.name);
        assert_eq!(known, entry.descriptor.kind != Kind::Optimizer, "{}", entry.descriptor.name);
        assert!(!entry.descriptor.help.is_empty() && entry.descriptor.paper.contains("https://"));
    }
}

#[test]
fn derivatives_equal_finite_differences() {
    for (name, parameters, data) in OBJECTIVES {
        let objective = objective(name, parameters);
        let loss = objective.loss();
        let needs = loss.needs();
        let mut start = batch(&rows(*data), &needs);
        start.context = vec![0.4];
        let out = evaluate(loss, &start.view());
        for statistic in Statistic::ALL.into_iter().filter(|statistic| needs.asks(*statistic)) {
            let derivative = &out.derivatives[statistic];
            assert_eq!(derivative.len(), start.view().count(statistic.per()), "{name}");
            for (i, derivative) in derivative.iter().enumerate() {
                let at = |h: f32| {
                    let mut moved = start.clone();
                    let x = &mut moved.statistics[statistic].as_mut().unwrap()[i];
                    *x += h;
                    let x = f64::from(*x);
                    (x, evaluate(loss, &moved.view()).loss)
                };
                let ((x1, y1), (x0, y0)) = (at(2e-3), at(-2e-3));
                let expected = (y1 - y0) / (x1 - x0);
                let error = (f64::from(*derivative) - expected).abs();
                assert!(
                    error < 1e-5 + 1e-4 * expected.abs(),
                    "{name} {parameters}, {statistic:?} {i}: {derivative} against {expected}"
                );
            }
        }
    }
}

/// Splits the rows into micro-batches, keeping a pair's two rows together.
fn cut(rows: &[common::Row], size: usize, needs: &finetuned_plugin_api::loss::Needs) -> Vec<OwnedBatch> {
    rows.chunks(size).map(|rows| batch(rows, needs)).collect()
}

#[test]
fn one_by_eight_equals_eight_by_one() {
    for (name, parameters, data) in OBJECTIVES {
        let objective = objective(name, parameters);
        let loss = objective.loss();
        let needs = loss.needs();
        let rows = rows(*data);
        let kl = batch(&common::rows(Data::Kl), &needs);
        let (whole, _) = step(loss, &cut(&rows, 16, &needs), Some(&kl));
        let (parts, _) = step(loss, &cut(&rows, 2, &needs), Some(&kl));
        assert!((whole.loss - parts.loss).abs() < 1e-12, "{name}: {} against {}", whole.loss, parts.loss);
        let dlogp = [&whole, &parts].map(|out| &out.derivatives[Statistic::Logp]);
        assert_eq!(dlogp[0].len(), dlogp[1].len());
        for (a, b) in dlogp[0].iter().zip(dlogp[1]) {
            assert!((a - b).abs() <= 1e-9 + 1e-6 * a.abs(), "{name}: {a} against {b}");
        }
        assert_eq!(whole.derivatives[Statistic::Value], parts.derivatives[Statistic::Value]);
        for ((name, a), (same, b)) in whole.metrics.iter().zip(&parts.metrics) {
            assert_eq!(name, same);
            assert!((a - b).abs() < 1e-9, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn masked_tokens_have_no_say() {
    for (name, parameters, data) in OBJECTIVES {
        let objective = objective(name, parameters);
        let loss = objective.loss();
        let mut clean = batch(&rows(*data), &loss.needs());
        clean.context = vec![0.4];
        let masked: Vec<usize> = (0..clean.weight.len()).filter(|i| i % 5 == 1).collect();
        masked.iter().for_each(|i| clean.weight[*i] = 0.0);
        clean.totals = finetuned_plugin_api::loss::Totals::of(&clean.sequences, &clean.weight, &clean.completion);
        let expected = evaluate(loss, &clean.view());
        let mut broken = clean.clone();
        for i in &masked {
            for (statistic, values) in
                broken.statistics.iter_mut().filter(|(statistic, _)| statistic.per() == Per::Token)
            {
                let nothing = if statistic == Statistic::Logp { f32::NEG_INFINITY } else { f32::NAN };
                values.iter_mut().for_each(|values| values[*i] = nothing);
            }
            broken.reference_logp.iter_mut().for_each(|values| values[*i] = f32::NAN);
        }
        let out = evaluate(loss, &broken.view());
        assert_eq!(out, expected, "{name}");
        assert!(masked.iter().all(|i| out.derivatives[Statistic::Logp][*i] == 0.0), "{name}");
    }
}

#[test]
fn a_fused_head_and_evaluate_agree_to_the_bit() {
    let mut fused = 0;
    for (name, parameters, data) in OBJECTIVES {
        let objective = objective(name, parameters);
        let loss = objective.loss();
        let mut batch = batch(&rows(*data), &loss.needs());
        batch.context = vec![0.4];
        batch.weight[2] = 0.3;
        batch.weight[4] = 0.0;
        let Some(rule) = loss.separable(&batch.totals) else { continue };
        fused += 1;
        let out = evaluate(loss, &batch.view());
        let mut by_rule = 0.0;
        for (statistic, coefficient) in rule.coefficients.iter() {
            let Some(values) = &batch.statistics[statistic] else {
                assert_eq!(*coefficient, 0.0);
                continue;
            };
            for (i, weight) in batch.weight.iter().enumerate() {
                by_rule += coefficient * f64::from(*weight) * f64::from(values[i]);
                let expected = TokenRule::derivative(*coefficient, *weight);
                // As numbers: −0 and 0 of a masked token are one.
                assert_eq!(out.derivatives[statistic][i], expected, "{name} {i}");
            }
        }
        assert!((by_rule - out.loss).abs() < 1e-12, "{name}");
    }
    // Cross-entropy without z-loss, and the entropy bonus.
    assert_eq!(fused, 2);
}
