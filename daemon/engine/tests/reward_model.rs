//! The value head of reward models: values and gradients through the whole
//! model, runs, resume, files, and ten steps against transformers and PEFT.

mod common;

use std::path::{Path, PathBuf};

use common::*;
use finetuned_data::{Example, Examples, Row};
use finetuned_engine::model::batch::TokenBatch;
use finetuned_engine::model::context::Pass;
use finetuned_engine::model::decoder::{Decoder, Keep};
use finetuned_engine::model::parameters::ParameterId;
use finetuned_engine::model::{adapter, value};
use finetuned_engine::plan;
use finetuned_engine::plugins;
use finetuned_engine::recipe::{self, Method, Recipe};
use finetuned_engine::run::{metrics, output};
use finetuned_engine::train::heads::Heads;
use finetuned_engine::train::load::load_for_training;
use finetuned_engine::train::step::{StepOptions, Trainer};
use finetuned_engine::{Control, Event, Observer, Outcome, Summary, TrainRequest, train};
use finetuned_formats::{ModelFiles, VALUE_HEAD, read_peft};
use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::alignment::{AlignmentNeeds, DataKind, Declared};
use finetuned_plugin_api::loss::{Needs, Statistic};
use finetuned_plugin_api::registry::Objective;
use finetuned_plugin_api::tape::{Formula, TapeBatch, V};
use finetuned_shaders::{Device, Weight};
use serde_json::{Map, Value, json};

const VALUES: Heads = Heads { language: false, value: true };

/// Stops after a step, or never.
#[derive(Default)]
struct Watcher {
    step: usize,
    stop_after: Option<usize>,
}

impl Observer for Watcher {
    fn event(&mut self, event: &Event) {
        if let Event::Step(metrics) = event {
            self.step = metrics.step;
        }
    }

    fn control(&mut self) -> Control {
        if self.stop_after.is_some_and(|s| self.step >= s) { Control::Stop } else { Control::Continue }
    }
}

/// Pairs of uneven lengths whose chosen answers hold tokens that the rejected
/// ones do not.
fn pair(i: usize) -> Example {
    let ids = |n: usize, from: usize, step: usize| -> Vec<u32> {
        (0..n).map(|t| (from + (i * 7 + t * step) % 40) as u32).collect()
    };
    Example::pair(&ids(3 + i % 4, 10, 3), &ids(2 + i % 5, 100, 5), &ids(2 + (i + 2) % 5, 200, 5), i + 1)
}

fn pairs(n: usize) -> Examples {
    Examples { kind: DataKind::Pairs, sequence_length: 64, list: (0..n).map(pair).collect() }
}

fn rows(n: usize) -> Vec<Row> {
    (0..n).map(|i| Row { examples: vec![i] }).collect()
}

/// The golden adapter, whose factors are no zeros, under a value head of these
/// numbers.
fn reward_model(ops: &Device, head: impl Fn(usize) -> f32) -> Decoder {
    let mut model = decoder(ops, "llama", false, None);
    adapter::attach_peft(ops, &mut model, &read_peft(&golden("llama/lora")).expect("adapter")).expect("attached");
    let head: Vec<f32> = (0..model.config.hidden_size).map(head).collect();
    model.attach_value_head(ops, VALUE_HEAD, &head).expect("head");
    model
}

fn wave(i: usize) -> f32 {
    (i as f32 * 0.7).sin() * 0.3
}

fn trainer(ops: &Device, model: Decoder, parameters: Value, micro_batch_size: usize) -> Trainer {
    let registry = plugins::registry(&[]).expect("registry");
    let parameters: Map<String, Value> = parameters.as_object().expect("object").clone();
    let objective = registry.objective("reward-model", &parameters).expect("objective");
    trainer_of(ops, model, objective, micro_batch_size)
}

