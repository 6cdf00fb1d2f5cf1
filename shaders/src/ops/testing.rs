//! What the tests of the operations share: random inputs, runs on
//! devices of one, two and three threads that must agree to the bit, and
//! finite differences.

#[cfg(feature = "gpu")]
use std::sync::Arc;

use crate::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::gpu::{self, Gpu};
use crate::ops::Device;
use crate::ops::device::Backend;
use crate::random::Key;
use crate::tensor::Tensor;

/// Every value of `got` is near that of `want`: |got − want| ≤ tolerance ·
/// (|want| + rms(want)). Sums of n terms in f32 differ by about √n · 6e-8.
#[track_caller]
pub(crate) fn assert_near(tolerance: f32, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "number of values");
    let rms = (want.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let bound = f64::from(tolerance) * (f64::from(w.abs()) + rms) + 1e-30;
        let error = (f64::from(*g) - f64::from(*w)).abs();
        assert!(error <= bound, "value {i} is {g}, expected {w}: {error:e} is more than {bound:e}");
    }
}

/// Uniform numbers in [−1, 1) of a stream of their own.
pub(crate) fn random(place: u32, len: usize) -> Vec<f32> {
    Key::new(11, 0, place).uniform_vec(len, -1.0, 1.0)
}

/// The first GPU of this machine. Where there is none, the test fails if
/// `FINETUNED_REQUIRE_GPU` is set, and else says that it was skipped.
#[cfg(feature = "gpu")]
pub(crate) fn gpu_for_test() -> Option<Device> {
    let Some(entry) = gpu::list().into_iter().next() else {
        assert!(
            std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(),
            "FINETUNED_REQUIRE_GPU is set, and there is no GPU"
        );
        println!("skipped: this machine has no GPU");
        return None;
    };
    Some(Device::from(Arc::new(gpu::open(&entry).expect("a GPU that is listed opens"))))
}

/// What is behind a device on a GPU.
#[cfg(feature = "gpu")]
#[track_caller]
pub(crate) fn gpu_of(device: &Device) -> &Gpu {
    match device.backend() {
        Backend::Gpu(gpu) => gpu,
        _ => panic!("a device on a GPU"),
    }
}

/// What is behind a device of the CPU.
#[track_caller]
pub(crate) fn cpu_of(device: &Device) -> &Cpu {
    match device.backend() {
        Backend::Cpu(cpu) => cpu,
        _ => panic!("a device of the CPU"),
    }
}

pub(crate) fn upload(cpu: &Device, shape: &[usize], values: &[f32]) -> Tensor {
    cpu.upload(shape, values).expect("an upload")
}

pub(crate) fn read(cpu: &Device, x: &Tensor) -> Vec<f32> {
    cpu.read(x).expect("a read")
}

/// The same bits; names the first place that differs.
#[track_caller]
pub(crate) fn assert_bits(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "number of values");
    let differs = got.iter().zip(want).position(|(g, w)| g.to_bits() != w.to_bits());
    if let Some(i) = differs {
        let count = got.iter().zip(want).filter(|(g, w)| g.to_bits() != w.to_bits()).count();
        panic!("{count} of {} differ; value {i} is {:e}, expected {:e}", got.len(), got[i], want[i]);
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs `work` on devices of one, two and three threads, on the first twice:
/// all must give the same bits, and they are given back.
#[track_caller]
pub(crate) fn on_each(work: impl Fn(&Device) -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let one = Device::cpu(Some(1)).expect("a device");
    let first = work(&one);
    let again = work(&one);
    assert!(first.iter().zip(&again).all(|(a, b)| bits(a) == bits(b)), "two runs differ");
    for threads in [2, 3] {
        let device = Device::cpu(Some(threads)).expect("a device");
        let other = work(&device);
        assert!(
            first.iter().zip(&other).all(|(a, b)| bits(a) == bits(b)),
            "{threads} threads give other bits than one"
        );
    }
    first
}

/// d f / d x[i] by central differences at about `count` places of x, against
/// `gradient`.
#[track_caller]
pub(crate) fn assert_gradient(
    name: &str,
    x: &[f32],
    gradient: &[f32],
    count: usize,
    step: f32,
    tolerance: f64,
    f: impl Fn(&[f32]) -> f64,
) {
    let rms = (gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>() / x.len() as f64).sqrt();
    assert!(rms > 0.0, "{name}: the gradient is zero everywhere");
    let mut moved = x.to_vec();
    for i in (0..x.len()).step_by((x.len() / count).max(1)) {
        let (up, down) = (x[i] + step, x[i] - step);
        moved[i] = up;
        let above = f(&moved);
        moved[i] = down;
        let below = f(&moved);
        moved[i] = x[i];
        let slope = (above - below) / (f64::from(up) - f64::from(down));
        let error = (slope - f64::from(gradient[i])).abs();
        assert!(
            error <= tolerance * (slope.abs() + rms),
            "{name}: d/dx[{i}] is {}, by differences {slope}",
            gradient[i]
        );
    }
}

/// Σ a ⊙ b in f64: a scalar loss whose derivative by a is b.
pub(crate) fn inner(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
