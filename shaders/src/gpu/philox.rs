//! [`crate::random::philox`] on the device, to the bit.

use cubecl::prelude::*;

/// Four words: number `block` of the stream of a key.
#[cube]
pub(crate) fn philox(block: u32, step: u32, place: u32, seed_low: u32, seed_high: u32) -> (u32, u32, u32, u32) {
    let mut c0 = block;
    let mut c1 = 0u32;
    let mut c2 = step;
    let mut c3 = place;
    let mut k0 = seed_low;
    let mut k1 = seed_high;
    #[unroll]
    for _ in 0..10u32 {
        let a_high = c0.mul_hi(0xD251_1F53u32);
        let a_low = c0 * 0xD251_1F53u32;
        let b_high = c2.mul_hi(0xCD9E_8D57u32);
        let b_low = c2 * 0xCD9E_8D57u32;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9E37_79B9u32;
        k1 += 0xBB67_AE85u32;
    }
    (c0, c1, c2, c3)
}
