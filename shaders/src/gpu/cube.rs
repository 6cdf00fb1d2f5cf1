//! Sums and maxima over the units of a cube, in shared memory, in an order
//! that depends on the cube's size alone.

use cubecl::prelude::*;

/// log2 of a power of two.
pub(crate) fn halvings(units: usize) -> usize {
    units.trailing_zeros() as usize
}

/// Σ of every unit's value; every unit gets it. `shared` has `units` places.
#[cube]
pub(crate) fn cube_sum(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    // What the cube may still be reading of an earlier sum.
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(halvings(units)) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            shared[unit] += other;
        }
        sync_cube();
    }
    shared[0]
}

/// The largest of every unit's value, NaN where none is larger than −∞.
#[cube]
pub(crate) fn cube_max(value: f32, shared: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    let unit = UNIT_POS as usize;
    sync_cube();
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(halvings(units)) {
        let half = comptime!(units >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            if other > shared[unit] {
                shared[unit] = other;
            }
        }
        sync_cube();
    }
    shared[0]
}
