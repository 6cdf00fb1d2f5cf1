//! kill -9 at random, twenty times in one run: the adapter is the one of a run
//! that was left alone, and each dataset was trained once.

mod common;

use std::time::{Duration, Instant};

use common::{House, read, rows};
use finetuned_service::api::{self, Retry, SummaryView};
use finetuned_service::store::State;
use rustix::process::{Pid, Signal, kill_process};

const KILLS: usize = 20;

fn recipe(steps: usize) -> String {
    format!(
        "[recipe.train]\nsteps = {steps}\nbatch_size = 4\nsequence_length = 128\nvalidation_fraction = 0.2\nvalidation_every = 50\n[recipe.lora]\nrank = 2\ndropout = 0.1\n[recipe.checkpoint]\nevery_steps = 10\n"
    )
}

/// Two datasets, left alone: the bytes to expect, and the time one run takes.
fn undisturbed(steps: usize, datasets: &[(&str, String)]) -> (Vec<Vec<u8>>, Duration) {
    let mut house = House::new(&recipe(steps));
    house.start();
    let begin = Instant::now();
    let mut adapters = Vec::new();
    for (index, (name, rows)) in datasets.iter().enumerate() {
        house.drop_file(name, rows);
        let job = house.wait_for(index as i64 + 1, State::Succeeded).job;
        adapters.push(read(&job.out.join("adapter_model.safetensors")));
    }
    (adapters, begin.elapsed() / datasets.len() as u32)
}

#[test]
fn twenty_kills_change_nothing() {
    let datasets = [("a.jsonl", rows("apples", 30)), ("b.jsonl", rows("bridges", 30))];
    // As many steps as keep the killing inside the run, on this machine.
    let (_, short) = undisturbed(50, &datasets[..1]);
    let per_step = short.as_secs_f64() / 50.0;
    let steps = ((6.0 / per_step) as usize).clamp(100, 3000);
    let (expected, _) = undisturbed(steps, &datasets);

    let mut house = House::new(&recipe(steps));
    let mut random = Random(2026);
    house.start();
    for (name, rows) in &datasets {
        house.drop_file(name, rows);
    }
    let mut kills = 0;
    while kills < KILLS {
        // From in the middle of the claim to some checkpoints later.
        std::thread::sleep(Duration::from_millis(random.below(700)));
        if finished(&house, datasets.len()) {
            break;
        }
        let what = random.below(3);
        if what != 1 {
            kills += usize::from(kill_worker(&house));
        }
        if what != 0 {
            house.kill_daemon();
            kills += 1;
            if random.below(2) == 0 {
                // Its worker has lost its daemon, and may still be writing.
                std::thread::sleep(Duration::from_millis(random.below(200)));
            }
            house.start();
        }
        retry_failed(&house);
    }
    assert!(kills >= KILLS, "the run ended after {kills} kills: it is too short for this machine");
    house.wait("both jobs to succeed", || {
        retry_failed(&house);
        finished(&house, datasets.len()).then_some(())
    });

    let mut jobs = house.status().jobs;
    jobs.sort_by_key(|view| view.job.id);
    assert_eq!(jobs.len(), datasets.len(), "each dataset is one job");
    for (view, expected) in jobs.iter().zip(&expected) {
        let job = &view.job;
        assert!(read(&job.out.join("adapter_model.safetensors")) == *expected, "the adapter of {} differs", job.name);
        let successes =
            house.events(job.id).iter().filter(|row| row.kind == "state" && row.body["to"] == "succeeded").count();
        assert_eq!(successes, 1, "{} was finished once", job.name);
        let lines = String::from_utf8(read(&job.out.join("metrics.jsonl"))).unwrap();
        let done: Vec<u64> = lines
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect();
        assert_eq!(done, (0..=steps as u64).collect::<Vec<_>>(), "each step of {} is written once", job.name);
    }
    assert!(jobs.iter().map(|view| view.job.attempts).sum::<u32>() > 5, "the kills have hit workers");
}

fn finished(house: &House, datasets: usize) -> bool {
    let jobs: Vec<SummaryView> = house.status().jobs;
    jobs.len() == datasets && jobs.iter().all(|view| view.job.state == State::Succeeded)
}

/// A worker that dies leaves a failed job, which the user starts again.
fn retry_failed(house: &House) {
    for view in house.status().jobs {
        if view.job.state == State::Failed {
            let error = view.job.error.clone().unwrap_or_default();
            assert!(error.contains("signal 9"), "job {} failed by itself: {error}", view.job.id);
            house.client().ask_of(&api::RETRY, view.job.id, &(), &Retry::default()).unwrap();
        }
    }
}

fn kill_worker(house: &House) -> bool {
    let Some(active) = house.status().jobs.into_iter().find(|view| view.job.state.is_active()) else { return false };
    let lock = house.path(&format!("jobs/{}/worker.lock", active.job.id));
    let pid =
        std::fs::read_to_string(lock).ok().and_then(|text| text.trim().parse::<i32>().ok()).and_then(Pid::from_raw);
    // It may have ended by itself since.
    pid.is_some_and(|pid| is_ours(pid) && kill_process(pid, Signal::KILL).is_ok())
}

/// A process id that was used again is not ours to kill.
fn is_ours(pid: Pid) -> bool {
    let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    String::from_utf8_lossy(&line).contains("worker")
}

/// A small generator, so that a failure can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % limit
    }
}
