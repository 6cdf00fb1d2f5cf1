//! State tensors: what a program keeps from step to step, and in which type.

use std::sync::LazyLock;

/// Elements of a block that share one scale in [`StateType::BlockwiseU8`].
pub const BLOCK: usize = 256;

/// How a state is kept. A program always sees f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateType {
    F32,
    /// 8 bits an element and one f32 scale (the largest magnitude) for each
    /// [`BLOCK`] elements in row-major order; codes of the dynamic map, for
    /// numbers of both signs or for non-negative ones (8-bit Optimizers via
    /// Block-wise Quantization, <https://arxiv.org/abs/2110.02861>).
    BlockwiseU8 {
        signed: bool,
    },
}

/// What a state holds before the first step.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initial {
    Constant(f32),
    /// A copy of the parameter; for states of its shape.
    Parameter,
}

/// A named state tensor of a program: (rows, columns), (rows, 1), (1, columns)
/// or (1, 1) of the parameter.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    pub name: String,
    pub rows: usize,
    pub columns: usize,
    #[serde(rename = "type")]
    pub kind: StateType,
    pub initial: Initial,
}

impl State {
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Bytes that it occupies.
    pub fn bytes(&self) -> usize {
        match self.kind {
            StateType::F32 => 4 * self.elements(),
            StateType::BlockwiseU8 { .. } => self.elements() + 4 * self.elements().div_ceil(BLOCK),
        }
    }

    pub(super) fn check(&self, rows: usize, columns: usize) -> Result<(), String> {
        let fits = |size: usize, full: usize| size == full || size == 1;
        if !fits(self.rows, rows) || !fits(self.columns, columns) {
            return Err(format!(
                "state '{}' has {} by {} elements, the parameter {rows} by {columns}",
                self.name, self.rows, self.columns
            ));
        }
        match self.initial {
            Initial::Constant(value) if !value.is_finite() => Err(format!("state '{}' starts at {value}", self.name)),
            Initial::Parameter if (self.rows, self.columns) != (rows, columns) => {
                Err(format!("state '{}' starts as the parameter but has another shape", self.name))
            }
            _ => Ok(()),
        }
    }
}

/// A state's memory, on the host.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum StateBuffer {
    F32(Vec<f32>),
    BlockwiseU8 { codes: Vec<u8>, scales: Vec<f32>, signed: bool },
}

/// A state's memory, borrowed: what an executor reads and writes.
#[derive(Debug)]
pub enum StateSlice<'a> {
    F32(&'a mut [f32]),
    /// One scale for each [`BLOCK`] codes.
    BlockwiseU8 {
        codes: &'a mut [u8],
        scales: &'a mut [f32],
        signed: bool,
    },
}

impl StateBuffer {
    /// As it is before the first step.
    pub fn new(state: &State, parameter: &[f32]) -> StateBuffer {
        let n = state.elements();
        let values = match state.initial {
            Initial::Constant(value) => vec![value; n],
            Initial::Parameter => parameter.to_vec(),
        };
        match state.kind {
            StateType::F32 => StateBuffer::F32(values),
            StateType::BlockwiseU8 { signed } => {
                let mut codes = vec![0; n];
                let mut scales = vec![0.0; n.div_ceil(BLOCK)];
                for ((values, codes), scale) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(&mut scales) {
                    *scale = codes::quantize(values, codes, signed);
                }
                StateBuffer::BlockwiseU8 { codes, scales, signed }
            }
        }
    }

    pub fn slice(&mut self) -> StateSlice<'_> {
        match self {
            StateBuffer::F32(values) => StateSlice::F32(values),
            StateBuffer::BlockwiseU8 { codes, scales, signed } => {
                StateSlice::BlockwiseU8 { codes, scales, signed: *signed }
            }
        }
    }
}

impl<'a> StateSlice<'a> {
    /// The elements before a place, and those from it on; an 8-bit slice is cut
    /// at a block's beginning or at its end.
    pub fn split_at(self, at: usize) -> (StateSlice<'a>, StateSlice<'a>) {
        match self {
            StateSlice::F32(values) => {
                let (head, tail) = values.split_at_mut(at);
                (StateSlice::F32(head), StateSlice::F32(tail))
            }
            StateSlice::BlockwiseU8 { codes, scales, signed } => {
                let (head, tail) = codes.split_at_mut(at);
                let (head_scales, tail_scales) = scales.split_at_mut(at.div_ceil(BLOCK));
                (
                    StateSlice::BlockwiseU8 { codes: head, scales: head_scales, signed },
                    StateSlice::BlockwiseU8 { codes: tail, scales: tail_scales, signed },
                )
            }
        }
    }

    pub fn elements(&self) -> usize {
        match self {
            StateSlice::F32(values) => values.len(),
            StateSlice::BlockwiseU8 { codes, .. } => codes.len(),
        }
    }

