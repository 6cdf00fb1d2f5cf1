//! Examples: the rows of a dataset after they became token ids.
//!
//! One type serves every kind of data, from the reader of a row to a
//! micro-batch. What differs between kinds is which documents an example has:
//!
//! | [`DataKind`] | documents of an example, in order |
//! | --- | --- |
//! | `Supervised` | one [`Role::Plain`] |
//! | `Pairs` | [`Role::Chosen`], then [`Role::Rejected`] |
//! | `Labelled` | [`Role::Completion`] with a label, perhaps then [`Role::KlCompletion`] |
//!
//! Every document holds its prompt, also where two documents share it. A step
//! computes the prompt once per document too, so the copy costs 5 bytes for a
//! token whose activations cost thousands; in return no reader of a document
//! has to join two parts.

pub use finetuned_plugin_api::alignment::DataKind;
pub use finetuned_plugin_api::loss::Role;

/// One token sequence of an example, and what a loss is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Token ids, prompt included; at least two.
    pub tokens: Vec<u32>,
    /// As long as `tokens`: whether token `i`, predicted from tokens `0..i`, is
    /// trained. Never true of the first token. In every role but
    /// [`Role::Plain`] the trained tokens are one run up to the end, the
    /// completion.
    pub trained: Vec<bool>,
    /// As long as `tokens`: weights of the trained tokens, finite and above
    /// zero. `None` if each trained token weighs 1.
    pub weights: Option<Vec<f32>>,
    /// What the document is in its example.
    pub role: Role,
    /// Whether the completion is a desirable one, in labelled data.
    pub label: Option<bool>,
    /// The row's `reward`, if it is a finite number. The same in every document
    /// of an example.
    pub reward: Option<f64>,
    /// The row's numbers in the columns that [`crate::DataOptions::columns`] asks
    /// for, in that order; finite. The same in every document of an example.
    pub columns: Vec<f64>,
}

impl Document {
    /// A document of supervised data.
    pub fn plain(tokens: Vec<u32>, trained: Vec<bool>) -> Self {
        Self { tokens, trained, weights: None, role: Role::Plain, label: None, reward: None, columns: Vec::new() }
    }

    /// A prompt and the completion that is trained after it.
    pub fn completion(prompt: &[u32], completion: &[u32], role: Role) -> Self {
        let tokens = [prompt, completion].concat();
        let trained = (0..tokens.len()).map(|index| index > 0 && index >= prompt.len()).collect();
        Self { role, ..Self::plain(tokens, trained) }
    }

    /// The better and the worse completion of a prompt.
    pub fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Vec<Self> {
        let sides = [(chosen, Role::Chosen), (rejected, Role::Rejected)];
        sides.map(|(completion, role)| Self::completion(prompt, completion, role)).into()
    }

    /// A completion with a verdict. `mismatched` is the completion of another
    /// prompt, for KTO's estimate of the divergence, if the row brings one.
    pub fn labelled(prompt: &[u32], completion: &[u32], label: bool, mismatched: Option<&[u32]>) -> Vec<Self> {
        let judged = Self { label: Some(label), ..Self::completion(prompt, completion, Role::Completion) };
        let mismatched = mismatched.map(|other| Self::completion(prompt, other, Role::KlCompletion));
        [judged].into_iter().chain(mismatched).collect()
    }

    /// Tokens in all.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the document has no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens before the first trained one; all of them if none is trained.
    pub fn prompt_len(&self) -> usize {
        self.trained.iter().position(|&trained| trained).unwrap_or(self.len())
    }

