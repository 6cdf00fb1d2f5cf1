//! `finetune`'s side of the control socket.

use std::path::{Path, PathBuf};

use anyhow::Context;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::exit;

use super::messages::ErrorBody;

/// Talks to one daemon.
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// # Errors
    /// No runtime can be made.
    pub fn new(socket: &Path) -> anyhow::Result<Client> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Client { socket: socket.to_path_buf(), runtime })
    }

    /// # Errors
    /// No daemon is there, or it refuses, with its own words.
    pub fn get<A: DeserializeOwned>(&self, path: &str) -> anyhow::Result<A> {
        self.runtime.block_on(self.request(Method::GET, path, Vec::new()))
    }

    /// # Errors
    /// See [`Client::get`].
    pub fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<A> {
        self.runtime.block_on(self.request(Method::POST, path, serde_json::to_vec(body)?))
    }

    /// Calls `line` for each line of an answer that goes on, until it returns
    /// `false` or the answer ends.
    ///
    /// # Errors
    /// See [`Client::get`].
    pub fn follow(&self, path: &str, line: &mut dyn FnMut(&str) -> bool) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut answer = self.send(Method::GET, path, Vec::new()).await?;
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

    async fn request<A: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> anyhow::Result<A> {
        let answer = self.send(method, path, body).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        serde_json::from_slice(&body).with_context(|| format!("the daemon's answer to {path} is of another version"))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> anyhow::Result<hyper::Response<hyper::body::Incoming>> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.nobody(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "finetuned")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))?;
        let answer = sender.send_request(request).await?;
        if answer.status() == StatusCode::OK {
            return Ok(answer);
        }
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => anyhow::bail!("{}", body.error.message),
            Err(_) => anyhow::bail!("the daemon answered {status}"),
        }
    }

    fn nobody(&self, error: &std::io::Error) -> anyhow::Error {
        let remedy = if error.kind() == std::io::ErrorKind::PermissionDenied {
            "you may not open it: join the daemon's group"
        } else {
            "start it with `finetuned`, or as a service with `finetune service install`"
        };
        exit::coded(exit::UNAVAILABLE, format!("no daemon at {} ({error}); {remedy}", self.socket.display()))
    }
}
