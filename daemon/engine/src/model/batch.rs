//! The tokens of a micro-batch as the decoder reads them.

use finetuned_shaders::Segments;

/// Documents one after another, without padding.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenBatch {
    /// The tokens of all documents.
    pub tokens: Vec<u32>,
    /// Where each document begins and ends.
    pub segments: Segments,
    /// Position of each token in its document.
    pub positions: Vec<u32>,
}

impl TokenBatch {
    /// Lays these documents out one after another.
    pub fn from_documents<'a>(documents: impl IntoIterator<Item = &'a [u32]>) -> TokenBatch {
        let mut tokens = Vec::new();
        let mut lengths = Vec::new();
        for document in documents {
            tokens.extend_from_slice(document);
            lengths.push(document.len());
        }
        let segments = Segments::from_lengths(lengths);
        let positions = segments.positions();
        TokenBatch { tokens, segments, positions }
    }

    /// The next tokens of one sequence, the first of them at `position`.
    pub fn continuing(tokens: &[u32], position: usize) -> TokenBatch {
        TokenBatch {
            tokens: tokens.to_vec(),
            segments: Segments::from_lengths([tokens.len()]),
            positions: (position..position + tokens.len()).map(|i| i as u32).collect(),
        }
    }
}