fn trainer_of(ops: &Device, model: Decoder, objective: Objective, micro_batch_size: usize) -> Trainer {
    let registry = plugins::registry(&[]).expect("registry");
    let optimizer = plugins::optimizer(&Recipe::default(), &registry).expect("optimizer");
    let options = StepOptions {
        micro_batch_size,
        gradient_checkpointing: false,
        offload_activations: false,
        max_grad_norm: 0.0,
        seed: 3,
    };
    Trainer::new(ops.clone(), model, objective, optimizer, options, false).expect("trainer")
}

/// Loss and gradients of one step, whose update is too small to be one.
fn step(trainer: &mut Trainer, examples: &Examples, n: usize) -> (f64, f64) {
    let result = trainer.step(examples, &rows(n), 1, 0.0, &mut |_, _| true).expect("step").expect("not stopped");
    (result.loss, result.grad_norm)
}

fn id_of(model: &Decoder, name: &str) -> ParameterId {
    model.parameters.iter().find(|(_, p)| p.name == name).map(|(id, _)| id).expect("parameter")
}

fn move_by(ops: &Device, model: &mut Decoder, id: ParameterId, direction: &[f32], by: f32) {
    let mut values = ops.read(model.parameters.tensor(id).expect("dense")).expect("read");
    values.iter_mut().zip(direction).for_each(|(v, d)| *v += by * d);
    if let Weight::Dense(tensor) = &mut model.parameters.get_mut(id).value {
        ops.write(tensor, &values).expect("write");
    }
}

#[test]
fn a_value_is_the_head_on_the_final_norm_at_the_last_token() {
    let ops = cpu();
    let model = reward_model(&ops, wave);
    let documents: [&[u32]; 3] = [&[7, 8, 9, 10], &[11], &[12, 13]];
    let batch = TokenBatch::from_documents(documents);
    let values = model.values(&ops, &batch, &Pass::evaluation(true)).expect("values").expect("a head");
    let forward = model.forward(&ops, &batch, &Pass::evaluation(true), Keep::Nothing).expect("forward");
    let h = model.head_input(&ops, &forward, &[3, 4, 6]).expect("norm").h;
    let h = ops.read(&h).expect("read");
    for (value, h) in values.iter().zip(h.chunks(64)) {
        let expected: f64 = h.iter().enumerate().map(|(i, x)| f64::from(*x) * f64::from(wave(i))).sum();
        assert!((f64::from(*value) - expected).abs() < 1e-5, "{value} {expected}");
    }
    assert_eq!(values.len(), 3);
    // A document's value does not depend on its neighbours, but for the order of f32 sums:
    // a product of fewer rows is cut into other tiles where a processor lacks AVX-512.
    let alone = model.values(&ops, &TokenBatch::from_documents([documents[2]]), &Pass::evaluation(true));
    let alone = alone.expect("values").expect("a head")[0];
    assert!((alone - values[2]).abs() < 1e-5, "{alone} {}", values[2]);
}

