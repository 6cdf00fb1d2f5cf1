//! A frozen base whose checkpoint is bf16 stays bf16 on a GPU: the same logits
//! in half the memory.

mod common;

use common::*;
use finetuned_engine::model::batch::TokenBatch;
use finetuned_engine::model::build::{LoadOptions, load};
use finetuned_engine::model::context::Pass;
use finetuned_engine::model::decoder::Decoder;
use finetuned_formats::{FormatError, ModelFiles, StoredType, TensorInfo, TensorSource};
use finetuned_shaders::Device;

/// The golden model as a checkpoint in bf16 has it.
struct InBf16(ModelFiles);

impl TensorSource for InBf16 {
    fn names(&self) -> Vec<String> {
        self.0.tensors.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { stored: StoredType::BF16, ..self.0.tensors.info(name)? })
    }

    fn read_f32_into(&self, name: &str, out: &mut [f32]) -> Result<(), FormatError> {
        out.copy_from_slice(&self.read_f32(name)?);
        Ok(())
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        // The upper half of the bits: some number of bf16.
        let truncated = |x: f32| f32::from_bits(x.to_bits() & 0xffff_0000);
        Ok(self.0.tensors.read_f32(name)?.into_iter().map(truncated).collect())
    }
}

fn loaded(ops: &Device, source: &InBf16, trainable: bool) -> (Decoder, u64) {
    let before = ops.allocated_bytes().0;
    let options = LoadOptions { trainable, nf4: None, context: 64 };
    let model = load(ops, &source.0.config, source, &options).expect("the model loads");
    (model, ops.allocated_bytes().0 - before)
}

#[test]
fn a_frozen_checkpoint_of_bf16_stays_that_on_a_gpu() {
    let Some(device) = on_gpu() else { return };
    // Tied and untied heads, biases, GPT-2's transposed matrices.
    for architecture in ["llama", "qwen2", "gpt2"] {
        let source = InBf16(files(architecture));
        let (cpu, gpu) = (cpu(), &device.ops);
        let tokens: Vec<u32> = (0..40).map(|i| (i * 37) % 300).collect();
        let batch = TokenBatch::from_documents([&tokens[..23], &tokens[23..]]);
        let rows: Vec<u32> = (0..40).collect();
        let logits = |ops: &Device, model: &Decoder| {
            let logits = model.logits(ops, &batch, &rows, &Pass::evaluation(false)).expect("logits");
            ops.read(&logits).expect("a read")
        };
        let want = logits(&cpu, &loaded(&cpu, &source, false).0);
        let (frozen, half) = loaded(gpu, &source, false);
        let got = logits(gpu, &frozen);
        let far = got.iter().zip(&want).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
        assert!(far < device.forward, "{architecture}: logits differ by {far}");
        let (trained, whole) = loaded(gpu, &source, true);
        assert_eq!(got.len(), logits(gpu, &trained).len());
        let ratio = half as f64 / whole as f64;
        assert!(ratio < 0.7, "{architecture}: {half} bytes frozen, {whole} to be trained");
    }
}
