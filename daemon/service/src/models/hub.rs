//! The Hugging Face hub: its cache on this machine, and downloads that go on
//! where they broke off.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::filesystem::sha256_of;
use crate::words;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
/// If the hub cannot be reached, that should show at once.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// Access to the hub.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    agent: ureq::Agent,
    /// Does not follow redirects: the first answer names the file's hash.
    asker: ureq::Agent,
}

impl Hub {
    /// `HF_ENDPOINT`, and the token of `HF_TOKEN` or of the hub's own login.
    pub fn of_process() -> Hub {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let token = std::env::var("HF_TOKEN").ok().or_else(|| std::fs::read_to_string(home()?.join("token")).ok());
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        Hub::new(endpoint.as_deref().unwrap_or(DEFAULT_ENDPOINT), token)
    }

    fn new(endpoint: &str, token: Option<String>) -> Hub {
        let agent = |redirects: u32| -> ureq::Agent {
            ureq::Agent::config_builder()
                .timeout_resolve(Some(CONNECT_TIMEOUT))
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(RESPONSE_TIMEOUT))
                .max_redirects(redirects)
                .max_redirects_will_error(false)
                .http_status_as_error(false)
                .tls_config(ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::PlatformVerifier).build())
                .build()
                .into()
        };
        Hub { endpoint: endpoint.trim_end_matches('/').to_string(), token, agent: agent(8), asker: agent(0) }
    }

    /// Downloads the weights and the tokenizer of `repo` into the folder
    /// `target`, which appears when it is whole.
    ///
    /// # Errors
    /// The hub cannot be reached, refuses, or a file's hash is wrong.
    pub fn download(&self, repo: &str, target: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
        let files = self.files(repo)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let partial = target.with_file_name(format!(".{name}.partial"));
        std::fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        for file in &files {
            self.file(repo, file, &partial.join(file), say).with_context(|| format!("{repo}/{file}"))?;
        }
        std::fs::rename(&partial, target).with_context(|| format!("cannot rename {}", partial.display()))?;
        if let Some(folder) = target.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(target.to_path_buf())
    }

    fn request(&self, agent: &ureq::Agent, url: &str) -> ureq::RequestBuilder<ureq::typestate::WithoutBody> {
        let request = agent.get(url);
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// The files of a model at the top of its repository.
    fn files(&self, repo: &str) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Model {
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let mut answer = self
            .request(&self.agent, &url)
            .call()
            .map_err(|error| Error::not_found(format!("the hub ({}) does not answer: {error}", self.endpoint)))?;
        self.check(answer.status().as_u16(), repo)?;
        let model: Model =
            serde_json::from_reader(answer.body_mut().as_reader()).context("the hub's answer is not understood")?;
        let files: Vec<String> =
            model.siblings.into_iter().map(|sibling| sibling.rfilename).filter(|name| is_wanted(name)).collect();
        match files.iter().any(|name| name.ends_with(".safetensors")) {
            true => Ok(files),
            false => Err(Error::not_found(format!("{repo} holds no safetensors"))),
        }
    }

    fn check(&self, status: u16, what: &str) -> Result<()> {
        match status {
            200..300 => Ok(()),
            401 | 403 => Err(Error::not_found(format!(
                "the hub wants an accepted licence and a token for {what}: accept it there and set HF_TOKEN"
            ))),
            404 => Err(Error::not_found(format!("the hub has no {what}"))),
            status => Err(Error::not_found(format!("the hub answers {status} for {what}"))),
        }
    }

    fn file(&self, repo: &str, name: &str, path: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
        if path.exists() {
            return Ok(());
        }
        let url = format!("{}/{repo}/resolve/main/{name}", self.endpoint);
        let expected = self.hash(&url);
        let unfinished = path.with_file_name(format!("{name}.unfinished"));
        let mut file = File::options().create(true).append(true).read(true).open(&unfinished)?;
        let have = file.metadata()?.len();
        let request = self.request(&self.agent, &url);
        let request = if have > 0 { request.header("range", format!("bytes={have}-")) } else { request };
        let mut answer = request.call().map_err(|error| Error::not_found(error.to_string()))?;
        let status = answer.status().as_u16();
        // 416: the file is here to its last byte.
        if status != 416 {
            self.check(status, name)?;
            let resumed = status == 206;
            if !resumed {
                file.set_len(0)?;
            }
            let length =
                answer.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            let start = if resumed { have } else { 0 };
            copy(answer.body_mut().as_reader(), &mut file, start, length.map(|length| start + length), name, say)?;
        }
        if let Some(expected) = expected {
            let found = sha256_of(&mut file)?;
            if found != expected {
                std::fs::remove_file(&unfinished)?;
                let message = format!("its sha256 is {found}, expected {expected}");
                return Err(Error::storage(message).remedy("it was removed, try again"));
            }
        }
        file.sync_all()?;
        std::fs::rename(&unfinished, path)?;
        Ok(())
    }

    /// The hub names the SHA-256 of large files in the first answer.
    fn hash(&self, url: &str) -> Option<String> {
        let request = self.asker.head(url);
        let request = match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        };
        let answer = request.call().ok()?;
        let tag = answer.headers().get("x-linked-etag")?.to_str().ok()?.trim_matches('"').to_string();
        (tag.len() == 64 && tag.chars().all(|c| c.is_ascii_hexdigit())).then_some(tag)
    }
}

/// Weights, configuration, tokenizer and template: nothing in folders (other
/// formats), no code.
fn is_wanted(name: &str) -> bool {
    let safe = !name.contains('/') && !name.starts_with('.');
    safe && [".safetensors", ".json", ".jinja"].iter().any(|ending| name.ends_with(ending))
}

