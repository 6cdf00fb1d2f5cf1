//! One message of a conversation.

use serde_json::{Map, Value};

/// A message as chat templates see it: a role, a text, and whatever else the
/// row brought (`tool_calls`, `reasoning_content`, `name`, …).
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Weight of each token of an assistant's message in the loss, finite and
    /// not negative; 0 (`weight: 0`, `train: false`) leaves it out of training.
    /// Means nothing on other roles.
    pub weight: f32,
    /// Other keys, passed on to the template as they are.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message with nothing but a role and a text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), weight: 1.0, extra: Map::new() }
    }

    /// A message from the system.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A message from the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message from the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// Whether the message, if the assistant's, is trained on.
    pub fn is_trained(&self) -> bool {
        self.weight > 0.0
    }

    /// Whether the model wrote it.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant"
    }
}