    /// Whether it is memory for that state.
    pub fn fits(&self, state: &State) -> bool {
        match (self, state.kind) {
            (StateSlice::F32(values), StateType::F32) => values.len() == state.elements(),
            (StateSlice::BlockwiseU8 { codes, scales, signed }, StateType::BlockwiseU8 { signed: wanted }) => {
                *signed == wanted && codes.len() == state.elements() && scales.len() == state.elements().div_ceil(BLOCK)
            }
            _ => false,
        }
    }

    /// The elements of a range as f32; an 8-bit range begins at a block.
    #[inline(always)]
    pub fn read(&self, start: usize, into: &mut [f32]) {
        match self {
            StateSlice::F32(values) => into.copy_from_slice(&values[start..start + into.len()]),
            StateSlice::BlockwiseU8 { codes, scales, signed } => {
                let codes = &codes[start..start + into.len()];
                let scales = &scales[start / BLOCK..];
                for ((codes, into), scale) in codes.chunks(BLOCK).zip(into.chunks_mut(BLOCK)).zip(scales) {
                    codes::dequantize(codes, *scale, *signed, into);
                }
            }
        }
    }

    /// Writes the elements of a range; an 8-bit range begins at a block and
    /// ends at one or at the end.
    #[inline(always)]
    pub fn write(&mut self, start: usize, from: &[f32]) {
        match self {
            StateSlice::F32(values) => values[start..start + from.len()].copy_from_slice(from),
            StateSlice::BlockwiseU8 { codes, scales, signed } => {
                let codes = &mut codes[start..start + from.len()];
                let scales = &mut scales[start / BLOCK..];
                for ((from, codes), scale) in from.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(scales) {
                    *scale = codes::quantize(from, codes, *signed);
                }
            }
        }
    }
}

/// The dynamic map: 256 numbers of magnitude up to 1, dense near zero in a
/// logarithmic way, as bitsandbytes makes it.
pub mod codes {
    use super::LazyLock;

    static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
    static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

    /// A codebook, and the way from a number to its nearest code.
    struct Map {
        /// In ascending order.
        code: [f32; 256],
        /// Half way from each code to the next; the last is +∞.
        middle: [f32; 256],
        /// For the top 15 bits of a magnitude's f32 (exponents of 2⁻³¹ to 1):
        /// the least code, of the positive ones, that it can have.
        first: [u32; CELLS],
    }

    const SIGN: u32 = 1 << 31;
    /// The magnitude bits dropped by [`Map::first`]: 7 of the mantissa's stay.
    const DROP: u32 = 16;
    /// Bits of 2⁻³¹: below lies nothing but the code of 0 (the least is 5.5e-7
    /// for non-negative numbers, whose half is above 2⁻³¹).
    const LOWEST: u32 = (127 - 31) << 23;
    /// Bits of 1.
    const HIGHEST: u32 = 127 << 23;
    const CELLS: usize = ((HIGHEST - LOWEST) >> DROP) as usize + 1;

    impl Map {
        fn new(signed: bool) -> Map {
            let code = dynamic_map(signed);
            let mut middle = [f32::INFINITY; 256];
            for i in 0..255 {
                middle[i] = 0.5 * (code[i] + code[i + 1]);
            }
            let mut first = [0; CELLS];
            for (index, first) in first.iter_mut().enumerate() {
                let least = f32::from_bits(LOWEST + ((index as u32) << DROP));
                let least = if index == 0 { 0.0 } else { least };
                *first = middle.partition_point(|middle| *middle < least) as u32;
            }
            Map { code, middle, first }
        }

        /// The nearest code of a number from 0 to 1; of two as near, the lower.
        ///
        /// No two half ways lie in one cell of [`Map::first`] (a test holds
        /// it), so one comparison is enough.
        #[inline(always)]
        fn nearest_positive(&self, x: f32) -> u32 {
            let index = (x.to_bits().clamp(LOWEST, HIGHEST) - LOWEST) >> DROP;
            // The mask says to the compiler what `first` holds anyway.
            let least = self.first[index as usize] & 255;
            least + u32::from(x > self.middle[least as usize])
        }
    }

