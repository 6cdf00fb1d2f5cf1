//! What the daemon's keys may hold, read from TOML.

use std::path::{Path, PathBuf};
use std::time::Duration;

use finetuned_engine::keys::{Kind, Range};
use finetuned_plugin_api::suggest::nearest;
use strum::{EnumString, IntoStaticStr, VariantNames};

/// What happens to a dataset whose job has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames)]
#[strum(serialize_all = "lowercase")]
pub enum After {
    /// It stays.
    Leave,
    /// It goes to `_done/` or `_failed/`.
    Move,
}

/// How much the daemon tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, EnumString, VariantNames, IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum LogLevel {
    /// What failed.
    Error,
    /// And what may be wrong.
    Warn,
    /// And what happens.
    Info,
    /// And how.
    Debug,
    /// Everything.
    Trace,
}

/// A device as a user names it; the words were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceName(pub String);

/// What relative paths start at.
#[derive(Debug, Clone)]
pub struct Places {
    /// The home folder, for `~/`.
    pub home: Option<PathBuf>,
    /// The folder that a relative path starts at.
    pub base: PathBuf,
}

impl Places {
    fn expand(&self, text: &str) -> PathBuf {
        let path = match (text.strip_prefix("~/"), &self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        };
        absolute(&path, &self.base)
    }
}

/// Why a value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// It must be this.
    Expected(String),
    /// Another reason, in a sentence.
    Reason(String),
}

fn expected(words: impl Into<String>) -> Wrong {
    Wrong::Expected(words.into())
}

/// A type that a key of the daemon may have.
pub trait Setting: Sized {
    /// How its values are written.
    const KIND: Kind;

    /// The value in TOML as this type.
    ///
    /// # Errors
    /// A value of another kind or outside the range.
    fn read(value: &toml::Value, range: Range, places: &Places) -> Result<Self, Wrong>;
}

fn text(value: &toml::Value) -> Result<&str, Wrong> {
    value.as_str().ok_or_else(|| expected("a text"))
}

impl Setting for PathBuf {
    const KIND: Kind = Kind::Path;

    fn read(value: &toml::Value, _: Range, places: &Places) -> Result<Self, Wrong> {
        Ok(places.expand(text(value)?))
    }
}

impl Setting for Vec<PathBuf> {
    const KIND: Kind = Kind::Paths;

    fn read(value: &toml::Value, _: Range, places: &Places) -> Result<Self, Wrong> {
        let texts: Option<Vec<&str>> = match value {
            toml::Value::String(one) => Some(vec![one]),
            toml::Value::Array(many) => many.iter().map(toml::Value::as_str).collect(),
            _ => None,
        };
        let texts = texts.ok_or_else(|| expected("a list of paths"))?;
        Ok(texts.into_iter().map(|text| places.expand(text)).collect())
    }
}

impl Setting for Duration {
    const KIND: Kind = Kind::Duration;

    fn read(value: &toml::Value, range: Range, _: &Places) -> Result<Self, Wrong> {
        let parsed = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
        let duration = parsed.ok_or_else(|| expected("a duration such as \"30s\", \"250ms\" or \"10m\""))?;
        match range {
            Range::AtLeast(least) if duration.as_secs_f64() < least => {
                let least = humantime::format_duration(Duration::from_secs_f64(least));
                Err(expected(format!("at least {least}")))
            }
            _ => Ok(duration),
        }
    }
}

impl Setting for usize {
    const KIND: Kind = Kind::Whole;

    fn read(value: &toml::Value, _: Range, _: &Places) -> Result<Self, Wrong> {
        let parsed = value.as_integer().and_then(|number| usize::try_from(number).ok());
        parsed.ok_or_else(|| expected("a whole number, not negative"))
    }
}

/// `None` if the number is 0.
impl Setting for Option<usize> {
    const KIND: Kind = Kind::Whole;

    fn read(value: &toml::Value, range: Range, places: &Places) -> Result<Self, Wrong> {
        Ok(Some(usize::read(value, range, places)?).filter(|&number| number > 0))
    }
}

/// Bytes; `None` if there are 0.
impl Setting for Option<u64> {
    const KIND: Kind = Kind::Bytes;

    fn read(value: &toml::Value, _: Range, _: &Places) -> Result<Self, Wrong> {
        let parsed = match value {
            toml::Value::Integer(number) => u64::try_from(*number).ok(),
            toml::Value::String(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        };
        let bytes = parsed.ok_or_else(|| expected("a size such as \"8GiB\" or a number of bytes"))?;
        Ok(Some(bytes).filter(|&bytes| bytes > 0))
    }
}

fn word<T: std::str::FromStr + VariantNames>(value: &toml::Value) -> Result<T, Wrong> {
    let text = text(value)?;
    text.parse().map_err(|_| {
        let hint = nearest(text, T::VARIANTS.iter().copied()).map(|near| format!(" (did you mean \"{near}\"?)"));
        expected(format!("one of {}{}", T::VARIANTS.join(", "), hint.unwrap_or_default()))
    })
}

impl Setting for After {
    const KIND: Kind = Kind::Word(After::VARIANTS);

    fn read(value: &toml::Value, _: Range, _: &Places) -> Result<Self, Wrong> {
        word(value)
    }
}

impl Setting for LogLevel {
    const KIND: Kind = Kind::Word(LogLevel::VARIANTS);

    fn read(value: &toml::Value, _: Range, _: &Places) -> Result<Self, Wrong> {
        word(value)
    }
}

impl Setting for DeviceName {
    const KIND: Kind = Kind::Text;

    fn read(value: &toml::Value, _: Range, _: &Places) -> Result<Self, Wrong> {
        let words = text(value)?;
        match finetuned_engine::devices::check_words(words) {
            Ok(()) => Ok(DeviceName(words.to_string())),
            Err(error) => Err(Wrong::Reason(error.to_string())),
        }
    }
}

/// `path` under `base`, without `.` and `..` steps, so that two names of one
/// folder compare equal.
pub fn absolute(path: &Path, base: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in base.join(path).components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    clean
}
