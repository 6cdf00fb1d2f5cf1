//! Gives each job a worker process, in the order of their claims, and carries
//! out what the user asks. The daemon itself never opens a model.

mod attend;
mod verdict;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::inbox::Receipts;
use crate::protocol::Ask;
use crate::store::{Again, Change, Job, State, StoreHandle};

use attend::{Setup, attend};

/// The answer to a wish about a job.
pub type Answer = oneshot::Sender<Result<Job>>;

/// What the supervisor is told. Each is obeyed at once: whoever sends it has read the
/// files and asked the children that it takes.
pub enum Command {
    /// There may be a job to start.
    Wake,
    /// Stops a job at a checkpoint.
    Pause(i64, Answer),
    /// Lets a paused job wait again.
    Resume(i64, Answer),
    /// Ends a job for good.
    Cancel(i64, Answer),
    /// Starts a failed or cancelled job again.
    Requeue(i64, Again, Answer),
    /// Workers that start from now on use it.
    Configure(Arc<Config>),
    /// Checkpoint every worker, then return from [`Supervisor::run`]. The second
    /// time: kill them.
    Shutdown,
}

/// Starts workers and hears how they end.
pub struct Supervisor {
    setup: Setup,
    /// Wakes the inbox when a job has ended, for `after = "move"`.
    ended: Box<dyn Fn() + Send + Sync>,
    running: HashMap<i64, mpsc::Sender<Ask>>,
    workers: JoinSet<(i64, Change)>,
    stopping: bool,
}

impl Supervisor {
    /// `program` has the `worker` command; `ended` is called when a job has ended.
    pub fn new(
        config: Arc<Config>,
        store: StoreHandle,
        receipts: Receipts,
        program: PathBuf,
        ended: impl Fn() + Send + Sync + 'static,
    ) -> Supervisor {
        Supervisor {
            setup: Setup { config, store, receipts, program },
            ended: Box::new(ended),
            running: HashMap::new(),
            workers: JoinSet::new(),
            stopping: false,
        }
    }

    /// Runs until a shutdown has stopped every worker.
    pub async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.start_workers().await;
            if self.stopping && self.running.is_empty() {
                return;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => self.shut_down().await,
                },
                Some(ended) = self.workers.join_next() => match ended {
                    Ok((id, change)) => self.ended(id, change).await,
                    Err(error) => self.lost(&error).await,
                },
            }
        }
    }

    async fn start_workers(&mut self) {
        while !self.stopping && self.running.len() < self.setup.config.workers.parallel {
            let job = match self.setup.store.write(|store| store.start_next()).await {
                Ok(Some(job)) => job,
                Ok(None) => return,
                Err(error) => return tracing::error!("the next job cannot be started: {error}"),
            };
            tracing::info!(job = job.id, "job {} ({}) starts", job.id, job.name);
            self.setup.receipts.refresh(job.id);
            let (sender, asks) = mpsc::channel(8);
            self.running.insert(job.id, sender);
            let setup = self.setup.clone();
            self.workers.spawn(async move {
                let id = job.id;
                (id, attend(setup, job, asks).await)
            });
        }
    }

    async fn ended(&mut self, id: i64, change: Change) {
        self.running.remove(&id);
        let (state, why) = (change.to, &change.why);
        match state {
            State::Failed => tracing::error!(job = id, "job {id} failed: {why}"),
            _ => tracing::info!(job = id, "job {id} is {state}: {why}"),
        }
        if let Err(error) = self.change(id, change).await {
            tracing::error!(job = id, "job {id} could not become {state}: {error}");
        }
        (self.ended)();
    }

    /// The task that attended to a worker panicked. The error does not say which job
    /// that was, so every job that has lost its attendant fails.
    async fn lost(&mut self, error: &tokio::task::JoinError) {
        let lost: Vec<i64> = self.running.iter().filter(|(_, asks)| asks.is_closed()).map(|(id, _)| *id).collect();
        for id in lost {
            let why = format!("an error of the daemon: {error}");
            self.ended(id, Change::by_error(State::Failed, finetuned_engine::ErrorKind::Internal, why)).await;
        }
    }

    async fn change(&self, id: i64, change: Change) -> Result<Job> {
        let job = self.setup.store.write(move |store| store.transition(id, &change)).await?;
        self.setup.receipts.refresh(id);
        Ok(job)
    }

    async fn obey(&mut self, command: Command) {
        let (job, answer) = match command {
            Command::Wake => return,
            Command::Configure(config) => return self.setup.config = config,
            Command::Shutdown => return self.shut_down().await,
            Command::Pause(id, answer) => {
                (self.stop(id, Ask::Pause, Change::to(State::Paused, "paused by the user")).await, answer)
            }
            Command::Cancel(id, answer) => {
                (self.stop(id, Ask::Cancel, Change::to(State::Cancelled, "cancelled by the user")).await, answer)
            }
            Command::Resume(id, answer) => (self.resume(id).await, answer),
            Command::Requeue(id, again, answer) => (self.requeue(id, again).await, answer),
        };
        // Who asked may be gone.
        let _ = answer.send(job);
    }

    async fn shut_down(&mut self) {
        self.stopping = true;
        for asks in self.running.values() {
            let _ = asks.send(Ask::Stop).await;
        }
    }

    async fn stop(&mut self, id: i64, ask: Ask, change: Change) -> Result<Job> {
        let job = self.job(id).await?;
        if let Some(asks) = self.running.get(&id) {
            asks.send(ask).await.map_err(|_| Error::conflict("the worker has just ended"))?;
            return Ok(job);
        }
        if !job.state.may_become(change.to) {
            return Err(Error::conflict(format!("job {id} is {}; it cannot be {}", job.state, change.to)));
        }
        self.change(id, change).await
    }

    async fn resume(&mut self, id: i64) -> Result<Job> {
        let job = self.job(id).await?;
        if job.state != State::Paused {
            return Err(Error::conflict(format!("job {id} is {}, not paused", job.state)));
        }
        self.change(id, Change::to(State::Queued, "resumed by the user")).await
    }

    async fn requeue(&mut self, id: i64, again: Again) -> Result<Job> {
        if self.running.contains_key(&id) {
            return Err(Error::conflict(format!("job {id} has a worker: cancel it first")));
        }
        let job = self.setup.store.write(move |store| store.requeue(id, &again)).await?;
        self.setup.receipts.refresh(id);
        Ok(job)
    }

    async fn job(&self, id: i64) -> Result<Job> {
        self.setup.store.read(move |store| store.existing(id)).await
    }
}
