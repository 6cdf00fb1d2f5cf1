//! Random weights in the shape of a model.

use std::collections::BTreeMap;

use crate::model::shape::ModelShape;
use crate::model::streams;
use finetuned_formats::{FormatError, ModelConfig, RandomTensor, StoredType, TensorInfo, TensorSource};

/// Random values for every tensor of a configuration. The device that loads a matrix
/// also makes it.
pub struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
}

impl RandomWeights {
    pub fn new(config: &ModelConfig) -> RandomWeights {
        let shape = ModelShape::of(config);
        let c = config.hidden_size;
        let mut shapes = BTreeMap::new();
        for linear in &shape.linears {
            shapes.insert(format!("{}.weight", linear.module), vec![linear.outputs, linear.inputs]);
            shapes.insert(format!("{}.bias", linear.module), vec![linear.outputs]);
        }
        for i in 0..config.layers {
            for name in ["input_layernorm", "post_attention_layernorm"] {
                shapes.insert(format!("model.layers.{i}.{name}.weight"), vec![c]);
            }
        }
        shapes.insert("model.norm.weight".into(), vec![c]);
        shapes.insert("model.embed_tokens.weight".into(), vec![config.vocab_size, c]);
        shapes.insert("lm_head.weight".into(), vec![config.vocab_size, c]);
        RandomWeights { shapes }
    }
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
    use finetuned_shaders::WeightKind;

    #[test]
    fn what_a_device_makes_is_what_the_source_would_read() {
        let text = r#"{"model_type":"llama","vocab_size":256,"hidden_size":32,"num_hidden_layers":5,
            "num_attention_heads":4,"num_key_value_heads":2,"intermediate_size":64,"max_position_embeddings":64,
            "rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":true}"#;
        let json = serde_json::from_str(text).expect("json");
        let config = ModelConfig::from_json(json, std::path::Path::new("a test")).expect("a configuration");
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
