//! A key that users set, declared once.
//!
//! `keys!` takes a section's keys: type, default, range and the text that
//! teaches it. From these it makes the struct with its documentation and defaults,
//! and the list of [`Key`]s that everything else reads: the check of a recipe,
//! `config/finetuned.toml`, `finetune config show`, `finetune config schema`, and
//! the comparison of a resumed run with the one it goes on from.

use std::collections::BTreeMap;

use finetuned_data::{TooLong, TrainOn};
use serde::Serialize;

/// What a value is written as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number, not negative.
    Whole,
    /// A number.
    Number,
    /// Any text.
    Text,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One word, or a list of names.
    Names(&'static str),
    /// A table from names to values of this kind.
    Table(&'static Kind),
    /// A plugin: its name, or a table with `name` and the plugin's own parameters.
    Plugin,
    /// A path; `~/` is the home folder, and a relative path starts at the state
    /// folder (for `state_dir` itself: at the file's folder).
    Path,
    /// A list of paths, or one path. A variable joins them by `:`.
    Paths,
    /// `"30s"`, `"250ms"`, `"10m"`.
    Duration,
    /// Bytes, as a number or as text: `"8GiB"`.
    Bytes,
}

/// The numbers that a key accepts. A duration counts in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Range {
    /// Every number, and every value that is not a number.
    Any,
    /// This number or more.
    AtLeast(f64),
    /// More than this number.
    Above(f64),
    /// The first number or more, and less than the second.
    HalfOpen(f64, f64),
    /// The first number or more, and the second or less.
    Closed(f64, f64),
}

/// Every value of the type.
pub fn any() -> Range {
    Range::Any
}

/// This number or more.
pub fn at_least(least: impl Into<f64>) -> Range {
    Range::AtLeast(least.into())
}

/// More than this number.
pub fn above(bound: impl Into<f64>) -> Range {
    Range::Above(bound.into())
}

/// A share: 0 or more, and less than 1.
pub fn share() -> Range {
    Range::HalfOpen(0.0, 1.0)
}

impl Range {
    /// Why this number is refused, if it is. Infinity and NaN are in no range but
    /// [`Range::Any`].
    pub fn refuses(&self, value: f64) -> Option<String> {
        let (fits, rule) = match *self {
            Range::Any => return None,
            Range::AtLeast(least) => (value >= least, format!("at least {least}")),
            Range::Above(bound) => (value > bound, format!("above {bound}")),
            Range::HalfOpen(least, bound) => {
                (value >= least && value < bound, format!("at least {least} and below {bound}"))
            }
            Range::Closed(least, most) => {
                (value >= least && value <= most, format!("at least {least} and at most {most}"))
            }
        };
        if fits && value.is_finite() { None } else { Some(format!("{value} must be {rule}")) }
    }
}

/// One key, as it was declared.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// The dotted path: `train.epochs`.
    pub path: String,
    /// What its value is written as.
    pub kind: Kind,
    /// The values that it accepts.
    pub range: Range,
    /// The default as TOML; `None` if the key is unset.
    pub default: Option<String>,
    /// What happens if the key is unset, in a few words.
    pub unset: &'static str,
    /// A value for the documentation of a key that has no default.
    pub example: Option<&'static str>,
    /// What its number counts; empty if the help says so or the kind has none.
    pub unit: &'static str,
    /// The text that teaches the key, line by line.
    pub help: Vec<String>,
    /// Whether the key changes the bits of a run's result. One that does not may
    /// differ if a run is resumed.
    pub changes_result: bool,
}

impl Key {
    /// A key of this section (empty: at the root) with its default as TOML.
    pub fn new(section: &str, name: &str, kind: Kind, range: Range, default: Option<String>, help: &[&str]) -> Key {
        Key {
            path: if section.is_empty() { name.to_string() } else { format!("{section}.{name}") },
            kind,
            range,
            default,
            unset: "unset",
            example: None,
            unit: "",
            help: help.iter().map(|line| line.trim().to_string()).collect(),
            changes_result: true,
        }
    }

    /// What holds while the key is unset.
    #[must_use]
    pub fn unset(self, words: &'static str) -> Key {
        Key { unset: words, ..self }
    }

    /// A value for the documentation.
    #[must_use]
    pub fn example(self, value: &'static str) -> Key {
        Key { example: Some(value), ..self }
    }

    /// What the number counts.
    #[must_use]
    pub fn unit(self, unit: &'static str) -> Key {
        Key { unit, ..self }
    }

    /// The key changes no bit of the result.
    #[must_use]
    pub fn changes_no_bit(self) -> Key {
        Key { changes_result: false, ..self }
    }

    /// The name without its section.
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// The default as TOML, or the words for an unset key.
    pub fn default_words(&self) -> &str {
        self.default.as_deref().unwrap_or(self.unset)
    }