/// Along the gradient of each of these parameters the loss rises by its norm.
fn compare_with_finite_differences(ops: &Device, trainer: &mut Trainer, examples: &Examples, n: usize) {
    step(trainer, examples, n);
    let layer = "base_model.model.model.layers.0";
    for name in [
        VALUE_HEAD.to_string(),
        format!("{layer}.self_attn.q_proj.lora_A.weight"),
        format!("{layer}.mlp.up_proj.lora_B.weight"),
    ] {
        let id = id_of(&trainer.model, &name);
        let gradient = ops.read(trainer.gradients().get(id).expect("gradient")).expect("read");
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-4, "{name}: a gradient of {norm} shows nothing");
        let direction: Vec<f32> = gradient.iter().map(|g| (f64::from(*g) / norm) as f32).collect();
        let epsilon = 1e-2;
        let mut at = |by: f32| {
            move_by(ops, &mut trainer.model, id, &direction, by);
            let loss = trainer.evaluate(examples, &rows(n), 0).expect("loss").loss;
            move_by(ops, &mut trainer.model, id, &direction, -by);
            loss
        };
        let slope = (at(epsilon) - at(-epsilon)) / (2.0 * f64::from(epsilon));
        assert!((slope - norm).abs() < 5e-3 * norm, "{name}: slope {slope}, gradient {norm}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let ops = cpu();
    let mut trainer = trainer(&ops, reward_model(&ops, wave), json!({"centering": 0.05}), 2);
    compare_with_finite_differences(&ops, &mut trainer, &pairs(4), 4);
}

/// Reads both heads: the values of a pair, and the chosen answer's tokens.
struct Both {
    /// What it asks for beside values: something of the tokens, as a loss that
    /// reads log-probabilities must.
    needs: Needs,
}

impl Formula for Both {
    fn needs(&self) -> Needs {
        let mut needs = self.needs.clone();
        needs.statistics[Statistic::Value] = true;
        needs
    }

    fn loss<'t>(&self, batch: &TapeBatch<'t>) -> Result<V<'t>, PluginError> {
        let mut losses = Vec::new();
        for (chosen, rejected) in batch.pairs()? {
            losses.push(-(chosen.value()? - rejected.value()?).log_sigmoid() - chosen.mean_logp() * 0.3);
        }
        Ok(batch.sum(losses) / batch.totals().pairs as f64)
    }
}

fn with_both(ops: &Device, needs: Needs) -> Trainer {
    let objective = Both { needs };
    let needs = AlignmentNeeds { value_head: true, ..AlignmentNeeds::only(DataKind::Pairs) };
    let objective = Objective::Alignment(Box::new(Declared { needs, objective }));
    trainer_of(ops, reward_model(ops, wave), objective, 2)
}

#[test]
fn a_loss_may_read_both_heads() {
    let ops = cpu();
    for needs in [Needs::of([Statistic::Lse]), Needs { prompt_logp: true, ..Needs::default() }] {
        compare_with_finite_differences(&ops, &mut with_both(&ops, needs), &pairs(4), 4);
    }
    // Without asking it would learn from log-probabilities that nobody computed.
    let mut wrong = with_both(&ops, Needs::default());
    let error = wrong.step(&pairs(4), &rows(4), 1, 0.0, &mut |_, _| true).expect_err("refused").to_string();
    assert!(error.contains("log-probabilities") && error.contains("lse"), "{error}");
}

#[test]
fn a_head_of_zeros_begins_at_ln_2() {
    let ops = cpu();
    let mut trainer = trainer(&ops, reward_model(&ops, |_| 0.0), json!({}), 4);
    let (loss, norm) = step(&mut trainer, &pairs(8), 8);
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-7, "{loss}");
    assert!(norm > 0.0);
    // The decoder behind a head of zeros has no gradient, the head has all of it.
    let head = id_of(&trainer.model, VALUE_HEAD);
    let gradient = trainer.gradients().get(head).expect("gradient");
    assert!((ops.sum_squares(&[gradient]).expect("norm").sqrt() - norm).abs() < 1e-9);
}

#[test]
fn one_micro_batch_or_eight_give_one_gradient() {
    let ops = cpu();
    let examples = pairs(8);
    let all = |micro_batch_size| {
        let mut trainer = trainer(&ops, reward_model(&ops, wave), json!({"centering": 0.01}), micro_batch_size);
        let (loss, _) = step(&mut trainer, &examples, 8);
        let values: Vec<Vec<f32>> = trainer.gradients().iter().map(|(_, g)| ops.read(g).expect("gradient")).collect();
        (loss, values.concat())
    };
    let (whole, cut) = (all(8), all(1));
    assert!((whole.0 - cut.0).abs() < 1e-6, "{} {}", whole.0, cut.0);
    let error = relative(&cut.1, &whole.1);
    assert!(error < 1e-5, "{error}");
}

