//! Random weights in the shape of a model.

use std::collections::BTreeMap;

use crate::model::streams;
use finetuned_formats::families::{MlpInput, NormKind, Parts, Projection, QkNormOver};
use finetuned_formats::{FormatError, ModelConfig, RandomTensor, StoredType, TensorInfo, TensorSource};

/// Random values for every tensor of a configuration. The device that loads a matrix
/// also makes it.
pub struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
}

impl RandomWeights {
    /// The tensors that the parts of the configuration's family have, each linear
    /// layer with a bias, whether the configuration asks for it or not.
    pub fn new(config: &ModelConfig) -> RandomWeights {
        let parts = &config.family.parts;
        let c = config.hidden_size;
        let mut shapes = BTreeMap::new();
        shapes.insert(parts.embedding.to_string(), vec![config.vocab_size, c]);
        shapes.insert(parts.head.to_string(), vec![config.vocab_size, c]);
        if let Some(name) = parts.position_embedding {
            shapes.insert(name.to_string(), vec![config.max_positions, c]);
        }
        let mut norms = vec![(parts.final_norm.to_string(), c)];
        for i in 0..config.layers {
            let at = |name: &str| format!("{}.{i}.{name}", parts.layers);
            norms.extend(layer_norms(parts, config).into_iter().map(|(name, width)| (at(name), width)));
            for (name, inputs, outputs) in layer_linears(parts, config) {
                let shape = if parts.transposed { vec![inputs, outputs] } else { vec![outputs, inputs] };
                shapes.insert(format!("{}.weight", at(name)), shape);
                shapes.insert(format!("{}.bias", at(name)), vec![outputs]);
            }
        }
        for (module, width) in norms {
            if parts.norm == NormKind::Layer {
                shapes.insert(format!("{module}.bias"), vec![width]);
            }
            shapes.insert(format!("{module}.weight"), vec![width]);
        }
        RandomWeights { shapes }
    }
}

/// Names and widths of a layer's norms.
fn layer_norms(parts: &Parts, config: &ModelConfig) -> Vec<(&'static str, usize)> {
    let stream = [parts.norm_attention, parts.post_attention, parts.norm_mlp, parts.post_mlp];
    let mut norms: Vec<_> = stream.into_iter().flatten().map(|name| (name, config.hidden_size)).collect();
    if let Some(norm) = &parts.qk_norm {
        let d = config.head_dim;
        let (query, key) = match norm.over {
            QkNormOver::Head => (d, d),
            QkNormOver::Token => (config.heads * d, config.kv_heads * d),
        };
        norms.extend([(norm.query, query), (norm.key, key)]);
    }
    norms
}

/// Names, inputs and outputs of a layer's linear layers.
fn layer_linears(parts: &Parts, config: &ModelConfig) -> Vec<(&'static str, usize, usize)> {
    let (c, f) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut linears = match parts.projection {
        Projection::Split { query, key, value } => vec![(query, c, q), (key, c, kv), (value, c, kv)],
        Projection::Fused(name) => vec![(name, c, q + 2 * kv)],
    };
    linears.push((parts.attention_output, q, c));
    match parts.mlp_input {
        MlpInput::Gated { gate, up } => linears.extend([(gate, c, f), (up, c, f)]),
        MlpInput::FusedGated(name) => linears.push((name, c, 2 * f)),
        MlpInput::Plain(name) => linears.push((name, c, f)),
    }
    linears.push((parts.mlp_output, f, c));
    linears
}

impl TensorSource for RandomWeights {
    fn names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { shape: self.shapes.get(name)?.clone(), stored: StoredType::BF16 })
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        out.copy_from_slice(&self.read_f32(name)?);
        Ok(())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        let shape = self
            .shapes
            .get(name)
            .ok_or_else(|| FormatError::NoSuchTensor { path: "random weights".into(), name: name.to_string() })?;
        let elements = shape.iter().product();
        Ok(match self.random(name) {
            Some(random) => streams::made_up(&random).symmetric_vec(elements, random.scale),
            // Norms and biases.
            None => vec![1.0; elements],
        })
    }

    fn random(&self, name: &str) -> Option<RandomTensor> {
        let matrix = self.shapes.get(name)?.len() == 2;
        let place = self.shapes.keys().position(|known| known == name)? as u32;
        // About the size of a trained model's weights.
        matrix.then_some(RandomTensor { seed: 3, place, scale: 0.035 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::{LoadOptions, load};
    use finetuned_formats::FAMILIES;
    use finetuned_shaders::WeightKind;
    use std::path::Path;

    #[test]
    fn the_decoder_of_every_family_finds_the_tensors_that_it_asks_for() {
        let device = finetuned_shaders::Device::cpu(Some(2)).expect("a device");
        let options = LoadOptions { trainable: true, nf4: None, context: 16 };
        for family in FAMILIES {
            let json = serde_json::json!({
                "model_type": family.model_type, "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 3, "eos_token_id": 2,
                "bos_token_id": 1,
            });
            let config = ModelConfig::from_json(json, Path::new(family.model_type)).expect("a configuration");
            let model = load(&device, &config, &RandomWeights::new(&config), &options);
            assert!(model.is_ok(), "{}: {:?}", family.model_type, model.err());
        }
    }

    #[test]
    fn what_a_device_makes_is_what_the_source_would_read() {
        let text = r#"{"model_type":"llama","vocab_size":256,"hidden_size":32,"num_hidden_layers":5,
            "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":64,"max_position_embeddings":64,
            "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#;
        let json = serde_json::from_str(text).expect("json");
        let config = ModelConfig::from_json(json, Path::new("a test")).expect("a configuration");
        let source = RandomWeights::new(&config);
        let name = "model.layers.3.self_attn.k_proj.weight";
        let shape = source.info(name).expect("a tensor").shape;
        let random = source.random(name).expect("a matrix is random");
        let key = streams::made_up(&random);
        let ops = finetuned_shaders::Device::cpu(Some(2)).expect("a device");
        let weight = ops.random_weight(&shape, random.scale, key, WeightKind::F32).expect("a weight");
        assert!(ops.read_weight(&weight).expect("its values") == source.read_f32(name).expect("its values"));
        // No two tensors are alike; norms are ones; other names are refused.
        let other = source.random("model.layers.4.self_attn.k_proj.weight").expect("a matrix is random");
        assert!(other.place != random.place);
        assert!(source.random("model.norm.weight").is_none());
        assert!(source.read_f32("model.norm.weight").expect("a norm").iter().all(|x| *x == 1.0));
        assert!(source.read_f32("model.layers.99.mlp.up_proj.weight").is_err());
    }
}
