//! The checks on the CPU device, which its own tests prove, and on every GPU.

use super::{Check, Finding, checks, distance};
use crate::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::gpu;

#[track_caller]
fn all_pass(name: &str, findings: &[Finding]) {
    let failed: Vec<&Finding> = findings.iter().filter(|finding| !finding.passed()).collect();
    assert!(failed.is_empty(), "{name}: {failed:#?}");
}

#[test]
fn the_cpu_passes() {
    let cpu = Cpu::new(Some(2)).unwrap();
    all_pass("cpu", &checks().iter().map(|check| check.run(cpu.as_ref())).collect::<Vec<_>>());
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
        let device = gpu::open(entry).unwrap();
        let findings: Vec<Finding> = checks()
            .iter()
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

#[test]
fn a_wrong_result_does_not_pass() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let off = Check { operation: "rotary", run: |_| Ok(vec![(vec![1.0, 2.001], vec![1.0, 2.0])]) };
    assert!(!off.run(cpu.as_ref()).passed());
    let nan = Check { operation: "rotary", run: |_| Ok(vec![(vec![f32::NAN], vec![1.0])]) };
    assert!(!nan.run(cpu.as_ref()).passed());
    assert_eq!(distance(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    assert_eq!(distance(&[f32::NAN], &[f32::NAN]), 0.0);
    let refused = Check { operation: "rotary", run: |ops| ops.upload(&[2], &[1.0]).map(|_| Vec::new()) };
    let finding = refused.run(cpu.as_ref());
    assert!(finding.error.is_some() && !finding.passed());
}
