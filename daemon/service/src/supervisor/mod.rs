//! Gives each job a worker process, in the order of their claims, and carries
//! out what the user asks. The daemon itself never opens a model.

mod attend;
pub mod protocol;
mod verdict;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::inbox::{Claims, receipt};
use crate::lock::lock;
use crate::plugins::Finder;
use crate::store::{Job, State, Store};

use attend::{Setup, attend};
use protocol::Ask;

/// The answer to a wish about a job.
pub type Answer = oneshot::Sender<anyhow::Result<Job>>;

/// What the supervisor is told.
pub enum Command {
    /// There may be a job to start.
    Wake,
    Pause(i64, Answer),
    Resume(i64, Answer),
    Cancel(i64, Answer),
    Retry {
        id: i64,
        fresh: bool,
        accept_plugin_change: bool,
        answer: Answer,
    },
    /// Workers that start from now on use it.
    Configure(Arc<Config>),
    /// Checkpoint every worker, then return from [`Supervisor::run`]. The second
    /// time: kill them.
    Shutdown,
}

pub struct Supervisor {
    config: Arc<Config>,
    store: Arc<Mutex<Store>>,
    news: watch::Sender<u64>,
    program: PathBuf,
    /// Wakes the inbox when a job has ended, for `after = "move"`.
    ended: Box<dyn Fn() + Send>,
    running: HashMap<i64, mpsc::Sender<Ask>>,
    workers: JoinSet<(i64, State, String)>,
    stopping: bool,
}

impl Supervisor {
    pub fn new(
        config: Arc<Config>,
        store: Arc<Mutex<Store>>,
        news: watch::Sender<u64>,
        program: PathBuf,
        ended: Box<dyn Fn() + Send>,
    ) -> Supervisor {
        Supervisor {
            config,
            store,
            news,
            program,
            ended,
            running: HashMap::new(),
            workers: JoinSet::new(),
            stopping: false,
        }
    }

