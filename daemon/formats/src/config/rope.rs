//! Rotary position embeddings, as far as a config describes them.

use super::reader::Reader;
use crate::error::FormatError;
use serde_json::{Map, Value};

/// Rotary position embedding.
///
/// Pair `i` of a head's first `rotary_dim` elements turns by
/// `position · frequency(i)`; the halves of the head are the pairs
/// (transformers' `rotate_half`), not neighbours.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base: frequency(i) = theta^(-2i / rotary_dim), before scaling.
    pub theta: f64,
    /// How many of a head's elements turn.
    pub rotary_dim: usize,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How rope frequencies are stretched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: slow pairs divided by `factor`, fast ones kept, smooth between.
    Llama3 {
        /// What slow frequencies are divided by.
        factor: f64,
        /// A pair is slow if its wavelength exceeds `original_max_positions / low_freq_factor`.
        low_freq_factor: f64,
        /// A pair is fast if its wavelength is below `original_max_positions / high_freq_factor`.
        high_freq_factor: f64,
        /// The context length before it was stretched, in tokens.
        original_max_positions: usize,
    },
}

impl Rope {
    /// Radians per position of each of the `rotary_dim / 2` pairs, scaling applied.
    ///
    /// # Source
    /// transformers, `modeling_rope_utils.py`.
    pub fn frequencies(&self) -> Vec<f64> {
        (0..self.rotary_dim / 2)
            .map(|pair| {
                let plain = self.theta.powf(-2.0 * pair as f64 / self.rotary_dim as f64);
                plain / self.scaling.divisor(plain)
            })
            .collect()
    }
}

impl RopeScaling {
    /// What a pair of this unscaled frequency is divided by.
    pub fn divisor(&self, frequency: f64) -> f64 {
        match *self {
            RopeScaling::None => 1.0,
            RopeScaling::Linear { factor } => factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = original_max_positions as f64;
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original / high_freq_factor {
                    1.0
                } else if wavelength > original / low_freq_factor {
                    factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    1.0 / ((1.0 - smooth) / factor + smooth)
                }
            }
        }
    }
}

/// Reads one rope dictionary (`rope_parameters`, one layer type of it, or
/// `rope_scaling`); `None` and `null` mean no scaling.
pub(super) fn scaling(
    rope: Option<&Map<String, Value>>,
    key: &str,
    max_positions: usize,
    reader: &Reader<'_>,
) -> Result<RopeScaling, FormatError> {
    let Some(rope) = rope else {
        return Ok(RopeScaling::None);
    };
    let rope = Reader::within(rope, reader.path, key);
    let kind = match rope.text("rope_type")? {
        Some(kind) => Some(kind),
        None => rope.text("type")?,
    };
    match kind.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => {
            let factor = rope.number_needed("factor")?;
            at_least_one(&rope, factor)?;
            Ok(RopeScaling::Linear { factor })
        }
        "llama3" => {
            let factor = rope.number_needed("factor")?;
            at_least_one(&rope, factor)?;
            let low_freq_factor = rope.number_needed("low_freq_factor")?;
            let high_freq_factor = rope.number_needed("high_freq_factor")?;
            if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor) {
                return Err(rope.wrong(
                    "high_freq_factor",
                    "0 < low_freq_factor < high_freq_factor",
                    format!("low {low_freq_factor}, high {high_freq_factor}"),
                ));
            }
            Ok(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: rope.size("original_max_position_embeddings")?.unwrap_or(max_positions),
            })
        }
        other => Err(FormatError::UnsupportedRope { path: reader.path.to_path_buf(), kind: other.to_string() }),
    }
}

fn at_least_one(rope: &Reader<'_>, factor: f64) -> Result<(), FormatError> {
    if factor.is_finite() && factor >= 1.0 {
        Ok(())
    } else {
        Err(rope.wrong("factor", "a number of at least 1", factor.to_string()))
    }
}
