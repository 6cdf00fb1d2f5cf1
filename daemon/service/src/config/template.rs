//! `config/finetuned.toml`: every key, documented, switched off, with its default.
//! The file is written by `finetune config template`, and a test compares the two.

use finetuned_engine::keys::{Key, Section};

use super::keys::{RECIPE_SECTIONS, SECTIONS};

const HEAD: &str = "\
# finetuned.toml: the daemon's configuration, every key with its default.
# This file is made by `finetune config template`.
#
# A key that is written `#key = value` is switched off and shows its default;
# take the `#` away to change it. Copy this file to one of
#   ./finetuned.toml   ~/.config/finetuned/finetuned.toml   /etc/finetuned/finetuned.toml
# (the first one that exists is read), or name it with `finetuned --config FILE`.
#
# A flag wins over a variable (FINETUNED_INBOX_SETTLE=2s), a variable over this
# file, this file over the default. Check with `finetune config check`; see what
# is in force, and from where, with `finetune config show --origin`.
# After an edit: `finetune reload` (an invalid file changes nothing).
";

/// The documented file.
pub fn template() -> String {
    let mut text = HEAD.to_string();
    for section in SECTIONS.iter() {
        add_section(&mut text, "", section);
    }
    for section in RECIPE_SECTIONS.iter() {
        add_section(&mut text, "recipe", section);
    }
    text
}

fn add_section(text: &mut String, prefix: &str, section: &Section) {
    let name: Vec<&str> = [prefix, &section.name].into_iter().filter(|part| !part.is_empty()).collect();
    if !name.is_empty() {
        text.push('\n');
        add_comment(text, &section.about);
        *text += &format!("[{}]\n", name.join("."));
    }
    for (number, key) in section.keys.iter().enumerate() {
        if number > 0 || name.is_empty() {
            text.push('\n');
        }
        add_comment(text, &key.help);
        *text += &format!("#{} = {}\n", key.name(), shown_value(key));
    }
}

fn add_comment(text: &mut String, lines: &[String]) {
    for line in lines {
        *text += format!("# {line}").trim_end();
        text.push('\n');
    }
}

/// The default, or an example of a key that has none.
fn shown_value(key: &Key) -> &str {
    key.default.as_deref().or(key.example).unwrap_or("\"\"")
}
