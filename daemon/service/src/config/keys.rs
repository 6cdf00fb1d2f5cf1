//! The daemon's keys outside `[recipe]`, each declared once.
//!
//! A declaration makes the field that the daemon reads, and the
//! [`Key`](finetuned_engine::keys::Key) that `config/finetuned.toml`,
//! `finetune config show` and `finetune config schema` are made of. The keys of
//! `[recipe]` are declared in the engine's `recipe.rs`.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use finetuned_engine::keys::{Key, KeyValue, Kind, Range, Section, any, at_least};
use finetuned_engine::recipe::{self, Recipe};
use finetuned_plugin_api::parameters::{Parameter, ParameterType};
use finetuned_plugin_api::registry;
use serde_json::Value;

use super::Reader;
use super::settings::{After, DeviceName, LogLevel, Setting};

/// Declares the sections: `name: type = default as TOML, range` and facts of
/// [`Key`]. Makes the structs, their `section()`, and `read`, which gives the
/// merged layers types and tells every mistake.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])*
        pub struct $name:ident in $section:literal {
            $(
                $(#[doc = $help:literal])*
                $field:ident: $type:ty = $default:literal, $range:expr $(, $fact:ident($($value:expr)?))*;
            )*
        }
    )*) => {
        /// The sections in the order of the documentation; the first holds the keys
        /// at the root.
        pub static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| vec![$($name::section()),*]);

        $(
            $(#[doc = $about])*
            #[derive(Debug, Clone, PartialEq)]
            pub struct $name {
                $( $(#[doc = $help])* pub $field: $type, )*
            }

            impl $name {
                fn section() -> Section {
                    let keys = vec![$(
                        Key::new(
                            $section,
                            stringify!($field),
                            <$type as Setting>::KIND,
                            $range,
                            Some($default.to_string()),
                            &[$($help),*],
                        )
                        $( .$fact($($value)?) )*,
                    )*];
                    Section::new($section, &[$($about),*], keys)
                }

                /// Reads the section. `None`: a mistake was told.
                pub(super) fn read(reader: &mut Reader) -> Option<$name> {
                    $( let $field = reader.take::<$type>($section, stringify!($field)); )*
                    Some($name { $( $field: $field? ),* })
                }
            }
        )*
    };
}

settings! {
    /// Where the daemon keeps its things.
    pub struct StateConfig in "" {
        /// The folder of everything that the daemon keeps: database, jobs, adapters,
        /// models and the inbox. It must be on a local disk, because SQLite's log is not
        /// safe on network shares. `~/` is your home folder; a relative path starts at
        /// the folder of this file.
        state_dir: PathBuf = r#""~/finetuned""#, any();
    }

    /// Folders that are watched for datasets.
    pub struct InboxConfig in "inbox" {
        /// The folders. A relative path starts at state_dir. None of them may contain,
        /// or be inside, a folder that the daemon writes to.
        paths: Vec<PathBuf> = r#"["inbox"]"#, any();

        /// Time between full scans. The scan is the truth; a change in the folder only
        /// makes it come sooner, because file events get lost on every system.
        scan_every: Duration = r#""30s""#, at_least(0.1);

        /// How long a file must stay unchanged (size, time, inode) before it is read.
        /// Shorter starts sooner, longer is safer with slow copies.
        settle: Duration = r#""5s""#, any();

        /// The same on network file systems (NFS, SMB, FUSE), whose times are coarse and
        /// whose writes arrive late.
        settle_network: Duration = r#""30s""#, any();

        /// The daemon waits for a file whose last line is cut off. If the file stays
        /// unchanged for this long, it is refused, with the reason in its receipt; a
        /// later change revives it.
        incomplete_after: Duration = r#""10m""#, any();

        /// What happens to a dataset whose job has ended: "leave" it where it is (moving
        /// would disturb Syncthing and rsync), or "move" it to _done/ or _failed/.
        after: After = r#""leave""#, any();

        /// Datasets up to this size are copied before training, so that the run does not
        /// depend on the source. Larger ones are read in place and verified by hash at
        /// every start. 0: always copy.
        snapshot_limit: Option<u64> = r#""16GiB""#, any();
    }

    /// Base models.
    pub struct ModelsConfig in "models" {
        /// The folder where `finetune models pull` puts base models, and where a recipe's
        /// `base` is looked up by name. A relative path starts at state_dir.
        dir: PathBuf = r#""models""#, any();
    }

    /// How `finetune` reaches the daemon.
    pub struct ControlConfig in "control" {
        /// The Unix socket that `finetune` talks to. Whoever may open it may control the
        /// daemon (mode 0660). A relative path starts at state_dir.
        socket: PathBuf = r#""finetuned.sock""#, any();
    }

    /// The processes that train.
    pub struct WorkersConfig in "workers" {
        /// Jobs that are trained at the same time, each in a separate process. More than
        /// one pays only if memory and cores are plenty.
        parallel: usize = "1", any(), unit("jobs");

        /// Device of the workers. "auto" takes the best real GPU, or else the CPU; "cpu"
        /// never a GPU; "gpu" or "gpu:1" the first or second of `finetune device list`;
        /// "vulkan:0", "metal:0", "dx12:0" a GPU through that interface. "/f32" after a
        /// GPU's name computes matrix products in f32 instead of on its tensor cores
        /// (bf16, or f16 if it has no bf16; sums are always f32). A GPU is tested once per
        /// driver before it gets a job (`finetune device test`). One that was asked for
        /// and computes wrongly fails the job; one that is not there, or is lost during a
        /// run, pauses it (`finetune resume` goes on from its checkpoint): nothing falls
        /// back to the CPU in silence.
        device: DeviceName = r#""auto""#, any();

        /// Threads of one worker; 0: all cores.
        threads: Option<usize> = "0", any(), unit("threads");

        /// Most memory of one worker ("12GiB"); 0: no limit. A job that cannot fit is
        /// refused with the numbers instead of driving the machine into swap.
        memory: Option<u64> = "0", any();

        /// A worker that says nothing for this long is killed and its job fails (its
        /// checkpoint stays). Workers report every two seconds.
        heartbeat_timeout: Duration = r#""60s""#, at_least(1.0);

        /// A worker that is alive but finishes no step for this long is killed as well: a
        /// GPU's driver may hang and never say so. Set it well above your longest step.
        stall_timeout: Duration = r#""60m""#, at_least(1.0);

        /// How long a worker may take to end its step and write a checkpoint if the
        /// daemon stops or the job is paused. After that it is killed, and goes on from
        /// its last checkpoint.
        stop_timeout: Duration = r#""2m""#, at_least(0.1);
    }

    /// Limits of plugin libraries (`finetune plugin list`), which only workers load.
    pub struct PluginsConfig in "plugins" {
        /// A call of a plugin that takes longer than this has hung: it ends its worker
        /// and fails its job, with a line that names plugin and step. A loss takes some
        /// milliseconds per call; raise the limit for a plugin that asks somebody else.
        call_timeout: Duration = r#""60s""#, at_least(0.1);

        /// The most by which a worker may grow during one call, so that a plugin that
        /// eats memory ends alone. 0: no limit.
        call_memory: Option<u64> = r#""4GiB""#, any();

        /// How long a library may take to load and to say what it offers. A child process
        /// is asked for that before a job is queued.
        load_timeout: Duration = r#""10s""#, at_least(0.1);
    }

    /// Messages.
    pub struct LogConfig in "log" {
        /// How much the daemon tells on stderr: error, warn, info, debug, trace.
        level: LogLevel = r#""info""#, any();
    }
}

/// Every key outside `[recipe]`.
pub static KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| all(&SECTIONS));

