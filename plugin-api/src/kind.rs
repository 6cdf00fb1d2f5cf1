//! The three kinds of plugin.

use std::fmt;

/// What a plugin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum Kind {
    /// A [`Loss`](crate::loss::Loss).
    Loss = 0,
    /// An [`Optimizer`](crate::optimizer::Optimizer).
    Optimizer = 1,
    /// An [`Alignment`](crate::alignment::Alignment) method.
    Alignment = 2,
}

impl Kind {
    /// Every kind, in the order of its number.
    pub const ALL: [Kind; 3] = [Kind::Loss, Kind::Optimizer, Kind::Alignment];

    /// The word in recipes, on the command line and in descriptors.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Loss => "loss",
            Kind::Optimizer => "optimizer",
            Kind::Alignment => "alignment",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}
