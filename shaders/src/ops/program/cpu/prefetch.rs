//! Asking for memory ahead of its use: a room of one intrinsic.
//!
//! A stream computes on blocks, and computing takes about as long as fetching.
//! Without this they take turns, because a block is longer than the processor
//! looks ahead; with it they overlap.
#![allow(unsafe_code)]

/// Elements of a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// Asks for the part `part` of `parts` of these values, a cache line at a time.
#[inline(always)]
pub(super) fn prefetch<T>(values: &[T], part: usize, parts: usize) {
    let line = (LINE * size_of::<f32>() / size_of::<T>()).max(1);
    let lines = values.len().div_ceil(line);
    for index in lines * part / parts..lines * (part + 1) / parts {
        ask(&values[index * line]);
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask<T>(value: &T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch is a hint that reads and changes nothing that a
    // program can see, and SSE is part of every x86-64 processor.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn ask<T>(_: &T) {}
