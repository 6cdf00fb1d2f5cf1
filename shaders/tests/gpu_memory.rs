//! Tensors that share pages of device memory: each sees its own bytes alone, and
//! what the device gave stays near what was asked for.

#![cfg(feature = "gpu")]

use std::sync::Arc;

use finetuned_shaders::gpu::{self, Gpu};
use finetuned_shaders::{Device, Tensor, TensorError};

fn open() -> Option<(Arc<Gpu>, Device)> {
    let Some(entry) = gpu::list().into_iter().next() else {
        assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
        return None;
    };
    let gpu = Arc::new(gpu::open(&entry).expect("the GPU opens"));
    Some((gpu.clone(), gpu.into()))
}

fn counted(device: &Device, elements: usize, from: usize) -> Tensor {
    let values: Vec<f32> = (from..from + elements).map(|x| x as f32).collect();
    device.upload(&[elements], &values).expect("memory")
}

fn sum(from: usize, to: usize) -> Vec<f32> {
    (from..to).map(|x| x as f32).collect()
}

/// Neighbours of awkward lengths in one page: uploads, kernels and reads touch
/// their own bytes alone.
fn neighbours(device: &Device) {
    let lengths = [1, 63, 64, 65, 1000, 3, 257];
    let mut tensors: Vec<Tensor> =
        lengths.iter().enumerate().map(|(i, length)| counted(device, *length, 100 * i)).collect();
    let middle = tensors.remove(3);
    // A kernel that reads one region of the page and writes another.
    let mut written = device.copy(&middle).expect("memory");
    device.add_scaled(&mut written, &middle, 2.0).expect("a kernel");
    let tripled: Vec<f32> = sum(300, 365).iter().map(|x| 3.0 * x).collect();
    assert_eq!(device.read(&written).expect("values"), tripled);
    // A region that is given back is taken by what comes next, while the kernels
    // that read it may still be queued.
    drop(middle);
    let mut next = device.zeros(&[65]).expect("memory");
    device.write(&mut next, &sum(7, 72)).expect("a write");
    assert_eq!(device.read(&written).expect("values"), tripled);
    assert_eq!(device.read(&next).expect("values"), sum(7, 72));
    for (i, tensor) in [0, 1, 2, 4, 5, 6].iter().zip(&tensors) {
        assert_eq!(device.read(tensor).expect("values"), sum(100 * i, 100 * i + lengths[*i]), "tensor {i}");
    }
    let halves = device.upload_bf16(&[3], &[1.0, 2.0, 3.0]).expect("memory");
    assert_eq!(device.read(&halves).expect("values"), [1.0, 2.0, 3.0]);
}

#[test]
fn tensors_of_one_page_do_not_touch_each_other() {
    let Some((gpu, device)) = open() else { return };
    neighbours(&device);
    let before = gpu.memory();
    assert_eq!(before.live, 0);
    assert!(before.requests <= 2, "they share pages: {before:?}");
    device.reserve(1 << 20).expect("memory");
    neighbours(&device);
    let after = gpu.memory();
    assert_eq!((after.requests, after.reserved), (before.requests + 1, 1 << 20), "all lay in what was reserved");
}

#[test]
fn the_same_product_has_the_same_bits_wherever_its_matrices_lie() {
    let Some((_, device)) = open() else { return };
    let product = |aside: usize| {
        let aside = device.zeros(&[aside]).expect("memory");
        let values = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<f32>>();
        let a = device.upload(&[33, 70], &values(33 * 70)).expect("memory");
        let b = device.upload(&[41, 70], &values(41 * 70)).expect("memory");
        let into = device.upload(&[33, 41], &values(33 * 41)).expect("memory");
        let c = device.matmul(&a, false, &b, true, 0.5, Some(into)).expect("a product");
        drop(aside);
        device.read(&c).expect("values").iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    };
    let want = product(1);
    assert_eq!(product(999), want);
    device.reserve(1 << 20).expect("memory");
    assert_eq!(product(1), want);
    assert_eq!(product(12_345), want);
}

#[test]
fn what_was_reserved_serves_every_step_and_is_given_back_by_trim() {
    let Some((gpu, device)) = open() else { return };
    let kept = device.zeros(&[1000]).expect("memory");
    device.reserve(1 << 20).expect("memory");
    let step = || {
        let tensors: Vec<Tensor> = (1..40).map(|i| device.zeros(&[i * 97]).expect("memory")).collect();
        drop(tensors.into_iter().step_by(2).collect::<Vec<_>>());
        gpu.memory()
    };
    let first = step();
    for _ in 0..3 {
        let next = step();
        assert_eq!((next.pages, next.requests, next.live), (first.pages, first.requests, first.live));
    }
    // More than was reserved: the arena grows, and gives all of it back.
    let large = device.zeros(&[1 << 20]).expect("memory");
    let grown = gpu.memory();
    assert!(grown.requests > first.requests && grown.reserved >= 5 << 20, "{grown:?}");
    drop(large);
    device.trim();
    let rest = gpu.memory();
    assert_eq!((rest.live, rest.reserved), (4000, 0), "{rest:?}");
    assert!(rest.pages > 0, "what is kept is there");
    assert_eq!(device.read(&kept).expect("values"), vec![0.0; 1000]);
    // A reservation that was given back comes back where it is asked for.
    device.reserve(1 << 20).expect("memory");
    assert_eq!(gpu.memory().reserved, 1 << 20);
}

#[test]
fn what_goes_beyond_the_limit_or_the_device_is_refused_and_changes_nothing() {
    let Some((gpu, device)) = open() else { return };
    let kept = device.zeros(&[1000]).expect("memory");
    gpu.limit_memory(1 << 20);
    let refused = |error: Option<TensorError>, op: &str| match error {
        Some(TensorError::Memory { op: found, bytes, .. }) => {
            assert_eq!(found, op);
            bytes
        }
        other => panic!("{op}: {other:?}"),
    };
    assert_eq!(refused(device.reserve(2 << 20).err(), "reserve"), 2 << 20);
    assert_eq!(refused(device.zeros(&[1 << 19]).err(), "zeros"), 2 << 20);
    assert_eq!(gpu.memory().live, 4000);
    device.reserve(1 << 19).expect("half of the limit");
    assert_eq!(gpu.memory().reserved, 1 << 19);
    // A whole step's worth fits, a byte of the budget more does not.
    let most = device.zeros(&[1 << 17]).expect("memory");
    refused(device.zeros(&[1 << 18]).err(), "zeros");
    drop(most);
    // Pages that would fit before one that does not are given back too.
    gpu.limit_memory(300 << 20);
    assert_eq!(refused(device.reserve(512 << 20).err(), "reserve"), 512 << 20);
    assert_eq!(gpu.memory().reserved, 0);
    device.reserve(1 << 19).expect("room");
    gpu.limit_memory(0);
    // No device has this much.
    refused(device.zeros(&[1 << 40]).err(), "zeros");
    device.zeros(&[1 << 18]).expect("without the limit");
    assert_eq!(device.read(&kept).expect("values"), vec![0.0; 1000]);
}
