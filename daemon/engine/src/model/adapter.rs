//! Putting adapters on a model, from a recipe or from a PEFT folder, and
//! reading them off again in PEFT's format.

use std::collections::{BTreeMap, BTreeSet};

use finetuned_formats::{PeftAdapter, PeftConfig, TargetModules, VALUE_HEAD};
use finetuned_plugin_api::optimizer::TensorKind;
use finetuned_shaders::{Device, Weight};

use super::decoder::Decoder;
use super::linear::{Adapter, Linear};
use super::parameters::{Parameter, Parameters};
use super::streams;
use crate::error::EngineError;
use crate::recipe::{LoraRecipe, Targets, Variant};

/// PEFT's prefix of a wrapped model's parameter names.
const PREFIX: &str = "base_model.model.";

/// Adds fresh adapters: A uniform as PEFT's kaiming_uniform(√5), B zero, DoRA's
/// magnitude the row norms of W. The model computes what its base computes.
///
/// # Errors
/// A target that names no linear layer, a bad pattern, no memory.
pub fn attach_fresh(device: &Device, model: &mut Decoder, recipe: &LoraRecipe, seed: u64) -> Result<(), EngineError> {
    let modules: Vec<&str> = model.linears().map(|l| l.module.as_str()).collect();
    let config = config_of(&modules, recipe, model.config.family.parts.transposed)?;
    attach(device, model, &config, |linear, rank| {
        let bound = 1.0 / (linear.inputs as f32).sqrt();
        let a = streams::adapter(seed, linear.place).uniform_vec(rank * linear.inputs, -bound, bound);
        Ok(Factors { a, b: vec![0.0; linear.outputs * rank], magnitude: None })
    })
}

/// Adds the adapters of a PEFT folder, and its value head if it has one.
///
/// # Errors
/// A tensor that fits no layer, a target without its tensors, another shape.
pub fn attach_peft(device: &Device, model: &mut Decoder, peft: &PeftAdapter) -> Result<(), EngineError> {
    let mut used = BTreeSet::new();
    let take = |name: String, shape: &[usize], used: &mut BTreeSet<String>| -> Result<Option<Vec<f32>>, EngineError> {
        let Some((found, values)) = peft.tensors.get(&name) else { return Ok(None) };
        if found != shape {
            return Err(EngineError::Adapter(format!("tensor {name} has shape {found:?}, the model needs {shape:?}")));
        }
        used.insert(name);
        Ok(Some(values.clone()))
    };
    attach(device, model, &peft.config, |linear, rank| {
        let at = format!("{PREFIX}{}", linear.module);
        let missing =
            |what: &str| EngineError::Adapter(format!("tensor {at}.{what} is missing from the adapter's file"));
        let a = take(format!("{at}.lora_A.weight"), &[rank, linear.inputs], &mut used)?;
        let b = take(format!("{at}.lora_B.weight"), &[linear.outputs, rank], &mut used)?;
        let magnitude = take(format!("{at}.lora_magnitude_vector"), &[linear.outputs], &mut used)?;
        if peft.config.dora && magnitude.is_none() {
            return Err(missing("lora_magnitude_vector"));
        }
        Ok(Factors {
            a: a.ok_or_else(|| missing("lora_A.weight"))?,
            b: b.ok_or_else(|| missing("lora_B.weight"))?,
            magnitude,
        })
    })?;
    if let Some(score) = take(VALUE_HEAD.into(), &[1, model.config.hidden_size], &mut used)? {
        model.attach_value_head(device, VALUE_HEAD, &score)?;
    }
    if let Some(stray) = peft.tensors.keys().find(|name| !used.contains(*name)) {
        // A tensor that nothing reads would make a silently inert adapter.
        return Err(EngineError::Adapter(format!("tensor {stray} fits no layer of this model")));
    }
    Ok(())
}

/// Reads the adapters, and the value head if there is one, off the model as
/// PEFT writes them.
///
/// # Errors
/// The device failed.
pub fn extract(device: &Device, model: &Decoder, base: &str) -> Result<PeftAdapter, EngineError> {
    let mut tensors = BTreeMap::new();
    let mut targets = BTreeSet::new();
    let mut ranks: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    let mut dora = false;
    let mut rslora = false;
    let mut dropout = 0.0;
    for linear in model.linears() {
        let Some(adapter) = &linear.adapter else { continue };
        targets.insert(last_name(&linear.module).to_string());
        ranks.insert(linear.module.clone(), (adapter.rank, adapter.alpha));
        dora |= adapter.magnitude.is_some();
        rslora |= adapter.rslora;
        dropout = adapter.dropout;
        for id in [Some(adapter.a), Some(adapter.b), adapter.magnitude].into_iter().flatten() {
            let parameter = model.parameters.get(id);
            tensors
                .insert(parameter.name.clone(), (parameter.shape.clone(), device.read(model.parameters.tensor(id)?)?));
        }
    }
    if let Some(head) = model.value_head {
        let shape = model.parameters.get(head.weight).shape.clone();
        tensors.insert(VALUE_HEAD.to_string(), (shape, device.read(model.parameters.tensor(head.weight)?)?));
    }
    // The commonest rank and alpha are the configuration's; the rest are patterns.
    let mut counts: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for (rank, alpha) in ranks.values() {
        *counts.entry((*rank, alpha.to_bits())).or_default() += 1;
    }
    let (rank, alpha) = counts
        .iter()
        .max_by_key(|(_, count)| **count)
        .map(|((rank, alpha), _)| (*rank, f64::from_bits(*alpha)))
        .ok_or_else(|| EngineError::Adapter("the model carries no adapter".into()))?;
    // Patterns are regular expressions; a path's only special character is the dot.
    let escaped = |module: &str| module.replace('.', r"\.");
    let rank_pattern = ranks.iter().filter(|(_, r)| r.0 != rank).map(|(m, r)| (escaped(m), r.0)).collect();
    let alpha_pattern = ranks.iter().filter(|(_, r)| r.1 != alpha).map(|(m, r)| (escaped(m), r.1)).collect();
    // Names that stand for adapted and bare layers alike must be spelt out.
    let bare = model.linears().any(|l| l.adapter.is_none() && targets.contains(last_name(&l.module)));
    let targets: Vec<String> = if bare { ranks.keys().cloned().collect() } else { targets.into_iter().collect() };
    let config = PeftConfig {
        base_model: Some(base.to_string()),
        rank,
        alpha,
        dropout: f64::from(dropout),
        targets: TargetModules::Names(targets),
        rslora,
        dora,
        rank_pattern,
        alpha_pattern,
        fan_in_fan_out: model.config.family.parts.transposed,
        value_head: model.value_head.is_some(),
        // PEFT then wraps a model for sequence classification, and loads the head.
        task_type: Some(if model.value_head.is_some() { "SEQ_CLS" } else { "CAUSAL_LM" }.into()),
        ..PeftConfig::default()
    };
    Ok(PeftAdapter { config, tensors })
}

