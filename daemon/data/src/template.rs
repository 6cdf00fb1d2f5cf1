//! Chat templates: the Jinja that a model's authors wrote to turn messages
//! into the model's own text, rendered as transformers renders it.
//!
//! # Source
//! `transformers/utils/chat_template_utils.py`: trim_blocks and lstrip_blocks
//! on, loop controls, `raise_exception`, `strftime_now`, its own `tojson`, and
//! the `{% generation %}` tag.

use std::ops::Range;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::error::{DataError, Result};
use crate::message::Message;
use crate::python;

/// The layout of a model that brings no chat template: one headed paragraph per
/// message, an end-of-text token after each of the assistant's.
pub const PLAIN_TEMPLATE: &str = "\
{%- if add_bos and bos_token %}{{ bos_token }}{% endif %}
{%- for message in messages %}
    {{- '### ' + message.role[:1] | upper + message.role[1:] + ':\n' + message.content }}
    {%- if message.role == 'assistant' and eos_token %}{{ eos_token }}{% endif %}
    {{- '\n\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}";

/// Most work that one rendering may do, in the template engine's own unit (about
/// one per instruction or per 64 bytes). A conversation of a megabyte takes well
/// under a million. A template that never ends must not hang a job.
const FUEL: u64 = 20_000_000;

/// Characters that no text has (Unicode noncharacters). They mark the
/// `{% generation %}` blocks of a tracked rendering.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// The date that templates see if nobody sets one: the date that Llama 3.x's
/// templates fall back on. A dataset must give the same tokens tomorrow, or a
/// resumed run would not be the run that stopped.
pub const DEFAULT_NOW: DateTime = jiff::civil::date(2024, 7, 26).at(0, 0, 0, 0);

/// The texts of special tokens, which templates read under these names.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    pub add_bos: bool,
}

/// What a row may bring for the template besides messages.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Extras {
    pub tools: Option<serde_json::Value>,
    pub documents: Option<serde_json::Value>,
    /// Further variables of the template (TRL's `chat_template_kwargs`).
    pub arguments: serde_json::Map<String, serde_json::Value>,
}

/// The names that reasoning has in messages.
pub(crate) const REASONING_KEYS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    env: Environment<'static>,
    tokens: SpecialTokens,
    tagged: bool,
    source: String,
}

impl ChatTemplate {
    /// # Errors
    /// [`DataError::Template`] with the line of the template that is not Jinja.
    pub fn new(source: &str, tokens: SpecialTokens, now: DateTime) -> Result<Self> {
        let mut env = environment(now)?;
        // Jinja reads every kind of line end as a newline.
        let source = &source.replace("\r\n", "\n").replace('\r', "\n");
        let tagged = source.contains("generation") && rewrite_tags(source, false) != *source;
        env.add_template_owned("chat", rewrite_tags(source, false)).map_err(compile_error)?;
        if tagged {
            env.add_template_owned("tracked", rewrite_tags(source, true)).map_err(compile_error)?;
        }
        Ok(Self { env, tokens, tagged, source: source.clone() })
    }

    /// Whether the template names this key of messages.
    pub fn names(&self, key: &str) -> bool {
        self.source.contains(key)
    }

    /// Whether the template marks what the assistant wrote with `{% generation %}`.
    pub fn is_tagged(&self) -> bool {
        self.tagged
    }

    /// The text of `messages`, then the header of an assistant's turn if
    /// `add_generation_prompt`.
    ///
    /// # Errors
    /// [`DataError::Render`], with the template's own words if it refuses
    /// the messages (`raise_exception`).
    pub fn render(&self, messages: &[Value], extras: &Extras, add_generation_prompt: bool) -> Result<String> {
        self.run("chat", messages, extras, add_generation_prompt)
    }

    /// Byte ranges of the `{% generation %}` blocks in the text that
    /// [`Self::render`] returns without a generation prompt.
    pub fn generation_spans(&self, messages: &[Value], extras: &Extras) -> Result<Vec<Range<usize>>> {
        let marked = self.run("tracked", messages, extras, false)?;
        let (mut spans, mut open, mut at) = (Vec::new(), None, 0);
        for c in marked.chars() {
            match c {
                OPEN => open = Some(at),
                CLOSE => spans.extend(open.take().map(|start| start..at)),
                c => at += c.len_utf8(),
            }
        }
        Ok(spans)
    }

    fn run(&self, name: &str, messages: &[Value], extras: &Extras, add_generation_prompt: bool) -> Result<String> {
        let template = self.env.get_template(name).map_err(compile_error)?;
        // transformers passes absent tools and documents as None, and leaves out
        // special tokens that are not set. Templates tell the two apart.
        let mut context: Vec<(&str, Value)> = vec![
            ("messages", Value::from(messages.to_vec())),
            ("tools", extras.tools.as_ref().map_or(Value::from(()), json_value)),
            ("documents", extras.documents.as_ref().map_or(Value::from(()), json_value)),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("add_bos", Value::from(self.tokens.add_bos)),
        ];
        for (key, token) in [
            ("bos_token", &self.tokens.bos),
            ("eos_token", &self.tokens.eos),
            ("pad_token", &self.tokens.pad),
            ("unk_token", &self.tokens.unk),
        ] {
            if let Some(token) = token {
                context.push((key, Value::from(token.as_str())));
            }
        }
        context.extend(extras.arguments.iter().map(|(key, value)| (key.as_str(), json_value(value))));
        template.render(Value::from_pairs(context)).map_err(|error| DataError::Render(render_error(&error)))
    }
}