    /// Runs until a shutdown has stopped every worker.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.start_workers();
            if self.stopping && self.running.is_empty() {
                return;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => self.shut_down().await,
                },
                Some(ended) = self.workers.join_next() => match ended {
                    Ok((id, state, why)) => self.ended(id, state, &why),
                    Err(error) => self.lost(&error),
                },
            }
        }
    }

    fn start_workers(&mut self) {
        while !self.stopping && self.running.len() < self.config.workers.parallel {
            let job = {
                let mut store = lock(&self.store);
                let next = store.next_queued();
                match next.and_then(|next| {
                    next.map(|job| store.transition(job.id, State::Preparing, "a worker starts")).transpose()
                }) {
                    Ok(Some(job)) => {
                        receipt::rewrite(&store, &job);
                        job
                    }
                    Ok(None) => return,
                    Err(error) => return tracing::error!("the next job cannot be started: {error:#}"),
                }
            };
            tracing::info!(job = job.id, "job {} ({}) starts", job.id, job.name);
            self.news.send_modify(|count| *count += 1);
            let (sender, asks) = mpsc::channel(8);
            self.running.insert(job.id, sender);
            let setup = Setup {
                config: self.config.clone(),
                store: self.store.clone(),
                news: self.news.clone(),
                program: self.program.clone(),
            };
            self.workers.spawn(async move {
                let id = job.id;
                let (state, why) = attend(setup, job, asks).await;
                (id, state, why)
            });
        }
    }

    fn ended(&mut self, id: i64, state: State, why: &str) {
        self.running.remove(&id);
        match state {
            State::Failed => tracing::error!(job = id, "job {id} failed: {why}"),
            _ => tracing::info!(job = id, "job {id} is {state}: {why}"),
        }
        if let Err(error) = self.move_to(id, state, why) {
            tracing::error!(job = id, "job {id} could not become {state}: {error:#}");
        }
        (self.ended)();
    }

    /// The task that attended to a worker panicked. Its job cannot be known from
    /// the error, so every job that has lost its attendant fails.
    fn lost(&mut self, error: &tokio::task::JoinError) {
        let lost: Vec<i64> = self.running.iter().filter(|(_, asks)| asks.is_closed()).map(|(id, _)| *id).collect();
        for id in lost {
            self.ended(id, State::Failed, &format!("an error of the daemon: {error}"));
        }
    }

    fn move_to(&self, id: i64, state: State, why: &str) -> anyhow::Result<Job> {
        let mut store = lock(&self.store);
        let job = store.transition(id, state, why)?;
        receipt::rewrite(&store, &job);
        drop(store);
        self.news.send_modify(|count| *count += 1);
        Ok(job)
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Wake => {}
            Command::Configure(config) => self.config = config,
            Command::Shutdown => self.shut_down().await,
            Command::Pause(id, answer) => {
                let _ = answer.send(self.stop(id, Ask::Pause, State::Paused, "paused by the user").await);
            }
            Command::Cancel(id, answer) => {
                let _ = answer.send(self.stop(id, Ask::Cancel, State::Cancelled, "cancelled by the user").await);
            }
            Command::Resume(id, answer) => {
                let _ = answer.send(self.resume(id));
            }
            Command::Retry { id, fresh, accept_plugin_change, answer } => {
                // Hashes files, and may wait for a child that loads a plugin.
                let job = tokio::task::block_in_place(|| self.retry(id, fresh, accept_plugin_change));
                let _ = answer.send(job);
            }
        }
    }

    async fn shut_down(&mut self) {
        self.stopping = true;
        for asks in self.running.values() {
            let _ = asks.send(Ask::Stop).await;
        }
    }

    async fn stop(&mut self, id: i64, ask: Ask, state: State, why: &str) -> anyhow::Result<Job> {
        let job = self.job(id)?;
        if let Some(asks) = self.running.get(&id) {
            asks.send(ask).await.context("the worker has just ended")?;
            return Ok(job);
        }
        anyhow::ensure!(job.state.may_become(state), "job {id} is {}; it cannot be {state}", job.state);
        self.move_to(id, state, why)
    }

    fn resume(&mut self, id: i64) -> anyhow::Result<Job> {
        let job = self.job(id)?;
        anyhow::ensure!(job.state == State::Paused, "job {id} is {}, not paused", job.state);
        self.move_to(id, State::Queued, "resumed by the user")
    }

    fn retry(&mut self, id: i64, fresh: bool, accept_plugin_change: bool) -> anyhow::Result<Job> {
        let job = self.job(id)?;
        anyhow::ensure!(!self.running.contains_key(&id), "job {id} has a worker: cancel it first");
        let changed = Claims::of(&self.config).reclaim(&mut lock(&self.store), id)?;
        if let Some(other) = changed {
            let store = lock(&self.store);
            let job = store.job(other)?.context("the job is gone")?;
            receipt::rewrite(&store, &job);
            return Ok(job);
        }
        anyhow::ensure!(
            job.state != State::Succeeded,
            "job {id} has succeeded, and neither its data nor its recipe has changed since; change the recipe, or drop other data"
        );
        anyhow::ensure!(job.state.may_become(State::Queued), "job {id} is {}: there is nothing to retry", job.state);
        // The plugins that are there now, not those of the failed attempt.
        let crashes = lock(&self.store).plugin_crashes()?;
        let plugins = Finder::of(&self.config).resolve(&job.recipe, &crashes)?;
        {
            let mut store = lock(&self.store);
            store.set_plugins(id, &plugins)?;
            store.set_accept_plugin_change(id, accept_plugin_change)?;
            if fresh {
                store.set_fresh(id, true)?;
            }
        }
        self.move_to(id, State::Queued, if fresh { "retried from the start" } else { "retried" })
    }

    fn job(&self, id: i64) -> anyhow::Result<Job> {
        lock(&self.store).job(id)?.with_context(|| format!("there is no job {id}"))
    }
}
