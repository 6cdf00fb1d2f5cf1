//! Examples: token ids, and which of them are targets.

/// One document for supervised training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// As long as `tokens`; `trained[i]` says that token `i` is a target,
    /// predicted from tokens `0..i`. `trained[0]` is always false.
    pub trained: Vec<bool>,
    /// Line of the row in its file, from 1.
    pub line: usize,
}

/// A preference: of two completions of one prompt, the better and the worse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairExample {
    /// Token ids both completions begin with, at least one.
    pub prompt: Vec<u32>,
    /// The better completion, with its end-of-turn token.
    pub chosen: Vec<u32>,
    /// The worse completion, with its end-of-turn token.
    pub rejected: Vec<u32>,
    /// Line of the row in its file, from 1.
    pub line: usize,
}

/// A completion with a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelledExample {
    /// Token ids of the prompt, at least one.
    pub prompt: Vec<u32>,
    /// The completion, with its end-of-turn token.
    pub completion: Vec<u32>,
    /// True where the completion is one to be learned.
    pub label: bool,
    /// A completion of another prompt, where the file brings its own for
    /// KTO's estimate of the divergence.
    pub kl_completion: Option<Vec<u32>>,
    /// Line of the row in its file, from 1.
    pub line: usize,
}

/// All examples of a dataset, of the one kind it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Examples {
    /// For losses over single documents.
    Supervised(Vec<Example>),
    /// For preference methods (DPO and its relatives).
    Pairs(Vec<PairExample>),
    /// For KTO.
    Labelled(Vec<LabelledExample>),
}

impl Examples {
    /// Number of examples.
    pub fn len(&self) -> usize {
        match self {
            Self::Supervised(rows) => rows.len(),
            Self::Pairs(rows) => rows.len(),
            Self::Labelled(rows) => rows.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens a training step computes for each example, in order: a pair
    /// counts its prompt twice, once for each completion. The lengths
    /// [`crate::epoch_rows`] packs.
    pub fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Supervised(rows) => rows.iter().map(|row| row.tokens.len()).collect(),
            Self::Pairs(rows) => {
                rows.iter().map(|row| 2 * row.prompt.len() + row.chosen.len() + row.rejected.len()).collect()
            }
            Self::Labelled(rows) => rows.iter().map(|row| row.prompt.len() + row.completion.len()).collect(),
        }
    }

    /// Targets of each example, in order.
    pub fn trained_tokens(&self) -> Vec<usize> {
        match self {
            Self::Supervised(rows) => {
                rows.iter().map(|row| row.trained.iter().filter(|&&trained| trained).count()).collect()
            }
            Self::Pairs(rows) => rows.iter().map(|row| row.chosen.len() + row.rejected.len()).collect(),
            Self::Labelled(rows) => rows.iter().map(|row| row.completion.len()).collect(),
        }
    }
}
