//! What a row says, whatever its format.

use crate::message::Message;
use crate::template::Extras;

/// What a row says, whatever its format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    /// A conversation. The assistant's messages are trained.
    Chat { messages: Vec<Message>, extras: Extras },
    /// A prompt and its completion: a user's message and the assistant's if there is
    /// a chat template, else one text after the other.
    Completion { prompt: String, completion: String },
    /// A document that is trained whole.
    Text(String),
    /// Token ids, which of them are trained, and with what weights.
    Tokens { ids: Vec<u32>, trained: Vec<bool>, weights: Option<Vec<f32>> },
    /// Two completions, the better one first.
    Pair { prompt: Prompt, chosen: Vec<Message>, rejected: Vec<Message>, extras: Extras },
    /// Two completions as token ids.
    PairTokens { prompt: Vec<u32>, chosen: Vec<u32>, rejected: Vec<u32> },
    /// A completion and its verdict.
    Labelled { prompt: Prompt, completion: Vec<Message>, label: bool, extras: Extras },
    /// The same as token ids.
    LabelledTokens { prompt: Vec<u32>, completion: Vec<u32>, label: bool, kl_completion: Option<Vec<u32>> },
}

impl Content {
    /// Bytes of text that become tokens; 0 for token ids.
    pub fn text_bytes(&self) -> usize {
        let of = |messages: &[Message]| messages.iter().map(|message| message.content.len()).sum::<usize>();
        let before = |prompt: &Prompt| match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Messages(messages) => of(messages),
        };
        match self {
            Self::Chat { messages, .. } => of(messages),
            Self::Completion { prompt, completion } => prompt.len() + completion.len(),
            Self::Text(text) => text.len(),
            // A row is as long as the longer of its sides.
            Self::Pair { prompt, chosen, rejected, .. } => before(prompt) + of(chosen).max(of(rejected)),
            Self::Labelled { prompt, completion, .. } => before(prompt) + of(completion),
            Self::Tokens { .. } | Self::PairTokens { .. } | Self::LabelledTokens { .. } => 0,
        }
    }
}

/// What comes before a completion.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// One text; completions are single assistant messages.
    Text(String),
    /// Messages.
    Messages(Vec<Message>),
}

impl Prompt {
    /// As messages: a text is the user's.
    pub fn into_messages(self) -> Vec<Message> {
        match self {
            Self::Text(text) => vec![Message::user(text)],
            Self::Messages(messages) => messages,
        }
    }
}
