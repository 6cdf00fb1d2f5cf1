//! The worked examples of the docs, and the first steps of TRL's trainers.

mod common;

use std::collections::BTreeMap;

use common::{Row, batch, evaluate, objective, step};
use finetuned_plugin_api::loss::{Gradients, Needs, OwnedBatch, Role, Statistic};

fn near(got: f64, expected: f64) {
    assert!((got - expected).abs() < 6e-5, "{got}, expected {expected}");
}

fn pair(chosen: Row, rejected: Row) -> [Row; 2] {
    [Row { pair: Some(0), ..chosen }, Row { pair: Some(0), ..rejected }]
}

/// One objective on one pair, given token log-probabilities.
fn on_pair(name: &str, parameters: &str, chosen: &[f32], rejected: &[f32], reference: [&[f32]; 2]) -> Gradients {
    let objective = objective(name, parameters);
    let rows =
        pair(Row::new(Role::Chosen, 0, chosen, reference[0]), Row::new(Role::Rejected, 0, rejected, reference[1]));
    evaluate(objective.loss(), &batch(&rows, &objective.loss().needs()).view())
}

#[test]
fn cross_entropy() {
    let rows = [Row::new(Role::Plain, 0, &[-1.0, -3.0], &[0.0, 0.0])];
    let with = |parameters: &str, change: fn(&mut OwnedBatch)| {
        let objective = objective("cross-entropy", parameters);
        let mut batch = batch(&rows, &objective.loss().needs());
        change(&mut batch);
        evaluate(objective.loss(), &batch.view())
    };
    let plain = with("{}", |_| {});
    near(plain.loss, 2.0);
    assert_eq!(plain.derivatives[Statistic::Logp], [-0.5, -0.5]);
    let smooth = with(r#"{"label_smoothing": 0.1}"#, |b| b.statistics[Statistic::MeanLogp] = Some(vec![-6.0, -6.0]));
    near(smooth.loss, 2.4);
    let z = with(r#"{"z_loss": 0.01}"#, |b| b.statistics[Statistic::Lse] = Some(vec![2.0, 2.0]));
    near(z.loss, 2.04);
    assert_eq!(z.derivatives[Statistic::Lse], [0.02, 0.02]);
}

#[test]
fn focal_and_entropy_bonus() {
    let objective_ = objective("focal", "{}");
    let rows = [Row::new(Role::Plain, 0, &[0.5f32.ln()], &[0.0])];
    let out = evaluate(objective_.loss(), &batch(&rows, &Needs::default()).view());
    near(out.loss, 0.1733);
    near(f64::from(out.derivatives[Statistic::Logp][0]), -0.5966);
    let bonus = objective("entropy-bonus", r#"{"coefficient": 0.1}"#);
    let rows = [Row::new(Role::Plain, 0, &[-1.0, -3.0], &[0.0, 0.0])];
    let mut batch = batch(&rows, &bonus.loss().needs());
    batch.statistics[Statistic::Entropy] = Some(vec![2.0, 2.0]);
    let out = evaluate(bonus.loss(), &batch.view());
    near(out.loss, 1.8);
    assert_eq!((out.derivatives[Statistic::Logp][0], out.derivatives[Statistic::Entropy][0]), (-0.5, -0.05));
}

#[test]
fn dpo_starts_where_theory_says() {
    let logp: [&[f32]; 2] = [&[-1.0, -2.0], &[-3.0]];
    for (parameters, expected) in [
        ("{}", std::f64::consts::LN_2),
        (r#"{"label_smoothing": 0.3}"#, std::f64::consts::LN_2),
        (r#"{"variant": "hinge"}"#, 1.0),
        (r#"{"variant": "ipo"}"#, 25.0),
        (r#"{"variant": "robust", "label_smoothing": 0.1}"#, std::f64::consts::LN_2),
    ] {
        let out = on_pair("dpo", parameters, logp[0], logp[1], logp);
        assert!((out.loss - expected).abs() < 1e-12, "{parameters}: {}", out.loss);
        let margin = out.metrics.iter().find(|(name, _)| name == "rewards/margins").unwrap().1;
        assert_eq!(margin, 0.0);
    }
    let later = on_pair("dpo", "{}", &[-1.0, -2.0], &[-3.0], [&[-2.0, -3.0], &[-2.0]]);
    near(later.loss, 0.5544);
    near(f64::from(later.derivatives[Statistic::Logp][0]), -0.0426);
}

#[test]
fn kto() {
    let objective = objective("kto", "{}");
    let rows = [
        Row { label: Some(true), ..Row::new(Role::Completion, 0, &[-1.0], &[-4.0]) },
        Row { label: Some(false), ..Row::new(Role::Completion, 0, &[-3.0], &[-2.0]) },
    ];
    let kl = [
        Row::new(Role::KlCompletion, 0, &[-1.0, -1.0], &[-2.0, -3.0]),
        Row::new(Role::KlCompletion, 0, &[-3.0], &[-2.0]),
    ];
    let needs = objective.loss().needs();
    let (out, seen) = step(objective.loss(), &[batch(&rows, &needs)], Some(&batch(&kl, &needs)));
    assert_eq!(seen[0].context, [1.0]);
    near(out.loss, 0.4502);
    near(f64::from(out.derivatives[Statistic::Logp][0]), -0.0124);
    // Mismatched answers that became less likely: the estimate is 0, not below.
    let low = [Row::new(Role::KlCompletion, 0, &[-9.0], &[-2.0])];
    assert_eq!(objective.loss().before_step(&batch(&low, &needs).view()).unwrap(), [0.0]);
}

#[test]
fn methods_without_a_reference() {
    let none: [&[f32]; 2] = [&[0.0; 8], &[0.0; 8]];
    near(on_pair("orpo", "{}", &[-0.5], &[-1.0], none).loss, 0.5320);
    near(on_pair("cpo", "{}", &[-2.0; 5], &[-6.0, -6.0], none).loss, 2.5981);
    near(on_pair("simpo", "{}", &[-1.0, -1.0], &[-1.5], none).loss, 0.4741);
    near(on_pair("simpo", "{}", &[-1.0, -1.0], &[-1.0], none).loss, 0.9741);
}

#[test]
fn reward_model_and_unlikelihood() {
    let model = objective("reward-model", "{}");
    let value = |chosen, rejected| {
        let rows = pair(
            Row { value: chosen, ..Row::new(Role::Chosen, 0, &[-1.0], &[0.0]) },
            Row { value: rejected, ..Row::new(Role::Rejected, 0, &[-1.0], &[0.0]) },
        );
        evaluate(model.loss(), &batch(&rows, &model.loss().needs()).view())
    };
    near(value(0.0, 0.0).loss, std::f64::consts::LN_2);
    let later = value(1.5, 0.5);
    near(later.loss, 0.3133);
    let dvalue = &later.derivatives[Statistic::Value];
    near(f64::from(dvalue[0]), -0.2689);
    near(f64::from(dvalue[1]), 0.2689);
    assert!(model.alignment_needs().unwrap().value_head);

    let method = objective("unlikelihood", "{}");
    let half = 0.5f32.ln();
    let rows = [
        Row { label: Some(true), ..Row::new(Role::Completion, 0, &[half], &[0.0]) },
        Row { label: Some(false), ..Row::new(Role::Completion, 0, &[half], &[0.0]) },
    ];
    let out = evaluate(method.loss(), &batch(&rows, &Needs::default()).view());
    near(out.loss, std::f64::consts::LN_2);
    near(f64::from(out.derivatives[Statistic::Logp][0]), -0.5);
    near(f64::from(out.derivatives[Statistic::Logp][1]), 0.5);
}

#[test]
fn dpo_refuses_a_smoothing_that_its_variant_lacks() {
    let registry = finetuned_standard::registry().unwrap();
    let given = serde_json::from_str(r#"{"variant": "hinge", "label_smoothing": 0.1}"#).unwrap();
    let error = registry.objective("dpo", &given).err().unwrap().to_string();
    assert_eq!(error, "parameter 'label_smoothing' of 'dpo': expected 0 with this variant, got 0.1");
}

#[derive(serde::Deserialize)]
struct Recorded {
    prompt_tokens: usize,
    chosen: Option<Vec<f32>>,
    rejected: Option<Vec<f32>>,
    completion: Option<Vec<f32>>,
    #[serde(rename = "KL_completion")]
    kl_completion: Option<Vec<f32>>,
    label: Option<bool>,
}

#[derive(serde::Deserialize)]
struct Curve {
    rows: Vec<Recorded>,
    logged: BTreeMap<String, f64>,
}

#[test]
fn first_steps_equal_trls_own_trainers() {
    let curves: BTreeMap<String, Curve> = serde_json::from_str(include_str!("golden/first_steps.json")).unwrap();
    assert_eq!(curves.len(), 8);
    for (name, curve) in &curves {
        let (method, parameters) = match name.as_str() {
            "dpo-robust" => ("dpo", r#"{"variant": "robust", "label_smoothing": 0.1}"#.to_string()),
            _ => match name.split_once('-') {
                Some((method, variant)) => (method, format!(r#"{{"variant": "{variant}"}}"#)),
                None => (name.as_str(), "{}".to_string()),
            },
        };
        let objective = objective(method, &parameters);
        let needs = objective.loss().needs();
        let (mut rows, mut kl) = (Vec::new(), Vec::new());
        for (index, row) in curve.rows.iter().enumerate() {
            let add = |into: &mut Vec<Row>, logp: &Option<Vec<f32>>, role| {
                if let Some(logp) = logp {
                    // The reference is the policy that the run starts from.
                    let pair = matches!(role, Role::Chosen | Role::Rejected).then_some(index as u32);
                    into.push(Row { pair, label: row.label, ..Row::new(role, row.prompt_tokens, logp, logp) });
                }
            };
            add(&mut rows, &row.chosen, Role::Chosen);
            add(&mut rows, &row.rejected, Role::Rejected);
            add(&mut rows, &row.completion, Role::Completion);
            add(&mut kl, &row.kl_completion, Role::KlCompletion);
        }
        let (out, _) = step(objective.loss(), &[batch(&rows, &needs)], Some(&batch(&kl, &needs)));
        let logged = curve.logged["loss"];
        assert!((out.loss - logged).abs() < 2e-5 * logged.max(1.0), "{name}: {} against {logged}", out.loss);
        let mut compared = 0;
        for (metric, value) in &out.metrics {
            let Some(logged) = curve.logged.get(metric) else { continue };
            assert!(
                (value - logged).abs() < 1e-4 * logged.abs().max(1.0),
                "{name}, {metric}: {value} against {logged}"
            );
            compared += 1;
        }
        assert!(compared >= 4, "{name}: {compared}");
    }
}
