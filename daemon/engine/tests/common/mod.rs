//! What the golden tests share: reading the numbers, building batches.

#![allow(dead_code)]

pub mod runs;

use std::collections::BTreeMap;
use std::path::PathBuf;
#[cfg(feature = "gpu")]
use std::sync::Arc;

use finetuned_data::{DataKind, Example, Examples};
use finetuned_engine::model::build::{LoadOptions, load};
use finetuned_engine::model::decoder::Decoder;
use finetuned_formats::{ModelFiles, open_safetensors};
use finetuned_shaders::Device;
#[cfg(feature = "gpu")]
use finetuned_shaders::device::DeviceChoice;
#[cfg(feature = "gpu")]
use finetuned_shaders::gpu;

pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A golden model as a recipe names it.
pub fn base(architecture: &str) -> String {
    golden(architecture).display().to_string()
}

pub fn cpu() -> Device {
    Device::cpu(Some(2)).expect("threads")
}

/// A device, and how far its numbers may be from PyTorch's.
#[derive(Clone)]
pub struct TestDevice {
    pub name: String,
    pub ops: Device,
    /// Logits and log-probabilities.
    pub forward: f64,
    /// ‖a − b‖ / ‖b‖ of each gradient.
    pub gradient: f64,
    /// Losses and gradient norms of ten steps.
    pub curve: f64,
}

pub fn on_cpu() -> TestDevice {
    TestDevice { name: "cpu".into(), ops: cpu(), forward: 1e-4, gradient: 1e-3, curve: 1e-3 }
}

/// The first GPU of this machine, or what FINETUNED_TEST_DEVICE names in the
/// words of `--device` (`vulkan:0/spirv/f16`). Where FINETUNED_REQUIRE_GPU is
/// set, as it is in CI, a machine without one fails the test; elsewhere the test
/// says that it compared nothing.
#[cfg(feature = "gpu")]
pub fn on_gpu() -> Option<TestDevice> {
    let entry = match std::env::var("FINETUNED_TEST_DEVICE") {
        Ok(words) => words.parse::<DeviceChoice>().and_then(|choice| choice.find()).expect("the device is there"),
        Err(_) => gpu::list().into_iter().next(),
    };
    let Some(entry) = entry else {
        assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
        return None;
    };
    let gpu = gpu::open(&entry).expect("the GPU opens");
    // Tensor cores round operands; the curves hold all the same.
    let rounding = gpu.facts().product_rounding();
    let (forward, gradient) = (f64::max(2e-4, 16.0 * rounding), f64::max(2e-3, 32.0 * rounding));
    Some(TestDevice { name: entry.spec, ops: Arc::new(gpu).into(), forward, gradient, curve: 5e-3 })
}

/// A build without GPU code has no GPU to compare.
#[cfg(not(feature = "gpu"))]
pub fn on_gpu() -> Option<TestDevice> {
    println!("skipped: built without the feature gpu");
    None
}

pub fn tensors(path: &str) -> Tensors {
    let file = open_safetensors(&golden(path)).expect("golden file");
    let names: Vec<String> = file.names().map(str::to_string).collect();
    names
        .into_iter()
        .filter_map(|name| {
            let shape = file.shape(&name)?.to_vec();
            let values = file.read_f32(&name).ok()?;
            Some((name, (shape, values)))
        })
        .collect()
}

/// Rows of an i64 tensor `[…, T]`.
pub fn ids(path: &str, name: &str) -> Vec<Vec<i64>> {
    let file = open_safetensors(&golden(path)).expect("golden file");
    let columns = *file.shape(name).expect("tensor").last().expect("a dimension");
    file.read_i64(name).expect("ids").chunks(columns).map(<[i64]>::to_vec).collect()
}

pub fn examples(ids: &[Vec<i64>], labels: &[Vec<i64>]) -> Examples {
    let rows = ids.iter().zip(labels).enumerate().map(|(i, (ids, labels))| {
        let tokens = ids.iter().map(|t| *t as u32).collect();
        Example::plain(tokens, labels.iter().enumerate().map(|(at, l)| at > 0 && *l != -100).collect(), i + 1)
    });
    Examples { kind: DataKind::Supervised, sequence_length: 64, list: rows.collect() }
}

pub fn files(architecture: &str) -> ModelFiles {
    ModelFiles::open(&golden(architecture)).expect("model")
}

pub fn decoder(ops: &Device, architecture: &str, trainable: bool, nf4: Option<bool>) -> Decoder {
    let files = files(architecture);
    let options = LoadOptions { trainable, nf4, context: 64 };
    load(ops, &files.config, files.tensors.as_ref(), &options).expect("weights")
}

/// ‖a − b‖ / ‖b‖.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    (difference / norm.max(1e-30)).sqrt()
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}