    /// The tokens before the first trained one.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len()]
    }

    /// The tokens from the first trained one on.
    pub fn answer(&self) -> &[u32] {
        &self.tokens[self.prompt_len()..]
    }

    /// Whether token `index` is trained.
    pub fn is_trained(&self, index: usize) -> bool {
        self.trained.get(index).copied().unwrap_or(false)
    }

    /// Number of trained tokens.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().filter(|&&trained| trained).count()
    }

    /// The weight of token `index`: 1 unless the row says otherwise.
    pub fn weight(&self, index: usize) -> f32 {
        self.weights.as_ref().and_then(|weights| weights.get(index).copied()).unwrap_or(1.0)
    }

    /// Cuts the document's end off so that at most `limit` tokens stay.
    pub(crate) fn truncate(&mut self, limit: usize) {
        self.tokens.truncate(limit);
        self.trained.truncate(limit);
        if let Some(weights) = &mut self.weights {
            weights.truncate(limit);
        }
    }
}

/// A row of the dataset as documents.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// At least one; see [the table](self).
    pub documents: Vec<Document>,
    /// Line of the row in its file, from 1.
    pub line: usize,
}

impl Example {
    /// An example of supervised data.
    pub fn plain(tokens: Vec<u32>, trained: Vec<bool>, line: usize) -> Self {
        Self { documents: vec![Document::plain(tokens, trained)], line }
    }

    /// A preference pair; see [`Document::pair`].
    pub fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32], line: usize) -> Self {
        Self { documents: Document::pair(prompt, chosen, rejected), line }
    }

    /// A completion with a verdict; see [`Document::labelled`].
    pub fn labelled(prompt: &[u32], completion: &[u32], label: bool, mismatched: Option<&[u32]>, line: usize) -> Self {
        Self { documents: Document::labelled(prompt, completion, label, mismatched), line }
    }

    /// The documents that are trained: all but a mismatched completion.
    pub fn trained_documents(&self) -> impl Iterator<Item = &Document> {
        self.documents.iter().filter(|document| document.role != Role::KlCompletion)
    }

    /// Tokens that a training step computes: a prompt counts once per document.
    pub fn step_tokens(&self) -> usize {
        self.trained_documents().map(Document::len).sum()
    }

    /// Tokens of the row: a prompt that documents share counts once.
    pub fn row_tokens(&self) -> usize {
        let shared = |(index, document): (usize, &Document)| if index == 0 { 0 } else { document.prompt_len() };
        self.step_tokens() - self.trained_documents().enumerate().map(shared).sum::<usize>()
    }

    /// Trained tokens of all documents.
    pub fn trained_tokens(&self) -> usize {
        self.trained_documents().map(Document::trained_tokens).sum()
    }

    /// Tokens of the longest document.
    pub fn longest(&self) -> usize {
        self.documents.iter().map(Document::len).max().unwrap_or(0)
    }
}

/// The examples of a dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// What each of them holds.
    pub kind: DataKind,
    /// Most tokens that a document may have, also one that is made later from
    /// a prompt and another row's completion.
    pub sequence_length: usize,
    /// In the order of the file.
    pub list: Vec<Example>,
}

impl Examples {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Tokens that a training step computes for each example, in order: the
    /// lengths that [`crate::epoch_rows`] packs.
    pub fn lengths(&self) -> Vec<usize> {
        self.list.iter().map(Example::step_tokens).collect()
    }

    /// Trained tokens of all examples.
    pub fn trained_tokens(&self) -> usize {
        self.list.iter().map(Example::trained_tokens).sum()
    }

    /// Tokens of all rows, a shared prompt once.
    pub fn row_tokens(&self) -> usize {
        self.list.iter().map(Example::row_tokens).sum()
    }

    /// Tokens of the longest document that a step may run, those included that
    /// join a prompt and another row's completion.
    pub fn longest_document(&self) -> usize {
        let all = || self.list.iter().flat_map(|example| &example.documents);
        let longest = all().map(Document::len).max().unwrap_or(0);
        if self.kind != DataKind::Labelled {
            return longest;
        }
        let prompt = all().map(Document::prompt_len).max().unwrap_or(0);
        let completion = all().map(|document| document.answer().len()).max().unwrap_or(0);
        longest.max((prompt + completion).min(self.sequence_length))
    }
}
