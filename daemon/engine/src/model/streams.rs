//! Every random stream of the program: what its key is made of, in one table.
//!
//! A key is (seed, step, place). Two uses that may meet under one seed must
//! differ in step or place.
//!
//! | use | seed | step | place |
//! | --- | --- | --- | --- |
//! | dropout before an adapter | the run's | the optimizer step, from 1 | micro-batch · 2¹⁶ + number of the linear layer |
//! | first values of an adapter's A | the run's | 0 | number of the linear layer |
//! | first values of a value head | the run's | 0 | 2³² − 1 |
//! | sampling a token | the generation's | number of the new token, from 0 | 2³² − 1 |
//! | weights of a benchmark | the source's | 0 | number of the tensor |

use finetuned_formats::RandomTensor;
use finetuned_shaders::random::Key;

use super::context::Pass;

/// Optimizer steps count from 1, so step 0 is free for first values.
const BEFORE_TRAINING: u32 = 0;

/// A place that no linear layer has.
const LAST: u32 = u32::MAX;

/// Dropout before the adapter of a linear layer.
pub fn dropout(pass: &Pass, place: u32) -> Key {
    Key::new(pass.seed, pass.step, (pass.micro_batch << 16) | (place & 0xffff))
}

/// The first values of the A of a linear layer's adapter.
pub fn adapter(seed: u64, place: u32) -> Key {
    Key::new(seed, BEFORE_TRAINING, place)
}

/// The first values of a value head.
pub fn value_head(seed: u64) -> Key {
    Key::new(seed, BEFORE_TRAINING, LAST)
}

/// The choice of a generation's new token.
pub fn sampling(seed: u64, token: u32) -> Key {
    Key::new(seed, token, LAST)
}

/// The values of a weight that no file stores.
pub fn made_up(random: &RandomTensor) -> Key {
    Key::new(random.seed, BEFORE_TRAINING, random.place)
}
