//! The control interface: JSON over HTTP on a Unix socket.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

use crate::daemon::Control;
use crate::store::Job;
use crate::supervisor::{Answer, Command};

use super::messages::{ErrorBody, ErrorWords, JobView, Reloaded, Retry, Submission, Submitted};

/// Events in one answer, or in one piece of a followed answer.
const EVENTS_AT_ONCE: usize = 1000;

/// Binds the socket; a file that an earlier daemon left is in the way and is
/// removed (the state folder's lock says that it is gone).
///
/// # Errors
/// The path is too long for a socket, or its folder cannot be written.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        anyhow::ensure!(
            found.file_type().is_socket(),
            "{} is there and is no socket; set control.socket to another path",
            path.display()
        );
        std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| {
        format!(
            "cannot listen on {} (a socket's path has at most about 100 bytes: set control.socket to a shorter one)",
            path.display()
        )
    })?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// The routes.
pub fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/status", get(status))
        .route("/jobs", get(jobs).post(submit))
        .route("/jobs/{id}", get(job))
        .route("/jobs/{id}/events", get(job_events))
        .route("/events", get(all_events))
        .route("/jobs/{id}/cancel", post(cancel))
        .route("/jobs/{id}/pause", post(pause))
        .route("/jobs/{id}/resume", post(resume))
        .route("/jobs/{id}/retry", post(retry))
        .route("/reload", post(reload))
        .fallback(|| async { Failure::not_found("there is no such path") })
        .method_not_allowed_fallback(|| async {
            Failure(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "this path has another method".into())
        })
        .with_state(control)
}

/// An error on its way to the client.
struct Failure(StatusCode, &'static str, String);

impl Failure {
    fn not_found(message: impl Into<String>) -> Failure {
        Failure(StatusCode::NOT_FOUND, "not_found", message.into())
    }
}

impl From<anyhow::Error> for Failure {
    /// What the user asked cannot be done.
    fn from(error: anyhow::Error) -> Failure {
        let message = format!("{error:#}");
        if message.starts_with("there is no job") {
            return Failure::not_found(message);
        }
        Failure(StatusCode::BAD_REQUEST, "invalid_request", message)
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Failure {
        Failure(rejection.status(), "invalid_request", rejection.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let words = ErrorWords { code: self.1.to_string(), message: self.2 };
        (self.0, Json(ErrorBody { error: words })).into_response()
    }
}

type Shared = State<Arc<Control>>;

async fn health(State(control): Shared) -> Response {
    Json(serde_json::json!({ "status": if control.is_stopping() { "stopping" } else { "ok" }, "pid": std::process::id() })).into_response()
}

async fn status(State(control): Shared) -> Result<Response, Failure> {
    Ok(Json(control.status()?).into_response())
}

async fn jobs(State(control): Shared) -> Result<Response, Failure> {
    Ok(Json(control.status()?.jobs).into_response())
}

async fn job(State(control): Shared, UrlPath(id): UrlPath<i64>) -> Result<Response, Failure> {
    Ok(Json(JobView::from(control.job(id)?)).into_response())
}

async fn submit(State(control): Shared, body: Result<Json<Submission>, JsonRejection>) -> Result<Response, Failure> {
    let Json(submission) = body?;
    let worker = control.clone();
    // Copies and hashes a file.
    let (job, is_new) =
        tokio::task::spawn_blocking(move || worker.submit(&submission)).await.map_err(anyhow::Error::from)??;
    control.tell(Command::Wake).await;
    Ok(Json(Submitted { job: job.into(), is_new }).into_response())
}

async fn ask(control: &Control, command: impl FnOnce(Answer) -> Command) -> Result<Response, Failure> {
    let (sender, receiver) = oneshot::channel();
    control.tell(command(sender)).await;
    let job: Job = receiver.await.map_err(|_| anyhow::anyhow!("the daemon is stopping"))??;
    Ok(Json(JobView::from(job)).into_response())
}

async fn cancel(State(control): Shared, UrlPath(id): UrlPath<i64>) -> Result<Response, Failure> {
    ask(&control, |answer| Command::Cancel(id, answer)).await
}

async fn pause(State(control): Shared, UrlPath(id): UrlPath<i64>) -> Result<Response, Failure> {
    ask(&control, |answer| Command::Pause(id, answer)).await
}

async fn resume(State(control): Shared, UrlPath(id): UrlPath<i64>) -> Result<Response, Failure> {
    ask(&control, |answer| Command::Resume(id, answer)).await
}

async fn retry(State(control): Shared, UrlPath(id): UrlPath<i64>, body: Bytes) -> Result<Response, Failure> {
    let wish: Retry =
        if body.is_empty() { Retry::default() } else { serde_json::from_slice(&body).map_err(anyhow::Error::from)? };
    ask(&control, |answer| Command::Retry {
        id,
        fresh: wish.fresh,
        accept_plugin_change: wish.accept_plugin_change,
        answer,
    })
    .await
}

async fn reload(State(control): Shared) -> Result<Response, Failure> {
    let config = control.reload().await?;
    Ok(Json(Reloaded { config_file: config.file.clone(), warnings: config.warnings.clone() }).into_response())
}

#[derive(Deserialize)]
struct Which {
    #[serde(default)]
    after: i64,
    /// `follow=true`: the answer goes on as things happen, one JSON object a line.
    #[serde(default)]
    follow: bool,
}

async fn all_events(State(control): Shared, Query(which): Query<Which>) -> Result<Response, Failure> {
    events(control, None, which).await
}

async fn job_events(
    State(control): Shared,
    UrlPath(id): UrlPath<i64>,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    control.job(id)?;
    events(control, Some(id), which).await
}

async fn events(control: Arc<Control>, job: Option<i64>, which: Which) -> Result<Response, Failure> {
    if !which.follow {
        return Ok(Json(control.events(job, which.after, EVENTS_AT_ONCE)?).into_response());
    }
    let news = control.news();
    let state = (control, news, which.after, false);
    let pieces = futures_util::stream::unfold(state, move |(control, mut news, after, ended)| async move {
        if ended {
            return None;
        }
        loop {
            news.mark_unchanged();
            let rows = control.events(job, after, EVENTS_AT_ONCE).ok()?;
            if let Some(last) = rows.last() {
                let last = last.id;
                let text: String =
                    rows.iter().filter_map(|row| serde_json::to_string(row).ok()).map(|line| line + "\n").collect();
                return Some((Ok::<_, Infallible>(Bytes::from(text)), (control, news, last, false)));
            }
            // A job that has ended says nothing more.
            let over = job.is_some_and(|id| control.job(id).is_ok_and(|job| job.state.is_ended()));
            if over || control.is_stopped() {
                return None;
            }
            let _ = tokio::time::timeout(Duration::from_secs(1), news.changed()).await;
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pieces)).into_response())
}