fn copy(
    mut from: impl Read,
    to: &mut File,
    start: u64,
    total: Option<u64>,
    name: &str,
    say: &mut dyn FnMut(&str),
) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = start;
    let mut told = std::time::Instant::now();
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        to.write_all(&buffer[..read])?;
        done += read as u64;
        if told.elapsed() > Duration::from_secs(1) {
            told = std::time::Instant::now();
            let total = total.map_or(String::new(), |total| format!(" of {}", words::bytes(total)));
            say(&format!("fetching {name}: {}{total}", words::bytes(done)));
        }
    }
    if total.is_none_or(|total| done == total) {
        return Ok(());
    }
    Err(Error::storage("the download broke off").remedy("the same command goes on with it"))
}

/// The folder of the hub's own tools: `HF_HOME`, else in the user's cache.
fn home() -> Option<PathBuf> {
    if let Some(home) = std::env::var_os("HF_HOME") {
        return Some(home.into());
    }
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(std::env::home_dir()?.join(".cache")));
    Some(cache?.join("huggingface"))
}

/// A model that the hub's own tools have fetched before.
pub fn cached(repo: &str) -> Option<PathBuf> {
    let hub = std::env::var_os("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home()?.join("hub")))?;
    cached_in(&hub, repo)
}

fn cached_in(hub: &Path, repo: &str) -> Option<PathBuf> {
    let model = hub.join(format!("models--{}", repo.replace('/', "--")));
    let commit = std::fs::read_to_string(model.join("refs/main")).ok()?;
    let snapshot = model.join("snapshots").join(commit.trim());
    let whole = snapshot.join("config.json").exists()
        && std::fs::read_dir(&snapshot)
            .ok()?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors"));
    whole.then_some(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// A hub of one model; says what it was asked.
    fn serve(
        files: &'static [(&'static str, &'static str)],
        hash: Option<&'static str>,
    ) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let first = lines.next().unwrap().unwrap();
                let range =
                    lines.map_while(std::result::Result::ok).take_while(|line| !line.is_empty()).find_map(|line| {
                        line.to_lowercase()
                            .strip_prefix("range: bytes=")
                            .and_then(|rest| rest.trim_end_matches('-').parse::<usize>().ok())
                    });
                let path = first.split(' ').nth(1).unwrap().to_string();
                log.lock().unwrap().push(format!("{} {}", first.split(' ').next().unwrap(), range.unwrap_or(0)));
                let siblings: Vec<String> =
                    files.iter().map(|(name, _)| format!("{{\"rfilename\":\"{name}\"}}")).collect();
                let listing = format!("{{\"siblings\":[{}]}}", siblings.join(","));
                let body = if path.starts_with("/api/models/org/m") {
                    Some(listing)
                } else {
                    files
                        .iter()
                        .find(|(name, _)| path == format!("/org/m/resolve/main/{name}"))
                        .map(|(_, body)| body[range.unwrap_or(0)..].to_string())
                };
                let status = match (&body, range) {
                    (None, _) => "404 Not Found",
                    (Some(_), Some(_)) => "206 Partial Content",
                    _ => "200 OK",
                };
                let body = body.unwrap_or_default();
                let hash = hash.map(|hash| format!("x-linked-etag: \"{hash}\"\r\n")).unwrap_or_default();
                let sent = if first.starts_with("HEAD") { "" } else { &body };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{hash}connection: close\r\n\r\n{sent}",
                    body.len()
                );
            }
        });
        (endpoint, asked)
    }

    #[test]
    fn a_download_goes_on_where_it_broke_off() {
        let (endpoint, asked) = serve(
            &[("config.json", "{}"), ("model.safetensors", "0123456789"), ("onnx/x.json", "no"), ("code.py", "no")],
            None,
        );
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(".m.partial")).unwrap();
        std::fs::write(dir.path().join(".m.partial/model.safetensors.unfinished"), "0123").unwrap();
        let path = Hub::new(&endpoint, None).download("org/m", &dir.path().join("m"), &mut |_| {}).unwrap();
        assert_eq!(std::fs::read_to_string(path.join("model.safetensors")).unwrap(), "0123456789");
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 2);
        assert!(asked.lock().unwrap().contains(&"GET 4".to_string()));
    }

    #[test]
    fn a_wrong_hash_is_refused() {
        let zeros = "0000000000000000000000000000000000000000000000000000000000000000";
        let (endpoint, _) = serve(&[("model.safetensors", "0123456789")], Some(zeros));
        let dir = tempfile::tempdir().unwrap();
        let error = Hub::new(&endpoint, None).download("org/m", &dir.path().join("m"), &mut |_| {}).unwrap_err();
        assert!(format!("{error:#}").contains("expected 0000"), "{error:#}");
        assert!(!dir.path().join("m").exists());
    }

    #[test]
    fn a_model_that_is_not_there_is_said_in_one_line() {
        let (endpoint, _) = serve(&[], None);
        let dir = tempfile::tempdir().unwrap();
        let error = Hub::new(&endpoint, None).download("org/other", &dir.path().join("m"), &mut |_| {}).unwrap_err();
        assert_eq!(format!("{error:#}"), "the hub has no org/other");
    }

    #[test]
    fn the_hubs_own_cache_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("models--org--m");
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::create_dir_all(model.join("snapshots/abc")).unwrap();
        std::fs::write(model.join("refs/main"), "abc\n").unwrap();
        std::fs::write(model.join("snapshots/abc/config.json"), "{}").unwrap();
        assert_eq!(cached_in(dir.path(), "org/m"), None, "the weights are missing");
        std::fs::write(model.join("snapshots/abc/model.safetensors"), "x").unwrap();
        assert_eq!(cached_in(dir.path(), "org/m"), Some(model.join("snapshots/abc")));
    }
}