#[test]
fn what_is_saved_gives_the_same_values() {
    let ops = cpu();
    let examples = pairs(8);
    let mut trainer = trainer(&ops, reward_model(&ops, wave), json!({}), 4);
    for i in 1..=3 {
        trainer.step(&examples, &rows(8), i, 1e-2, &mut |_, _| true).expect("step");
    }
    let batch = TokenBatch::from_documents([&[7u32, 8, 9][..], &[21, 22]]);
    let values = |model: &Decoder| model.values(&ops, &batch, &Pass::evaluation(true)).expect("values");
    let before = values(&trainer.model);
    assert_ne!(before, values(&reward_model(&ops, wave)), "three steps change them");
    let folder = tempfile::tempdir().expect("folder");
    let (ops, model) = trainer.into_model();
    let difference = output::save_adapter(&ops, model, &golden("llama"), folder.path(), &[7, 8, 9]).expect("saved");
    assert_eq!(difference, 0.0);
    let mut again = decoder(&ops, "llama", false, None);
    adapter::attach_peft(&ops, &mut again, &read_peft(folder.path()).expect("read")).expect("attached");
    assert_eq!(before, again.values(&ops, &batch, &Pass::evaluation(true)).expect("values"));
}

/// Pairs as rows of token ids.
fn dataset(folder: &Path, n: usize) -> PathBuf {
    let path = folder.join("pairs.jsonl");
    let line = |i: usize| {
        let p = pair(i);
        let [chosen, rejected] = &p.documents[..] else { panic!("a pair") };
        json!({"prompt_ids": chosen.prompt(), "chosen_ids": chosen.answer(), "rejected_ids": rejected.answer()})
            .to_string()
            + "\n"
    };
    std::fs::write(&path, (0..n).map(line).collect::<String>()).expect("dataset");
    path
}

fn request(folder: &Path, out: &str, settings: &[&str]) -> TrainRequest {
    let mut table = toml::Table::new();
    let fixed = [
        "loss.name=reward-model",
        "train.steps=10",
        "train.batch_size=8",
        "train.learning_rate=5e-3",
        "train.schedule=constant",
        "train.validation_fraction=0.2",
        "checkpoint.every_steps=4",
    ];
    for setting in fixed.iter().chain(settings) {
        recipe::set(&mut table, setting).expect("setting");
    }
    TrainRequest {
        data: dataset(folder, 40),
        validation: None,
        adapter: None,
        out: folder.join(out),
        recipe: Recipe { base: base("llama"), ..Recipe::from_table(&table).expect("recipe") },
        device: "cpu".into(),
        fresh: false,
        threads: Some(2),
        plugins: Vec::new(),
        accept_plugin_change: false,
    }
}

