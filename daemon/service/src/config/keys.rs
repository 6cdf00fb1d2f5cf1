//! Every key of finetuned.toml outside `[recipe]`, in one visible table.
//! `config/finetuned.toml` documents the same keys; a test holds the two equal.

/// What a value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A path; `~/` is the home folder, a relative path starts at the state
    /// folder (for `state_dir` itself: at the file's folder).
    Path,
    /// A list of paths, or one. In a variable they are joined by `:`.
    Paths,
    /// `"30s"`, `"250ms"`, `"10m"`.
    Duration,
    /// Bytes as a number or text: `"8GiB"`. 0 is no limit.
    Bytes,
    /// A whole number, not negative.
    Count,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Any text.
    Text,
}

/// A key: its name, its default written as TOML, and what it means.
pub struct ConfigKey {
    pub path: &'static str,
    pub kind: Kind,
    pub default: &'static str,
    pub help: &'static str,
}

const fn key(path: &'static str, kind: Kind, default: &'static str, help: &'static str) -> ConfigKey {
    ConfigKey { path, kind, default, help }
}

/// The table.
pub const KEYS: &[ConfigKey] = &[
    key(
        "state_dir",
        Kind::Path,
        "\"~/finetuned\"",
        "the folder of everything the daemon keeps: database, jobs, adapters, models, inbox",
    ),
    key("inbox.paths", Kind::Paths, "[\"inbox\"]", "folders that are watched for datasets"),
    key("inbox.scan_every", Kind::Duration, "\"30s\"", "time between full scans; a change wakes the scan at once"),
    key("inbox.settle", Kind::Duration, "\"5s\"", "how long a file must stay unchanged before it is read"),
    key("inbox.settle_network", Kind::Duration, "\"30s\"", "the same on network file systems, whose times are coarse"),
    key(
        "inbox.incomplete_after",
        Kind::Duration,
        "\"10m\"",
        "how long a file whose last line is cut off may stay unchanged before it is refused",
    ),
    key(
        "inbox.after",
        Kind::Word(&["leave", "move"]),
        "\"leave\"",
        "what happens to a dataset when its job has ended: left, or moved to _done/ or _failed/",
    ),
    key(
        "inbox.snapshot_limit",
        Kind::Bytes,
        "\"16GiB\"",
        "larger datasets are trained from where they lie and verified by hash, not copied",
    ),
    key("models.dir", Kind::Path, "\"models\"", "where `finetune models pull` puts base models"),
    key("control.socket", Kind::Path, "\"finetuned.sock\"", "the Unix socket of the control interface"),
    key("workers.parallel", Kind::Count, "1", "jobs trained at the same time"),
    key(
        "workers.device",
        Kind::Text,
        "\"auto\"",
        "device of the workers: auto, cpu, gpu, gpu:N, vulkan:N, metal:N, dx12:N",
    ),
    key("workers.threads", Kind::Count, "0", "threads of one worker; 0: all cores"),
    key("workers.memory", Kind::Bytes, "0", "most memory of one worker; 0: no limit"),
    key(
        "workers.heartbeat_timeout",
        Kind::Duration,
        "\"60s\"",
        "a worker that is silent for so long is killed and its job fails",
    ),
    key(
        "workers.stall_timeout",
        Kind::Duration,
        "\"60m\"",
        "a worker that lives but makes no progress for so long is killed and its job fails",
    ),
    key(
        "workers.stop_timeout",
        Kind::Duration,
        "\"2m\"",
        "how long a worker may take to finish its step and write a checkpoint when asked to stop",
    ),
    key(
        "plugins.call_timeout",
        Kind::Duration,
        "\"60s\"",
        "a plugin's call that takes longer ends its worker, and its job fails",
    ),
    key(
        "plugins.call_memory",
        Kind::Bytes,
        "\"4GiB\"",
        "a plugin's call by which its process grows more ends its worker, and its job fails; 0: no limit",
    ),
    key(
        "plugins.load_timeout",
        Kind::Duration,
        "\"10s\"",
        "how long a plugin library may take to load and to describe itself",
    ),
    key(
        "log.level",
        Kind::Word(&["error", "warn", "info", "debug", "trace"]),
        "\"info\"",
        "how much the daemon tells on stderr",
    ),
];

/// The key of this name.
pub fn find(path: &str) -> Option<&'static ConfigKey> {
    KEYS.iter().find(|key| key.path == path)
}

/// `FINETUNED_INBOX_SCAN_EVERY` for `inbox.scan_every`.
pub fn variable(path: &str) -> String {
    format!("FINETUNED_{}", path.replace('.', "_").to_uppercase())
}

/// The known name nearest to a misspelt one, if any is near.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|name| (strsim::normalized_damerau_levenshtein(name, wrong), name))
        .filter(|(likeness, _)| *likeness > 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