    fn map(signed: bool) -> &'static Map {
        if signed { &SIGNED } else { &UNSIGNED }
    }

    /// `create_dynamic_map(signed, max_exponent_bits=7, total_bits=8)`.
    fn dynamic_map(signed: bool) -> [f32; 256] {
        let mut data: Vec<f32> = Vec::with_capacity(256);
        for i in 0..7u32 {
            let intervals = if signed { 1usize << i } else { 1usize << (i + 1) };
            // torch.linspace(0.1, 1, intervals + 1) in f32: from both ends, with fused multiply-add.
            let step = (1.0f32 - 0.1) / intervals as f32;
            let boundary = |k: usize| match k < intervals.div_ceil(2) {
                true => step.mul_add(k as f32, 0.1),
                false => (-step).mul_add((intervals - k) as f32, 1.0),
            };
            let decade = 10f64.powi(i as i32 - 6) as f32;
            for k in 0..intervals {
                let value = decade * ((boundary(k) + boundary(k + 1)) / 2.0);
                data.push(value);
                if signed {
                    data.push(-value);
                }
            }
        }
        data.push(0.0);
        data.push(1.0);
        data.resize(256, 0.0);
        data.sort_by(f32::total_cmp);
        let mut code = [0.0; 256];
        code.copy_from_slice(&data);
        code
    }

    /// The number that a code stands for, at a scale of 1.
    pub fn value(code: u8, signed: bool) -> f32 {
        map(signed).code[usize::from(code)]
    }

    /// Nearest codes of a block; returns its scale, the largest magnitude.
    ///
    /// A number that is not finite makes the scale so, and the whole block reads as
    /// not finite: a broken step stays visible.
    #[inline(always)]
    pub fn quantize(values: &[f32], codes: &mut [u8], signed: bool) -> f32 {
        let map = map(signed);
        // Magnitudes in order of their bits: a NaN's are above all others'.
        let largest = values.iter().fold(0, |largest, value| (value.to_bits() & !SIGN).max(largest));
        let scale = f32::from_bits(largest);
        let zero = map.nearest_positive(0.0);
        if !(scale > 0.0 && scale.is_finite()) {
            codes.fill(if scale == 0.0 { zero as u8 } else { 255 });
            return scale;
        }
        // Fixed lengths and plain loops: the compiler makes vectors of them, the
        // look-ups included.
        let (mut scaled, mut found) = ([0.0f32; super::BLOCK], [0u32; super::BLOCK]);
        for (values, codes) in values.chunks(super::BLOCK).zip(codes.chunks_mut(super::BLOCK)) {
            scaled.iter_mut().zip(values).for_each(|(scaled, value)| *scaled = value / scale);
            for (found, x) in found.iter_mut().zip(&scaled) {
                let positive = map.nearest_positive(x.abs());
                // The signed map is symmetric about its zero but for the lone +1.
                let negative = if signed { (2 * zero).wrapping_sub(positive.min(254)) } else { zero };
                *found = if *x < 0.0 { negative } else { positive };
            }
            codes.iter_mut().zip(&found).for_each(|(code, found)| *code = *found as u8);
        }
        scale
    }

    /// Back to f32.
    #[inline(always)]
    pub fn dequantize(codes: &[u8], scale: f32, signed: bool, into: &mut [f32]) {
        let map = map(signed);
        for (code, into) in codes.iter().zip(into) {
            *into = map.code[usize::from(*code)] * scale;
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_map_is_bitsandbytes_own() {
            // FNV-1a over the bits of bitsandbytes.functional.create_dynamic_map(signed), 0.50.
            let hash = |map: [f32; 256]| {
                map.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, code| {
                    (hash ^ u64::from(code.to_bits())).wrapping_mul(0x100_0000_01b3)
                })
            };
            assert_eq!(hash(dynamic_map(true)), 0x690c_a6ad_558a_2475, "{:?}", dynamic_map(true));
            assert_eq!(hash(dynamic_map(false)), 0xa9aa_f4b4_f33a_51e3, "{:?}", dynamic_map(false));
        }

        #[test]
        fn no_cell_holds_two_half_ways() {
            for signed in [true, false] {
                let map = map(signed);
                for index in 0..CELLS {
                    let end = f32::from_bits(LOWEST + ((index as u32 + 1) << DROP));
                    let within = map.middle.partition_point(|middle| *middle < end) - map.first[index] as usize;
                    assert!(within <= 1, "{signed} {index}: {within}");
                }
            }
        }

        #[test]
        fn the_nearest_code_is_found_as_by_search() {
            for signed in [true, false] {
                let map = dynamic_map(signed);
                for i in 0..200_000u32 {
                    let x = f32::from_bits((1.0f32.to_bits() / 200_000) * i);
                    let search = map.iter().map(|code| (code - x).abs()).fold(f32::INFINITY, f32::min);
                    let mut codes = [0];
                    // A second element of 1 sets the scale.
                    let mut both = [0, 0];
                    quantize(&[x, 1.0], &mut both, signed);
                    codes[0] = both[0];
                    let found = (value(codes[0], signed) - x).abs();
                    assert!(found <= search, "{x} became {}", value(codes[0], signed));
                }
            }
        }

        #[test]
        fn both_signs_come_back_and_a_broken_block_stays_broken() {
            let mut codes = [0; 3];
            let scale = quantize(&[-0.5, 0.5, -4.0], &mut codes, true);
            let mut back = [0.0; 3];
            dequantize(&codes, scale, true, &mut back);
            assert_eq!(back[0], -back[1]);
            assert!((back[1] - 0.5).abs() < 0.02 && (back[2] + 4.0).abs() < 0.03, "{back:?}");
            let scale = quantize(&[1.0, f32::NAN, 2.0], &mut codes, true);
            dequantize(&codes, scale, true, &mut back);
            assert!(back.iter().all(|x| !x.is_finite()));
        }
    }
}