fn finish(request: &TrainRequest) -> Summary {
    match train(request, &mut Watcher::default()).expect("a run") {
        Outcome::Finished(summary) => *summary,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ten_steps_tell_the_pairs_apart() {
    let folder = tempfile::tempdir().expect("folder");
    let request = request(folder.path(), "out", &[]);
    let planned = plan(&request).expect("plan");
    assert!(planned.parts.iter().all(|part| part.name != "LM head"), "{:?}", planned.parts);
    let summary = finish(&request);
    let lines = metrics::read(&request.out).expect("metrics");
    let number = |line: &Value, key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
    let (first, last) = (&lines[1], &lines[10]);
    assert!(number(last, "loss") < 0.5 * number(first, "loss"), "{first} {last}");
    assert!(number(last, "rewards/accuracies") > number(first, "rewards/accuracies"), "{first} {last}");
    assert!(last.get("logps/chosen").is_none(), "no logits are computed: {last}");
    // On the validation rows, before and after: in metrics.jsonl and in the summary.
    let held_out = |key: &str| (number(&lines[0], key), number(last, key));
    let (before, after) = held_out("validation_rewards/accuracies");
    assert!(before < 1.0 && after == 1.0, "{before} {after}");
    let (before, after) = held_out("validation_rewards/margins");
    assert!(after > before + 0.5, "{before} {after}");
    assert_eq!(summary.extra["held_out_before"]["rewards/margins"], before);
    assert_eq!(summary.extra["held_out_after"]["rewards/margins"], after);
    assert_eq!(summary.extra["held_out_after"]["rewards/accuracies"], 1.0);
    assert!(summary.validation_after < summary.tally.validation_before);
    // The head is one of the trained parameters, and PEFT's files say so.
    let peft = read_peft(&request.out).expect("adapter");
    assert_eq!((peft.config.value_head, peft.config.task_type.as_deref()), (true, Some("SEQ_CLS")));
    assert_eq!(peft.tensors[VALUE_HEAD].0, [1, 64]);
    let trained: u64 = peft.tensors.values().map(|(_, values)| values.len() as u64).sum();
    assert_eq!(planned.trainable_parameters, trained);
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().expect("folder");
    for settings in
        [&["lora.dropout=0.1"][..], &["method=qlora", "optimizer.name=adamw-8bit", "train.gradient_checkpointing=true"]]
    {
        let whole = request(folder.path(), "whole", settings);
        finish(&whole);
        let cut = request(folder.path(), "cut", settings);
        let mut watcher = Watcher { stop_after: Some(6), ..Watcher::default() };
        assert_eq!(train(&cut, &mut watcher).expect("stopped"), Outcome::Stopped { step: 6 });
        let checkpoint = cut.out.join("checkpoints/step-00000006/weights.safetensors");
        let stored = finetuned_formats::open_safetensors(&checkpoint).expect("checkpoint");
        assert_eq!(stored.shape(VALUE_HEAD), Some(&[1, 64][..]));
        finish(&cut);
        let bytes = |r: &TrainRequest| std::fs::read(r.out.join("adapter_model.safetensors")).expect("adapter");
        assert_eq!(bytes(&whole), bytes(&cut), "{settings:?}");
        std::fs::remove_dir_all(&whole.out).expect("removed");
        std::fs::remove_dir_all(&cut.out).expect("removed");
    }
}

#[test]
fn a_head_is_drawn_from_the_seed_or_taken_from_the_start() {
    let folder = tempfile::tempdir().expect("folder");
    let ops = cpu();
    let files = files("llama");
    let head_of = |recipe: &Recipe, start| {
        let (model, _) =
            load_for_training(&ops, &files.config, files.tensors.as_ref(), recipe, start, VALUES, 32).expect("model");
        let head = model.value_head.expect("a head").weight;
        ops.read(model.parameters.tensor(head).expect("dense")).expect("read")
    };
    let mut recipe = Recipe { method: Method::Lora, ..Recipe::default() };
    let first = head_of(&recipe, None);
    assert_eq!(first, head_of(&recipe, None));
    let deviation = (first.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / first.len() as f64).sqrt();
    assert!((0.014..0.026).contains(&deviation), "initializer_range is 0.02, found {deviation}");
    recipe.train.seed += 1;
    assert_ne!(first, head_of(&recipe, None));
    // PEFT's own file.
    let start = read_peft(&golden("reward_model")).expect("adapter");
    assert_eq!(head_of(&recipe, Some(&start)), start.tensors[VALUE_HEAD].1);

    // A loss that would leave the head as it is says so.
    let mut request = request(folder.path(), "out", &["loss.name=dpo"]);
    request.adapter = Some(golden("reward_model"));
    let error = train(&request, &mut Watcher::default()).expect_err("another loss").to_string();
    assert!(error.contains("dpo") && error.contains("reward-model"), "{error}");
}

#[test]
fn a_full_model_holds_its_head() {
    for architecture in ["llama", "gpt2"] {
        let folder = tempfile::tempdir().expect("folder");
        let mut request = request(folder.path(), "out", &["method=full", "train.steps=3"]);
        request.recipe.base = base(architecture);
        let summary = finish(&request);
        assert_eq!(summary.reload_difference, 0.0);
        let written = ModelFiles::open(&request.out).expect("a model folder");
        let head = value::stored(&written.config, written.tensors.as_ref()).expect("read").expect("a head");
        assert_ne!(head, value::initial(&written.config, request.recipe.train.seed), "it was trained");
        let class = written.config.raw["architectures"][0].as_str().unwrap_or_default();
        assert!(class.ends_with("ForSequenceClassification"), "{class}");
        assert_eq!(written.config.raw["id2label"], json!({"0": "LABEL_0"}));
        // Nothing reads an untied language-model head: it stays as it is.
        if architecture == "llama" {
            let base = files(architecture);
            let read = |files: &ModelFiles| files.tensors.read_f32("lm_head.weight").expect("lm_head");
            assert_eq!(read(&written), read(&base));
        }
        // The next run starts from that head.
        let recipe = Recipe { method: Method::Full, ..Recipe::default() };
        let ops = cpu();
        let (model, _) = load_for_training(&ops, &written.config, written.tensors.as_ref(), &recipe, None, VALUES, 32)
            .expect("model");
        let weight = model.value_head.expect("a head").weight;
        assert_eq!(ops.read(model.parameters.tensor(weight).expect("dense")).expect("read"), head);
        let planned = plan(&request).expect("plan");
        assert_eq!((planned.parameters, planned.trainable_parameters), model.parameters.counts());
    }
}

/// Loss and gradient norm of ten steps from PEFT's own start
/// (`golden/make_reward_model.py`).
#[test]
fn ten_steps_are_those_of_transformers_and_peft() {
    let text = std::fs::read_to_string(golden("reward_model/curve.json")).expect("golden file");
    let curve: Value = serde_json::from_str(&text).expect("json");
    let text = std::fs::read_to_string(golden("trl/dpo-sigmoid.json")).expect("golden file");
    let pairs: Value = serde_json::from_str(&text).expect("json");
    let folder = tempfile::tempdir().expect("folder");
    let settings = [
        "train.batch_size=2",
        "train.shuffle=false",
        "train.validation_fraction=0",
        "train.warmup_steps=0",
        "optimizer.beta2=0.95",
        "checkpoint.every_steps=0",
    ];
    let mut request = request(folder.path(), "out", &settings);
    let lines: String = pairs["rows"].as_array().expect("rows").iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(&request.data, lines).expect("data");
    request.adapter = Some(golden("reward_model"));

    let ops = cpu();
    let mut model = decoder(&ops, "llama", false, None);
    adapter::attach_peft(&ops, &mut model, &read_peft(&golden("reward_model")).expect("adapter")).expect("attached");
    for (row, values) in pairs["rows"].as_array().expect("rows").iter().zip(curve["values"].as_array().expect("values"))
    {
        for (at, answer) in ["chosen_ids", "rejected_ids"].into_iter().enumerate() {
            let ids = |key: &str| serde_json::from_value::<Vec<u32>>(row[key].clone()).expect("ids");
            let batch = TokenBatch::from_documents([&[ids("prompt_ids"), ids(answer)].concat()[..]]);
            let ours = model.values(&ops, &batch, &Pass::evaluation(true)).expect("values").expect("a head")[0];
            let theirs = values[at].as_f64().expect("value");
            assert!((f64::from(ours) - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
    }

    finish(&request);
    let metrics = metrics::read(&request.out).expect("metrics");
    let steps = curve["steps"].as_array().expect("steps");
    assert_eq!((steps.len(), metrics.len()), (10, 10));
    for (line, step) in metrics.iter().zip(steps) {
        for (ours, theirs) in [
            ("loss", "loss"),
            ("grad_norm", "grad_norm"),
            ("rewards/margins", "margin"),
            ("rewards/accuracies", "accuracy"),
        ] {
            let (a, b) = (line[ours].as_f64().expect("number"), step[theirs].as_f64().expect("number"));
            assert!((a - b).abs() < 1e-3 * b.abs().max(1.0), "{ours}: {line} {step}");
        }
    }
}
