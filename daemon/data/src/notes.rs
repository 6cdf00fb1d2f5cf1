//! What is worth knowing of a row that is used: facts that are counted over a file and
//! become sentences of its report. All their words are in this file.

use std::collections::BTreeMap;

/// Something about a row that is used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fact {
    /// A key of the row, or of its messages, that nothing reads.
    UnusedKey(String),
    /// A trained text holds a special token, written out.
    SpecialInAnswer,
    /// Another text holds a special token, written out.
    SpecialInPrompt,
    /// The template writes the answer of an earlier turn without its reasoning.
    ThoughtLeftOut,
    /// The template writes no message's reasoning that stands under its own key.
    ReasoningLeftOut,
    /// The template does not write the list of tools.
    ToolsLeftOut,
    /// Messages behind the last answer.
    BehindTheLastAnswer,
    /// What the template writes before an answer that does not have it.
    WrittenBeforeAnswer(String),
    /// A completion begins with its prompt's text.
    RepeatsPrompt,
    /// More tokens than the model was made for.
    BeyondContext,
}

/// Facts, each with the number of rows that it is true of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts(BTreeMap<Fact, usize>);

/// `1 row`, `2 rows`.
pub(crate) fn rows(count: usize) -> String {
    if count == 1 { "1 row".into() } else { format!("{count} rows") }
}

/// The verb that goes with [`rows`].
pub(crate) fn verb(count: usize, one: &'static str, more: &'static str) -> String {
    format!("{} {}", rows(count), if count == 1 { one } else { more })
}

impl Facts {
    /// Counts a row's facts, each once.
    pub fn count(&mut self, mut facts: Vec<Fact>) {
        facts.sort_unstable();
        facts.dedup();
        for fact in facts {
            *self.0.entry(fact).or_default() += 1;
        }
    }

    /// The keys that nothing reads, with the number of rows that have each.
    pub fn unused_keys(&self) -> BTreeMap<String, usize> {
        let unused = |(fact, count): (&Fact, &usize)| match fact {
            Fact::UnusedKey(key) => Some((key.clone(), *count)),
            _ => None,
        };
        self.0.iter().filter_map(unused).collect()
    }

    /// The facts as sentences, without the unused keys. `context`: see
    /// [`crate::DataOptions::context`].
    pub fn words(&self, context: usize) -> Vec<String> {
        self.0.iter().filter_map(|(fact, &count)| words(fact, count, context)).collect()
    }
}

fn words(fact: &Fact, count: usize, context: usize) -> Option<String> {
    Some(match fact {
        Fact::UnusedKey(_) => return None,
        Fact::SpecialInAnswer => {
            format!("{} special tokens of the model, written out in the assistant's text", verb(count, "holds", "hold"))
        }
        Fact::SpecialInPrompt => format!(
            "{} special tokens of the model, written out in a text that is not the assistant's: they read as the ends \
             and beginnings of turns",
            verb(count, "holds", "hold")
        ),
        Fact::ThoughtLeftOut => format!(
            "the chat template leaves out the reasoning of earlier answers (in {}): these answers teach to answer \
             without reasoning",
            rows(count)
        ),
        Fact::ReasoningLeftOut => format!(
            "the chat template does not write `reasoning_content` (in {}): the reasoning is not trained",
            rows(count)
        ),
        Fact::ToolsLeftOut => format!(
            "the chat template does not write the list of `tools` (in {}): the model does not see it",
            rows(count)
        ),
        Fact::BehindTheLastAnswer => {
            format!("{} messages behind the last answer, which are left out", verb(count, "has", "have"))
        }
        Fact::WrittenBeforeAnswer(text) => format!(
            "the chat template writes {text:?} before answers that do not have it (in {}), and it is trained as the \
             beginning of the answer",
            rows(count)
        ),
        Fact::RepeatsPrompt => format!(
            "{} a completion that begins with the prompt's text: the model learns to repeat the prompt",
            verb(count, "has", "have")
        ),
        Fact::BeyondContext => format!(
            "{} longer than the {context} tokens that the model was made for: lower train.sequence_length",
            verb(count, "is", "are")
        ),
    })
}
