//! How near optimizer programs come to the speed of memory.
//!
//! Run: `cargo run --release -p finetuned-shaders --example optimizer_bandwidth [ROWS [THREADS]]`
//! (rows of 4096; a few rows lie in the caches and show the arithmetic alone).
//! Prints, for each program, the bytes that a step must move (reads of p, g and
//! states, writes of p and states) over its time, beside a plain copy's bytes
//! (read and written) over its time, on the same threads and as much memory.

use std::time::Instant;

use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::program::{Program, Rule, Scalars, StateType};
use finetuned_shaders::Device;

fn adamw(tensor: &TensorShape, kinds: [StateType; 2]) -> Result<Program, Box<dyn std::error::Error>> {
    let rule = Rule::new(tensor);
    let (p, g, lr, t) = (rule.parameter(), rule.gradient(), rule.learning_rate(), rule.step());
    let (m, v) = (rule.state("m", kinds[0]), rule.state("v", kinds[1]));
    let m1 = m.lerp(g, 0.1);
    let v1 = v * 0.999 + g * g * 0.001;
    rule.set(m, m1);
    rule.set(v, v1);
    let c1 = 1.0 - rule.constant(0.9).pow(t);
    let c2 = 1.0 - rule.constant(0.999).pow(t);
    Ok(rule.finish(p * (1.0 - lr * 0.01) - lr / c1 * (m1 / (v1.sqrt() * (1.0 / c2.sqrt()) + 1e-8)))?)
}

fn lion(tensor: &TensorShape) -> Result<Program, Box<dyn std::error::Error>> {
    let rule = Rule::new(tensor);
    let (p, g, lr) = (rule.parameter(), rule.gradient(), rule.learning_rate());
    let m = rule.state("m", StateType::F32);
    rule.set(m, m * 0.99 + g * 0.01);
    Ok(rule.finish(p * (1.0 - lr * 0.01) - lr * (m * 0.9 + g * 0.1).sign())?)
}

/// The best of a few, in seconds.
fn best(mut f: impl FnMut()) -> f64 {
    let time = |f: &mut dyn FnMut()| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    };
    (0..25).map(|_| time(&mut f)).fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let (rows, columns) = (arguments.next().transpose()?.unwrap_or(4096).max(1), 4096);
    let n = rows * columns;
    let threads = match arguments.next().transpose()? {
        Some(threads) => threads.max(1),
        None => std::thread::available_parallelism()?.get(),
    };
    let from = vec![1.0f32; n];
    let mut to = vec![0.0f32; n];
    let copy = best(|| {
        std::thread::scope(|scope| {
            for (to, from) in to.chunks_mut(n.div_ceil(threads)).zip(from.chunks(n.div_ceil(threads))) {
                scope.spawn(|| to.copy_from_slice(from));
            }
        });
    });
    let bandwidth = 8.0 * n as f64 / copy / 1e9;
    println!("copy: {bandwidth:.1} GB/s on {threads} threads");

    let tensor = TensorShape { shape: vec![rows, columns], name: "w".into(), kind: TensorKind::Matrix };
    let eight_bit = [StateType::BlockwiseU8 { signed: true }, StateType::BlockwiseU8 { signed: false }];
    let device = Device::cpu(Some(threads))?;
    for (name, program) in [
        ("lion", lion(&tensor)?),
        ("adamw", adamw(&tensor, [StateType::F32; 2])?),
        ("adamw-8bit", adamw(&tensor, eight_bit)?),
    ] {
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut parameter = device.upload(&[rows, columns], &values)?;
        let gradient = device.upload(&[rows, columns], &values)?;
        let mut states = device.program_states(&program, &parameter)?;
        let mut step = 0;
        let mut failed = None;
        let time = best(|| {
            step += 1;
            let scalars = Scalars { learning_rate: 1e-4, step };
            if let Err(error) = device.optimizer_step(&program, &mut parameter, &gradient, &mut states, &scalars) {
                failed = Some(error);
            }
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        let bytes = (12 * n + 2 * program.state_bytes()) as f64;
        let rate = bytes / time / 1e9;
        println!(
            "{name}: {:.2} ms, {rate:.1} GB/s, {:.0}% of a copy, {:.0} million elements/s",
            time * 1e3,
            100.0 * rate / bandwidth,
            n as f64 / time / 1e6
        );
    }
    Ok(())
}
