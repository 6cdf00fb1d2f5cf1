//! Starting a job again.

use super::Control;
use crate::api::{JobView, Retry};
use crate::error::{Error, Result};
use crate::inbox::Claims;
use crate::plugins::Finder;
use crate::store::{Again, Job, State};
use crate::supervisor::Command;

impl Control {
    /// Starts a failed or cancelled job again, or makes the job of a recipe that has
    /// changed since.
    ///
    /// # Errors
    /// There is no such job, it has a worker, or there is nothing to start again.
    pub async fn retry(&self, id: i64, wish: &Retry) -> Result<JobView> {
        let job = self.job(id).await?;
        if job.state.is_active() {
            return Err(Error::conflict(format!("job {id} has a worker: cancel it first")));
        }
        let claims = Claims::of(&self.config());
        let store = self.parts.store.clone();
        // Hashes files, and may wait for a child that loads a plugin.
        let changed = tokio::task::spawn_blocking(move || claims.reclaim(&store, id)).await??;
        if let Some(other) = changed {
            self.parts.receipts.refresh(other);
            self.tell(Command::Wake).await;
            return Ok(self.job(other).await?.into());
        }
        if job.state == State::Succeeded {
            let message = format!("job {id} has succeeded, and neither its data nor its recipe has changed since");
            return Err(Error::conflict(message).remedy("change the recipe, or drop other data"));
        }
        if !job.state.may_become(State::Queued) {
            return Err(Error::conflict(format!("job {id} is {}: there is nothing to retry", job.state)));
        }
        let again = self.again(job, wish).await?;
        self.ask(|answer| Command::Requeue(id, again, answer)).await
    }

    /// The plugins that are there now, not those of the failed attempt.
    async fn again(&self, job: Job, wish: &Retry) -> Result<Again> {
        let crashes = self.parts.store.read(|store| store.plugin_crashes()).await?;
        let finder = Finder::of(&self.config());
        let plugins = tokio::task::spawn_blocking(move || finder.resolve(&job.recipe, &crashes)).await??;
        Ok(Again { fresh: wish.fresh, accept_plugin_change: wish.accept_plugin_change, plugins })
    }
}