    /// Why the range refuses this value, if it does. A value of another type is
    /// the type's to refuse.
    pub fn refuses(&self, value: &toml::Value) -> Option<String> {
        match value {
            toml::Value::Integer(number) => self.range.refuses(*number as f64),
            toml::Value::Float(number) => self.range.refuses(*number),
            _ => None,
        }
    }
}

/// A section of keys, in the order of the documentation.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// Its name; empty for the keys at the root.
    pub name: String,
    /// What the section is about, line by line.
    pub about: Vec<String>,
    /// Its keys.
    pub keys: Vec<Key>,
}

impl Section {
    /// A section with its documentation.
    pub fn new(name: &str, about: &[&str], keys: Vec<Key>) -> Section {
        Section { name: name.into(), about: about.iter().map(|line| line.trim().to_string()).collect(), keys }
    }
}

/// The value at a dotted path.
pub fn lookup<'a>(table: &'a toml::Table, path: &str) -> Option<&'a toml::Value> {
    match path.split_once('.') {
        None => table.get(path),
        Some((head, rest)) => lookup(table.get(head)?.as_table()?, rest),
    }
}

/// A type that a key of a recipe may have.
pub trait KeyValue: Serialize {
    /// How its values are written.
    const KIND: Kind;

    /// The value as TOML; `None` if there is none to write.
    fn toml(&self) -> Option<String> {
        toml::Value::try_from(self).ok().map(|value| value.to_string())
    }
}

macro_rules! key_values {
    ($($type:ty: $kind:expr),* $(,)?) => {
        $(impl KeyValue for $type { const KIND: Kind = $kind; })*
    };
}

key_values! {
    bool: Kind::Flag,
    usize: Kind::Whole,
    u64: Kind::Whole,
    String: Kind::Text,
    BTreeMap<String, usize>: Kind::Table(&Kind::Whole),
    BTreeMap<String, f64>: Kind::Table(&Kind::Number),
    TooLong: Kind::Word(<TooLong as strum::VariantNames>::VARIANTS),
    TrainOn: Kind::Word(<TrainOn as strum::VariantNames>::VARIANTS),
}

impl KeyValue for f64 {
    const KIND: Kind = Kind::Number;

    /// With an exponent if the number is small: `1e-8`.
    fn toml(&self) -> Option<String> {
        Some(format!("{self:?}"))
    }
}

impl<T: KeyValue> KeyValue for Option<T> {
    const KIND: Kind = T::KIND;

    fn toml(&self) -> Option<String> {
        self.as_ref()?.toml()
    }
}

/// Declares a section of a recipe:
///
/// ```text
/// keys! {
///     /// What the section is about.
///     pub struct TrainRecipe in "train" {
///         /// The text that teaches the key, and its documentation.
///         batch_size: usize = 8, at_least(1), unit("sequences");
///     }
/// }
/// ```
///
/// A key is `name: type = default, range` and facts of [`Key`] (`unit`, `unset`,
/// `example`, `changes_no_bit`). After the keys, `=> { name: type = default; }` holds
/// further sections. The macro makes the struct with its documentation, `Default`,
/// and `section()`, which lists the keys.
macro_rules! keys {
    (
        $(#[doc = $about:literal])*
        pub struct $name:ident in $section:literal {
            $(
                $(#[doc = $help:literal])*
                $field:ident: $type:ty = $default:expr, $range:expr $(, $fact:ident($($value:expr)?))*;
            )*
            $(=> { $( $(#[doc = $inner_help:literal])* $inner:ident: $inner_type:ty = $inner_default:expr; )* })?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $help])* pub $field: $type, )*
            $($( $(#[doc = $inner_help])* pub $inner: $inner_type, )*)?
        }

        impl Default for $name {
            fn default() -> Self {
                $name { $( $field: $default, )* $($( $inner: $inner_default, )*)? }
            }
        }

        impl $name {
            /// The section's keys, as they were declared.
            pub fn section() -> $crate::keys::Section {
                let defaults = $name::default();
                let keys = vec![$(
                    $crate::keys::Key::new(
                        $section,
                        stringify!($field),
                        <$type as $crate::keys::KeyValue>::KIND,
                        $range,
                        $crate::keys::KeyValue::toml(&defaults.$field),
                        &[$($help),*],
                    )
                    $( .$fact($($value)?) )*,
                )*];
                $crate::keys::Section::new($section, &[$($about),*], keys)
            }
        }
    };
}

pub(crate) use keys;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_refuses_in_words() {
        assert_eq!(above(0).refuses(0.0).unwrap(), "0 must be above 0");
        assert_eq!(share().refuses(1.0).unwrap(), "1 must be at least 0 and below 1");
        assert_eq!(at_least(2).refuses(1.0).unwrap(), "1 must be at least 2");
        for range in [above(0), share(), at_least(0)] {
            assert!(range.refuses(f64::NAN).is_some() && range.refuses(f64::INFINITY).is_some(), "{range:?}");
        }
        assert_eq!((any().refuses(f64::NAN), share().refuses(0.0), at_least(1).refuses(1.0)), (None, None, None));
    }
}