/// The sections of `[recipe]`. The own parameters of the default optimizer are
/// among the keys, as its description declares them.
pub static RECIPE_SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    let mut sections = recipe::SECTIONS.clone();
    if let Some(section) = sections.iter_mut().find(|section| section.name == "optimizer") {
        for key in optimizer_keys() {
            if section.keys.iter().all(|known| known.path != key.path) {
                section.keys.push(key);
            }
        }
    }
    sections
});

/// Every key of `[recipe]`, without that prefix.
pub static RECIPE_KEYS: LazyLock<Vec<Key>> = LazyLock::new(|| all(&RECIPE_SECTIONS));

fn all(sections: &[Section]) -> Vec<Key> {
    sections.iter().flat_map(|section| section.keys.clone()).collect()
}

fn optimizer_keys() -> Vec<Key> {
    let name = Recipe::default().optimizer.name;
    let descriptors = finetuned_standard::BUILT_IN.iter().map(|plugin| (plugin.descriptor)());
    let found = descriptors
        .into_iter()
        .find(|descriptor| descriptor.kind == registry::Kind::Optimizer && descriptor.name == name);
    found.map(|descriptor| descriptor.parameters.0.iter().map(parameter_key).collect()).unwrap_or_default()
}

fn parameter_key(parameter: &Parameter) -> Key {
    let kind = match &parameter.kind {
        ParameterType::Number => Kind::Number,
        ParameterType::Integer => Kind::Whole,
        ParameterType::Boolean => Kind::Flag,
        ParameterType::Text | ParameterType::Choice(_) => Kind::Text,
    };
    let range = match (parameter.minimum, parameter.maximum) {
        (Some(least), Some(most)) => Range::Closed(least, most),
        (Some(least), None) => Range::AtLeast(least),
        (None, _) => Range::Any,
    };
    let default = match &parameter.default {
        Value::Number(number) if number.is_f64() => number.as_f64().toml(),
        other => toml::Value::try_from(other).ok().map(|value| value.to_string()),
    };
    Key::new("optimizer", &parameter.name, kind, range, default, &[&parameter.help])
}

/// The key of this name outside `[recipe]`.
pub fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// `FINETUNED_INBOX_SCAN_EVERY` for `inbox.scan_every`.
pub fn variable(path: &str) -> String {
    format!("FINETUNED_{}", path.replace('.', "_").to_uppercase())
}
