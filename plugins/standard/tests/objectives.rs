//! Every built-in objective: derivatives, accumulation, masks, fusing.

mod common;

use common::{Data, OBJECTIVES, batch, evaluate, objective, rows, step};
use finetuned_plugin_api::loss::{OwnedBatch, TokenRule};
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
        type Pick = fn(&mut OwnedBatch) -> Option<&mut Vec<f32>>;
        let picks: [(Pick, Option<&Vec<f32>>); 5] = [
            (|b| Some(&mut b.logp), Some(&out.dlogp)),
            (|b| b.entropy.as_mut(), out.dentropy.as_ref()),
            (|b| b.lse.as_mut(), out.dlse.as_ref()),
            (|b| b.mean_logp.as_mut(), out.dmean_logp.as_ref()),
            (|b| b.values.as_mut(), out.dvalue.as_ref()),
        ];
        for (which, (pick, derivative)) in picks.into_iter().enumerate() {
            for (i, derivative) in derivative.into_iter().flatten().enumerate() {
                let at = |h: f32| {
                    let mut moved = start.clone();
                    let x = &mut pick(&mut moved).unwrap()[i];
                    *x += h;
                    let x = f64::from(*x);
                    (x, evaluate(loss, &moved.view()).loss)
                };
                let ((x1, y1), (x0, y0)) = (at(2e-3), at(-2e-3));
                let expected = (y1 - y0) / (x1 - x0);
                let error = (f64::from(*derivative) - expected).abs();
                assert!(
                    error < 1e-5 + 1e-4 * expected.abs(),
                    "{name} {parameters}, statistic {which}, {i}: {derivative} against {expected}"
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
        assert_eq!(whole.dlogp.len(), parts.dlogp.len());
        for (a, b) in whole.dlogp.iter().zip(&parts.dlogp) {
            assert!((a - b).abs() <= 1e-9 + 1e-6 * a.abs(), "{name}: {a} against {b}");
        }
        assert_eq!(whole.dvalue, parts.dvalue);
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
        let masked: Vec<usize> = (0..clean.logp.len()).filter(|i| i % 5 == 1).collect();
        masked.iter().for_each(|i| clean.weight[*i] = 0.0);
        clean.totals = finetuned_plugin_api::loss::Totals::of(&clean.sequences, &clean.weight, &clean.completion);
        let expected = evaluate(loss, &clean.view());
        let mut broken = clean.clone();
        for i in &masked {
            broken.logp[*i] = f32::NEG_INFINITY;
            for statistic in [&mut broken.entropy, &mut broken.lse, &mut broken.mean_logp, &mut broken.reference_logp] {
                statistic.iter_mut().for_each(|statistic| statistic[*i] = f32::NAN);
            }
        }
        let out = evaluate(loss, &broken.view());
        assert_eq!(out, expected, "{name}");
        assert!(masked.iter().all(|i| out.dlogp[*i] == 0.0), "{name}");
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
        let mut agree = |coefficient: f64, statistic: Option<&Vec<f32>>, derivative: Option<&Vec<f32>>| {
            let Some(statistic) = statistic else { return assert_eq!(coefficient, 0.0) };
            for (i, weight) in batch.weight.iter().enumerate() {
                by_rule += coefficient * f64::from(*weight) * f64::from(statistic[i]);
                let expected = TokenRule::derivative(coefficient, *weight);
                // As numbers: −0 and 0 of a masked token are one.
                assert_eq!(derivative.unwrap()[i], expected, "{name} {i}");
            }
        };
        agree(rule.logp, Some(&batch.logp), Some(&out.dlogp));
        agree(rule.mean_logp, batch.mean_logp.as_ref(), out.dmean_logp.as_ref());
        agree(rule.entropy, batch.entropy.as_ref(), out.dentropy.as_ref());
        agree(rule.lse, batch.lse.as_ref(), out.dlse.as_ref());
        assert!((by_rule - out.loss).abs() < 1e-12, "{name}");
    }
    // Cross-entropy without z-loss, and the entropy bonus.
    assert_eq!(fused, 2);
}
