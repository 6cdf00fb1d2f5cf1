//! The one loop that needs instructions by name: looking sixteen codes up at
//! once in a register.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Bytes that one step takes in, each of two elements.
const STEP: usize = 16;

/// out[2i] = table[high nibble of packed[i]], out[2i + 1] = table[low nibble],
/// for as many whole steps as there are; gives how many bytes were done, 0
/// if the processor lacks the instructions.
pub(crate) fn unpack_nibbles(packed: &[u8], table: &[f32; 16], out: &mut [f32]) -> usize {
    if !std::arch::is_x86_feature_detected!("avx512f") {
        return 0;
    }
    let steps = packed.len().min(out.len() / 2) / STEP;
    // SAFETY: the processor has AVX-512F, as just asked.
    unsafe { unpack(&packed[..steps * STEP], table, &mut out[..2 * steps * STEP]) }
    steps * STEP
}

#[target_feature(enable = "avx512f")]
fn unpack(packed: &[u8], table: &[f32; 16], out: &mut [f32]) {
    // Lanes of the high nibbles' values (0 to 15) and of the low ones' (16 to
    // 31), taken in turn.
    let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let second = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    // SAFETY: the table has sixteen elements.
    let table = unsafe { _mm512_loadu_ps(table.as_ptr()) };
    for (packed, out) in packed.chunks_exact(STEP).zip(out.chunks_exact_mut(2 * STEP)) {
        // SAFETY: the chunk has sixteen bytes.
        let bytes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(packed.as_ptr().cast()) });
        let high = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table);
        // The permutation reads the low four bits of an index only.
        let low = _mm512_permutexvar_ps(bytes, table);
        // SAFETY: the chunk has thirty-two elements.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutex2var_ps(high, first, low));
            _mm512_storeu_ps(out.as_mut_ptr().add(STEP), _mm512_permutex2var_ps(high, second, low));
        }
    }
}