/// A message as templates see it. Reasoning is passed under each of its names,
/// as transformers does.
pub(crate) fn message_value(message: &Message) -> Value {
    let mut pairs: Vec<(&str, Value)> =
        vec![("role", Value::from(message.role.as_str())), ("content", Value::from(message.content.as_str()))];
    for (key, value) in &message.extra {
        pairs.push((key.as_str(), json_value(value)));
    }
    let reasoning = REASONING_KEYS.iter().find_map(|key| message.extra.get(*key).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning {
        for key in ["thinking", "reasoning_content"] {
            if key == "reasoning_content" || !message.extra.contains_key(key) {
                pairs.retain(|(name, _)| *name != key);
                pairs.push((key, json_value(reasoning)));
            }
        }
    }
    Value::from_pairs(pairs)
}

/// JSON as the template's values, keys in their order.
fn json_value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => number.as_f64().map_or(Value::from(()), Value::from),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(json_value).collect(),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), json_value(value)))),
    }
}

fn environment(now: DateTime) -> Result<Environment<'static>> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(compile_error)?;
    env.set_syntax(syntax);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_formatter(|out, _, value| out.write_str(&python::str_of(value)?).map_err(Error::from));
    env.set_unknown_method_callback(python_method);
    env.add_filter("tojson", python::tojson);
    env.add_filter("string", |value: &Value| python::str_of(value));
    // Python cannot iterate over None; this engine can.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    env.add_function("strftime_now", move |format: String| -> Result<String, Error> {
        jiff::fmt::strtime::format(&format, now)
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    });
    Ok(env)
}

/// Begins the detail of an error that the template raised itself.
const RAISED: &str = "raise_exception: ";

fn render_error(error: &Error) -> String {
    let detail = error.detail().unwrap_or_default();
    if let Some(message) = detail.strip_prefix(RAISED) {
        return format!("the chat template refuses this conversation: {message}");
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return "the chat template did not come to an end".into();
    }
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let reason = if detail.is_empty() { error.kind().to_string() } else { detail.to_owned() };
    format!("the chat template failed{line}: {reason}")
}

fn compile_error(error: Error) -> DataError {
    let line = error.line().map(|line| format!("line {line}: ")).unwrap_or_default();
    DataError::Template(format!("{line}{}", error.detail().unwrap_or("is not valid Jinja")))
}

/// Python's string methods that `pycompat` lacks.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let (ValueKind::String, Some(text)) = (value.kind(), value.as_str()) {
        match method {
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "partition" | "rpartition" => {
                let (separator,): (&str,) = from_args(args)?;
                let found =
                    if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
                let parts = match (found, method) {
                    (Some((before, after)), _) => [before, separator, after],
                    (None, "partition") => [text, "", ""],
                    (None, _) => ["", "", text],
                };
                return Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())));
            }
            "rsplit" => {
                let (separator, times): (&str, Option<usize>) = from_args(args)?;
                let times = times.map_or(usize::MAX, |times| times.saturating_add(1));
                let mut parts: Vec<&str> = text.rsplitn(times, separator).collect();
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which the engine does not
/// know, by blocks that do nothing (or print the markers). The tags' whitespace
/// control is kept.
fn rewrite_tags(source: &str, track: bool) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let Some(length) = rest.find("%}").map(|end| end + 2) else { break };
        let tag = &rest[..length];
        let inner = &tag[2..length - 2];
        let left = if inner.starts_with(['-', '+']) { &inner[..1] } else { "" };
        let right = if inner.len() > 1 && inner.ends_with(['-', '+']) { &inner[inner.len() - 1..] } else { "" };
        let word = inner[left.len()..inner.len() - right.len()].trim();
        // Inside a string or a raw block this text would be no tag. No template
        // is known that has it there.
        match (word, track) {
            ("generation", false) => out.push_str(&format!("{{%{left} if true {right}%}}")),
            ("endgeneration", false) => out.push_str(&format!("{{%{left} endif {right}%}}")),
            ("generation", true) => out.push_str(&format!("{{%{left} if true +%}}{OPEN}{{%+ if true {right}%}}")),
            ("endgeneration", true) => {
                out.push_str(&format!("{{%{left} endif +%}}{CLOSE}{{%+ endif {right}%}}"));
            }
            _ => {
                out.push_str("{%");
                rest = &rest[2..];
                continue;
            }
        }
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
