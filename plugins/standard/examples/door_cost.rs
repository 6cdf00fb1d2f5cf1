//! What the dynamic door costs a step.
//!
//! Run: `cargo build --release -p finetuned-standard --examples`, then
//! `cargo run --release -p finetuned-standard --example door_cost`.
//! Prints the time of one call, linked in and through the door, for a
//! micro-batch of this many tokens; a step of a small model takes a second or
//! so for as many.

use std::time::Instant;

use finetuned_plugin_api::loss::{Gradients, Loss, OwnedBatch, Sequence, Totals};
use finetuned_plugin_api::registry::Registry;

fn batch(tokens: usize) -> OwnedBatch {
    let sequences: Vec<Sequence> =
        (0..tokens / 64).map(|i| Sequence { tokens: 64 * i..64 * (i + 1), ..Sequence::default() }).collect();
    let (weight, completion) = (vec![1.0; tokens], vec![true; tokens]);
    let mut batch = OwnedBatch {
        token: vec![1; tokens],
        totals: Totals::of(&sequences, &weight, &completion),
        weight,
        completion,
        sequences,
        ..OwnedBatch::default()
    };
    *batch.logp_mut() = (0..tokens).map(|i| -1.0 - (i as f32).sin()).collect();
    batch
}

fn microseconds(loss: &dyn Loss, batch: &OwnedBatch) -> Result<f64, Box<dyn std::error::Error>> {
    let mut out = Gradients::default();
    let mut best = f64::INFINITY;
    for _ in 0..200 {
        let start = Instant::now();
        loss.evaluate(&batch.view(), &mut out)?;
        best = best.min(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(best)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = format!("{}standard_door{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = std::env::current_exe()?.with_file_name(name);
    let (inside, mut outside) = (finetuned_standard::registry()?, Registry::default());
    for entry in finetuned_plugin_api::abi::load(&library, "")? {
        outside.add(entry)?;
    }
    for tokens in [2048, 16384] {
        let batch = batch(tokens);
        for name in ["cross-entropy", "focal"] {
            let (a, b) = (inside.loss(name, &Default::default())?, outside.loss(name, &Default::default())?);
            let (a, b) = (microseconds(a.as_ref(), &batch)?, microseconds(b.as_ref(), &batch)?);
            println!("{name}, {tokens} tokens: {a:.1} µs linked in, {b:.1} µs through the door");
        }
    }
    Ok(())
}