/// Takes every adapter and the value head off: the model is its base again.
/// Their numbers stay in the parameter list until the model is dropped.
pub fn detach(model: &mut Decoder) {
    model.value_head = None;
    for block in &mut model.blocks {
        for linear in block.linears_mut() {
            linear.adapter = None;
        }
    }
}

struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
    magnitude: Option<Vec<f32>>,
}

fn attach(
    device: &Device,
    model: &mut Decoder,
    config: &PeftConfig,
    mut factors: impl FnMut(&Linear, usize) -> Result<Factors, EngineError>,
) -> Result<(), EngineError> {
    let mut any = false;
    let Decoder { blocks, parameters, .. } = model;
    for linear in blocks.iter_mut().flat_map(|b| b.linears_mut()) {
        if !config.targets(&linear.module) {
            continue;
        }
        any = true;
        let rank = config.rank_of(&linear.module);
        let alpha = config.alpha_of(&linear.module);
        if rank == 0 {
            return Err(EngineError::Adapter(format!("rank 0 for {}; give a rank of at least 1", linear.module)));
        }
        let scale = config.scale_of(&linear.module) as f32;
        let values = factors(linear, rank)?;
        let add =
            |all: &mut Parameters, suffix: &str, kind, shape: &[usize], values: &[f32]| -> Result<_, EngineError> {
                Ok(all.push(Parameter {
                    name: format!("{PREFIX}{}.{suffix}", linear.module),
                    kind,
                    value: Weight::Dense(device.upload(shape, values)?),
                    shape: shape.to_vec(),
                    trainable: true,
                    transposed_on_disk: false,
                }))
            };
        let a = add(parameters, "lora_A.weight", TensorKind::LoraA, &[rank, linear.inputs], &values.a)?;
        let b = add(parameters, "lora_B.weight", TensorKind::LoraB, &[linear.outputs, rank], &values.b)?;
        let magnitude = if config.dora {
            let m = match values.magnitude {
                Some(m) => m,
                None => {
                    let weight = parameters.weight(linear.weight);
                    device.read(&device.dora_norm(weight, parameters.tensor(a)?, parameters.tensor(b)?, scale)?)?
                }
            };
            Some(add(parameters, "lora_magnitude_vector", TensorKind::Magnitude, &[linear.outputs], &m)?)
        } else {
            None
        };
        let (rslora, dropout) = (config.rslora, config.dropout as f32);
        linear.adapter = Some(Adapter { a, b, magnitude, rank, alpha, rslora, scale, dropout });
    }
    if any { Ok(()) } else { Err(EngineError::Adapter("its targets name no linear layer of this model".into())) }
}

fn last_name(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The layers that the recipe means; a name that means none is an error with
/// the names that exist.
fn choose(modules: &[&str], recipe: &LoraRecipe) -> Result<Vec<String>, EngineError> {
    let known: BTreeSet<&str> = modules.iter().map(|m| last_name(m)).collect();
    let wanted: Vec<String> = match &recipe.targets {
        Targets::Named(name) if name == "all-linear" => return Ok(known.iter().map(ToString::to_string).collect()),
        Targets::Named(name) => vec![name.clone()],
        Targets::List(names) => names.clone(),
    };
    for name in &wanted {
        if !modules.iter().any(|m| m == name || m.ends_with(&format!(".{name}"))) {
            let known: Vec<&str> = known.into_iter().collect();
            return Err(EngineError::Adapter(format!(
                "lora.targets: no linear layer is called `{name}`; this model has {}",
                known.join(", ")
            )));
        }
    }
    if wanted.is_empty() {
        return Err(EngineError::Adapter("lora.targets is empty; give \"all-linear\" or names of layers".into()));
    }
    Ok(wanted)
}

/// The recipe as PEFT would write it down.
fn config_of(modules: &[&str], recipe: &LoraRecipe, transposed: bool) -> Result<PeftConfig, EngineError> {
    Ok(PeftConfig {
        rank: recipe.rank,
        alpha: recipe.alpha,
        dropout: recipe.dropout,
        targets: TargetModules::Names(choose(modules, recipe)?),
        rslora: recipe.variant == Variant::Rslora,
        dora: recipe.variant == Variant::Dora,
        rank_pattern: recipe.rank_pattern.iter().map(|(k, v)| (k.clone(), *v)).collect(),
        alpha_pattern: recipe.alpha_pattern.iter().map(|(k, v)| (k.clone(), *v)).collect(),
        fan_in_fan_out: transposed,
        ..PeftConfig::default()
    })
}
