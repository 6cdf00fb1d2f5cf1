//! The checks on the CPU device, which its own tests prove, and on every GPU.

use std::sync::Arc;

use strum::IntoEnumIterator;

use super::{Check, Finding, checks};
use crate::error::Result;
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::ops::check::{Pairs, distance};
use crate::ops::{Device, Operation};
use crate::profile::Profile;

#[track_caller]
fn all_pass(name: &str, findings: &[Finding]) {
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passed()).collect();
    assert!(failed.is_empty(), "{name}: {failed:#?}");
}

#[test]
fn the_cpu_passes() {
    let cpu = Device::cpu(Some(2)).unwrap();
    all_pass("cpu", &checks().map(|check| check.run(&cpu)).collect::<Vec<_>>());
}

#[cfg(feature = "gpu")]
#[test]
fn every_gpu_of_this_machine_passes() {
    let found = gpu::list();
    if found.is_empty() {
        assert!(std::env::var_os("FINETUNED_REQUIRE_GPU").is_none(), "no GPU was found");
        println!("skipped: this machine has no GPU and no software driver (mesa-vulkan-drivers has one)");
    }
    for entry in &found {
        let device = Device::from(Arc::new(gpu::open(entry).unwrap()));
        let findings: Vec<Finding> = checks()
            .map(|check| {
                let start = std::time::Instant::now();
                let finding = check.run(&device);
                println!(
                    "{:24} {:9.1e} {:9.1e} {:?}",
                    finding.operation,
                    finding.worst,
                    finding.tolerance,
                    start.elapsed()
                );
                finding
            })
            .collect();
        all_pass(&entry.spec, &findings);
    }
}

/// A check of an operation that allows a millionth.
fn rotary(run: fn(&Device) -> Result<Pairs>) -> Check {
    Check { operation: "rotary", tolerance: 1e-6, products: false, run }
}

/// An operation of the list that no check calls is one that nobody compares.
#[test]
fn every_operation_is_called_by_a_check() {
    let profile = Arc::<Profile>::default();
    let device = Device::cpu(Some(2)).unwrap().timed_by(profile.clone());
    all_pass("cpu", &checks().map(|check| check.run(&device)).collect::<Vec<_>>());
    let called: Vec<&str> = profile.take().iter().map(|timing| timing.operation).collect();
    // Lists of indices are read by kernels alone, never by the host.
    let read_back = Operation::iter().filter(|operation| *operation != Operation::UploadU32);
    let unchecked: Vec<&str> = read_back.map(Operation::name).filter(|name| !called.contains(name)).collect();
    assert!(unchecked.is_empty(), "no check calls {unchecked:?}");
}

#[test]
fn operations_are_checked_once() {
    let mut names: Vec<&str> = checks().map(|check| check.operation).collect();
    assert!(names.len() >= 31, "a folder's checks are missing from the list: {names:?}");
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn a_wrong_result_does_not_pass() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let off = rotary(|_| Ok(vec![(vec![1.0, 2.001], vec![1.0, 2.0])]));
    assert!(!off.run(&cpu).passed());
    let nan = rotary(|_| Ok(vec![(vec![f32::NAN], vec![1.0])]));
    assert!(!nan.run(&cpu).passed());
    assert_eq!(distance(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    assert_eq!(distance(&[f32::NAN], &[f32::NAN]), 0.0);
    let refused = rotary(|ops| ops.upload(&[2], &[1.0]).map(|_| Vec::new()));
    let finding = refused.run(&cpu);
    assert!(finding.error.is_some() && !finding.passed());
}
