//! What status costs with ten and with ten thousand jobs, and the ratio of the two.
//!
//! `cargo run --example status_cost`; the second database takes a while to fill,
//! because every claim is synced to the disk.

use std::time::Instant;

use finetuned_engine::Recipe;
use finetuned_service::error::Result;
use finetuned_service::store::{NewJob, Store};

const ASKED: u32 = 300;
const SHOWN: usize = 10;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let few = seconds(&filled(&folder.path().join("few.db"), 10)?)?;
    let many = seconds(&filled(&folder.path().join("many.db"), 10_000)?)?;
    println!("10 jobs      {:>8.1} microseconds", 1e6 * few);
    println!("10 000 jobs  {:>8.1} microseconds", 1e6 * many);
    println!("ratio        {:>8.2}", many / few);
    Ok(())
}

/// A database with `count` jobs.
fn filled(path: &std::path::Path, count: usize) -> Result<Store> {
    let mut store = Store::open(path)?;
    for number in 0..count {
        store.claim(&NewJob {
            key: number.to_string(),
            name: format!("dataset {number}"),
            data: "/d/data.jsonl".into(),
            validation: None,
            data_sha256: "00".into(),
            recipe: Recipe::default(),
            adapter: None,
            plugins: Vec::new(),
            outputs: "/out".into(),
        })?;
    }
    Ok(store)
}

/// Mean time of what `GET /status` reads, and turns into JSON.
fn seconds(store: &Store) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..ASKED {
        let answer = (store.counts()?, store.overview(SHOWN)?);
        std::hint::black_box(serde_json::to_string(&answer)?);
    }
    Ok(begin.elapsed().as_secs_f64() / f64::from(ASKED))
}
