//! What the runtime holds of a device is what tensors' pages take. One test, as
//! all users of a device in a process share the runtime's memory.

#![cfg(feature = "gpu")]

use std::sync::Arc;

use finetuned_shaders::gpu;
use finetuned_shaders::{Device, Tensor};

#[test]
fn the_runtime_holds_the_pages_of_tensors_and_no_more() {
    let Some(entry) = gpu::list().into_iter().next() else {
        assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
        return;
    };
    let gpu = Arc::new(gpu::open(&entry).expect("the GPU opens"));
    let device = Device::from(gpu.clone());
    // A large tensor has a page of its own, exactly as large; small ones share.
    let large = device.zeros(&[9 << 18]).expect("memory");
    assert_eq!(gpu.memory().pages, 9 << 20);
    let lasting: Vec<Tensor> = (1..20).map(|i| device.zeros(&[i * 1001]).expect("memory")).collect();
    device.reserve(3 << 20).expect("memory");
    let step = || {
        let values: Vec<f32> = (0..200 * 300).map(|i| (i as f32).sin()).collect();
        let a = device.upload(&[200, 300], &values).expect("memory");
        let b = device.upload(&[100, 300], &values[..100 * 300]).expect("memory");
        let product = device.matmul(&a, false, &b, true, 1.0, None).expect("a product");
        let rows = device.gather_rows(&product, &[3, 1, 4, 1, 5]).expect("rows");
        device.read(&rows).expect("values");
        gpu.memory()
    };
    let first = step();
    assert_eq!(first.runtime, first.pages, "{first:?}");
    for _ in 0..4 {
        assert_eq!(step(), first);
    }
    println!("{first:?}");
    assert!((first.pages as f64) < 1.1 * (first.live + (3 << 20)) as f64, "{first:?}");
    drop((large, lasting));
    device.trim();
    let rest = gpu.memory();
    assert_eq!((rest.live, rest.pages, rest.runtime), (0, 0, 0), "all of it went back to the driver: {rest:?}");
}
