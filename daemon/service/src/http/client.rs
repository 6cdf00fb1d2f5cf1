//! `finetune`'s side of the control socket.

use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::{self, Endpoint, ErrorBody, ErrorWords, EventsQuery, Method};
use crate::error::{Context, Error, Result};
use crate::exit;

/// Talks to one daemon.
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// # Errors
    /// No runtime can be made.
    pub fn new(socket: &Path) -> Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { socket: socket.to_path_buf(), runtime })
    }

    /// Asks an endpoint that is not about one job.
    ///
    /// # Errors
    /// No daemon is there, or it refuses, with the kind and the words of its error.
    pub fn ask<Q: Serialize, B: Serialize, A: DeserializeOwned>(
        &self,
        endpoint: &Endpoint<Q, B, A>,
        query: &Q,
        body: &B,
    ) -> Result<A> {
        self.runtime.block_on(self.request(endpoint.facts.method, &with_query(endpoint.facts.path, query)?, body))
    }

    /// Asks an endpoint about a job.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn ask_of<Q: Serialize, B: Serialize, A: DeserializeOwned>(
        &self,
        endpoint: &Endpoint<Q, B, A>,
        id: i64,
        query: &Q,
        body: &B,
    ) -> Result<A> {
        self.runtime.block_on(self.request(endpoint.facts.method, &with_query(&endpoint.path_of(id), query)?, body))
    }

    /// Calls `line` for each event of one job, or of all, as it comes, until `line`
    /// returns `false` or the answer ends.
    ///
    /// # Errors
    /// See [`Client::ask`].
    pub fn follow(&self, job: Option<i64>, line: &mut dyn FnMut(&str) -> bool) -> Result<()> {
        let query = EventsQuery { after: 0, follow: true };
        let path = job.map_or_else(|| api::EVENTS.facts.path.to_string(), |id| api::JOB_EVENTS.path_of(id));
        self.runtime.block_on(async {
            let mut answer = self.send(Method::Get, &with_query(&path, &query)?, Vec::new()).await?;
            let mut rest = Vec::new();
            while let Some(frame) = answer.body_mut().frame().await {
                let Ok(frame) = frame else { break };
                rest.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                while let Some(end) = rest.iter().position(|&b| b == b'\n') {
                    let whole: Vec<u8> = rest.drain(..=end).collect();
                    if !line(String::from_utf8_lossy(&whole).trim_end()) {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    async fn request<B: Serialize, A: DeserializeOwned>(&self, method: Method, path: &str, body: &B) -> Result<A> {
        let body = match method {
            Method::Get => Vec::new(),
            Method::Post => serde_json::to_vec(body)?,
        };
        let answer = self.send(method, path, body).await?;
        let body = answer.into_body().collect().await.map_err(broken_off)?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("the daemon's answer to {path} is of another version"))
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<hyper::Response<hyper::body::Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.nobody(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken_off)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method.name())
            .uri(path)
            .header("host", "finetuned")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| Error::internal(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken_off)?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map_err(broken_off)?.to_bytes();
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(ErrorBody { error: ErrorWords { code, message, remedy } }) => {
                let error = Error::new(code, message);
                remedy.into_iter().fold(error, |error, remedy| error.remedy(remedy))
            }
            Err(_) => Error::internal(format!("the daemon answered {status}")),
        })
    }

    fn nobody(&self, error: &std::io::Error) -> Error {
        let remedy = if error.kind() == std::io::ErrorKind::PermissionDenied {
            "you may not open it: join the daemon's group"
        } else {
            "start it with `finetuned`, or as a service with `finetune service install`"
        };
        let message = format!("no daemon at {} ({error})", self.socket.display());
        Error::not_found(message).remedy(remedy).exit(exit::UNAVAILABLE)
    }
}

fn broken_off(error: hyper::Error) -> Error {
    Error::internal(format!("the daemon's answer broke off: {error}"))
}

fn with_query(path: &str, query: &impl Serialize) -> Result<String> {
    let query = serde_urlencoded::to_string(query).map_err(|error| Error::internal(error.to_string()))?;
    Ok(if query.is_empty() { path.to_string() } else { format!("{path}?{query}") })
}
