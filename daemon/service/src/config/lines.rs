//! Where in a TOML file a key stands, so that an error can name the line.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use toml::de::{DeTable, DeValue};

/// A parsed TOML file whose keys still know their lines.
#[derive(Debug, Clone, Default)]
pub struct TomlFile {
    /// As the user wrote it; goes before `:line` in errors.
    pub name: String,
    pub table: toml::Table,
    /// Dotted key to line, from 1.
    lines: BTreeMap<String, usize>,
}

impl TomlFile {
    /// Parses `text`.
    ///
    /// # Errors
    /// `name:line: what the parser expected`.
    pub fn parse(name: &str, text: &str) -> anyhow::Result<TomlFile> {
        let document = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_at(text, span.start));
            anyhow::anyhow!("{name}:{line}: {}", error.message())
        })?;
        let mut lines = BTreeMap::new();
        collect(text, "", document.get_ref(), &mut lines);
        let table = text.parse::<toml::Table>().with_context(|| name.to_string())?;
        Ok(TomlFile { name: name.to_string(), table, lines })
    }

    /// Reads and parses a file.
    ///
    /// # Errors
    /// The file cannot be read, or is no TOML.
    pub fn read(path: &Path) -> anyhow::Result<TomlFile> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        TomlFile::parse(&path.display().to_string(), &text)
    }

    /// `name:line` of a dotted key, or of its nearest parent that is there.
    pub fn place(&self, key: &str) -> String {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return format!("{}:{line}", self.name);
            }
            match key.rsplit_once('.') {
                Some((parent, _)) => key = parent,
                None => return self.name.clone(),
            }
        }
    }

    /// The line of exactly this key.
    pub fn line(&self, key: &str) -> Option<usize> {
        self.lines.get(key).copied()
    }
}

fn collect(text: &str, prefix: &str, table: &DeTable<'_>, lines: &mut BTreeMap<String, usize>) {
    for (key, value) in table.iter() {
        let path = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        lines.insert(path.clone(), line_at(text, key.span().start));
        if let DeValue::Table(inner) = value.get_ref() {
            collect(text, &path, inner, lines);
        }
    }
}

fn line_at(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_know_their_lines() {
        let file = TomlFile::parse("f.toml", "# comment\nstate_dir = \"x\"\n\n[inbox]\nsettle = \"5s\"\n").unwrap();
        assert_eq!(file.place("state_dir"), "f.toml:2");
        assert_eq!(file.place("inbox.settle"), "f.toml:5");
        assert_eq!(file.place("inbox.absent"), "f.toml:4");
        assert_eq!(file.place("absent"), "f.toml");
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let error = TomlFile::parse("f.toml", "a = 1\nb = = 2\n").unwrap_err();
        assert!(error.to_string().starts_with("f.toml:2: "), "{error}");
    }
}
