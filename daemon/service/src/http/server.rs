//! Answers what [`crate::api`] lists: one handler for each endpoint.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path as UrlPath, Query, State};
use axum::handler::Handler;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use tokio::net::UnixListener;

use crate::api::{
    self, Endpoint, ErrorBody, ErrorWords, EventsQuery, Health, JobView, Method, Reloaded, Retry, Status, StatusQuery,
    Submission, Submitted, SummaryView,
};
use crate::control::{Control, Phase};
use crate::error::{self, Context, Error};
use crate::store::JobQuery;
use crate::supervisor::Command;

/// Events in one answer, or in one piece of a followed answer.
const EVENTS_AT_ONCE: usize = 1000;

/// Binds the socket; a file that an earlier daemon left is in the way and is
/// removed (the state folder's lock says that it is gone).
///
/// # Errors
/// The path is too long for a socket, or its folder cannot be written.
pub fn bind(path: &Path) -> error::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let message = format!("{} exists and is not a socket", path.display());
            return Err(Error::conflict(message).remedy("set control.socket to another path"));
        }
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

type Shared = State<Arc<Control>>;
type Id = Result<UrlPath<i64>, PathRejection>;
type Asked<Q> = Result<Query<Q>, QueryRejection>;
type Answer<T> = Result<Json<T>, Failure>;

/// The router: every endpoint with its handler.
pub fn router(control: Arc<Control>) -> Router {
    let mut router = Router::new();
    router = serve(router, &api::HEALTH, health);
    router = serve(router, &api::STATUS, status);
    router = serve(router, &api::JOBS, jobs);
    router = serve(router, &api::SUBMIT, submit);
    router = serve(router, &api::JOB, job);
    router = serve(router, &api::JOB_EVENTS, job_events);
    router = serve(router, &api::EVENTS, all_events);
    router = serve(router, &api::PAUSE, pause);
    router = serve(router, &api::RESUME, resume);
    router = serve(router, &api::CANCEL, cancel);
    router = serve(router, &api::RETRY, retry);
    router = serve(router, &api::RELOAD, reload);
    router
        .fallback(|| async { Failure::from(Error::not_found("there is no such path")) })
        .method_not_allowed_fallback(|| async {
            let error = Error::bad_input("this path has another method");
            Failure { status: StatusCode::METHOD_NOT_ALLOWED, error }
        })
        .with_state(control)
}

fn serve<Q, B, A, H, T>(router: Router<Arc<Control>>, endpoint: &Endpoint<Q, B, A>, handler: H) -> Router<Arc<Control>>
where
    H: Handler<T, Arc<Control>>,
    T: 'static,
{
    let filter = match endpoint.facts.method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
    };
    router.route(endpoint.facts.path, on(filter, handler))
}

/// An error on its way to the client.
struct Failure {
    status: StatusCode,
    error: Error,
}

impl Failure {
    /// A request that could not be read.
    fn rejected(status: StatusCode, why: String) -> Failure {
        Failure { status, error: Error::bad_input(why) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = StatusCode::from_u16(error::meaning(error.kind()).http);
        Failure { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Failure {
        Failure::rejected(rejection.status(), rejection.body_text())
    }
}

impl From<PathRejection> for Failure {
    fn from(rejection: PathRejection) -> Failure {
        Failure::rejected(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Failure {
    fn from(rejection: QueryRejection) -> Failure {
        Failure::rejected(rejection.status(), rejection.body_text())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = ErrorWords {
            code: self.error.kind(),
            message: self.error.message().to_string(),
            remedy: self.error.remedy_words().map(str::to_string),
        };
        (self.status, Json(ErrorBody { error })).into_response()
    }
}

async fn health(State(control): Shared) -> Json<Health> {
    Json(control.health())
}

async fn status(State(control): Shared, query: Asked<StatusQuery>) -> Answer<Status> {
    Ok(Json(control.status(query?.0).await?))
}

async fn jobs(State(control): Shared, page: Asked<JobQuery>) -> Answer<Vec<SummaryView>> {
    Ok(Json(control.jobs(page?.0).await?))
}

async fn job(State(control): Shared, id: Id) -> Answer<JobView> {
    Ok(Json(control.job(id?.0).await?.into()))
}

async fn submit(State(control): Shared, body: Result<Json<Submission>, JsonRejection>) -> Answer<Submitted> {
    Ok(Json(control.submit(body?.0).await?))
}

async fn cancel(State(control): Shared, id: Id) -> Answer<JobView> {
    let id = id?.0;
    Ok(Json(control.ask(|answer| Command::Cancel(id, answer)).await?))
}

async fn pause(State(control): Shared, id: Id) -> Answer<JobView> {
    let id = id?.0;
    Ok(Json(control.ask(|answer| Command::Pause(id, answer)).await?))
}

async fn resume(State(control): Shared, id: Id) -> Answer<JobView> {
    let id = id?.0;
    Ok(Json(control.ask(|answer| Command::Resume(id, answer)).await?))
}

async fn retry(State(control): Shared, id: Id, body: Bytes) -> Answer<JobView> {
    let wish = if body.is_empty() { Ok(Retry::default()) } else { serde_json::from_slice(&body) };
    let wish = wish.map_err(|error| Error::bad_input(error.to_string()))?;
    Ok(Json(control.retry(id?.0, &wish).await?))
}

async fn reload(State(control): Shared) -> Answer<Reloaded> {
    let config = control.reload().await?;
    Ok(Json(Reloaded { config_file: config.file.clone(), warnings: config.warnings.clone() }))
}

async fn all_events(State(control): Shared, which: Asked<EventsQuery>) -> Result<Response, Failure> {
    events(control, None, which?.0).await
}

async fn job_events(State(control): Shared, id: Id, which: Asked<EventsQuery>) -> Result<Response, Failure> {
    let id = id?.0;
    control.job(id).await?;
    events(control, Some(id), which?.0).await
}

async fn events(control: Arc<Control>, job: Option<i64>, which: EventsQuery) -> Result<Response, Failure> {
    if !which.follow {
        return Ok(Json(control.events(job, which.after, EVENTS_AT_ONCE).await?).into_response());
    }
    let news = control.news();
    let pieces =
        futures_util::stream::unfold((control, news, which.after), move |(control, mut news, after)| async move {
            loop {
                news.mark_unchanged();
                let rows = control.events(job, after, EVENTS_AT_ONCE).await.ok()?;
                if let Some(last) = rows.last() {
                    let last = last.id;
                    let text: String =
                        rows.iter().filter_map(|row| serde_json::to_string(row).ok()).map(|line| line + "\n").collect();
                    return Some((Ok::<_, Infallible>(Bytes::from(text)), (control, news, last)));
                }
                // A job that has ended says nothing more.
                let over = match job {
                    Some(id) => control.job(id).await.is_ok_and(|job| job.state.is_ended()),
                    None => false,
                };
                if over || control.phase() == Phase::Stopped {
                    return None;
                }
                let _ = tokio::time::timeout(Duration::from_secs(1), news.changed()).await;
            }
        });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pieces)).into_response())
}
