//! The backward pass (Dao, 2023, FlashAttention-2): `δ = Σ do ⊙ o`, then a
//! kernel over tiles of queries for dq, and one over tiles of keys for dk and
//! dv. Both compute the scores anew; each sum has one owner and one order, so
//! there are no atomics.

use cubecl::prelude::*;

use super::tile::{Four, OTHERS, Shape, dots, sees, store, weighted};
use crate::ops::gated::kernel::safe_tanh;

/// For each row of do and o its log-sum-exp and δ, `[N, H, 2]`: one unit a row.
#[cube(launch)]
pub(super) fn rows_kernel<N: Size>(
    dout: &[Vector<f32, N>],
    out: &[Vector<f32, N>],
    lse: &[f32],
    numbers: &mut [f32],
    #[comptime] width: usize,
) {
    if ABSOLUTE_POS < lse.len() {
        let mut delta = 0.0f32;
        for i in 0..width {
            delta += (dout[ABSOLUTE_POS * width + i] * out[ABSOLUTE_POS * width + i]).vector_sum();
        }
        numbers[2 * ABSOLUTE_POS] = lse[ABSOLUTE_POS];
        numbers[2 * ABSOLUTE_POS + 1] = delta;
    }
}

/// From a product q·k: the probability and the slope of the cap.
#[cube]
fn probability(product: f32, lse: f32, scale: f32, cap: f32, #[comptime] capped: bool) -> (f32, f32) {
    let mut s = product * scale;
    let mut slope = 1.0f32;
    if comptime!(capped) {
        let t = safe_tanh(s / cap);
        s = cap * t;
        slope = 1.0f32 - t * t;
    }
    ((s - lse).exp(), slope)
}

/// dq: one cube a tile of queries and query head. `tiles` is the forward
/// kernel's, `numbers` is of [`rows_kernel`].
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn queries_kernel<N: Size>(
    dout: &[Vector<f32, N>],
    q: &[Vector<f32, N>],
    k: &[Vector<f32, N>],
    v: &[Vector<f32, N>],
    numbers: &[f32],
    tiles: &[u32],
    dq: &mut [Vector<f32, N>],
    cubes: usize,
    heads: usize,
    group: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
) {
    let (dim, rows, chunks) = comptime!((shape.dim, shape.rows, shape.chunks()));
    let mut stage = Shared::<[Four]>::new_slice(comptime!(shape.stage()));
    let mut weights = Shared::<[Four]>::new_slice(comptime!(shape.tile() * OTHERS / 4));
    if CUBE_POS < cubes {
        let band = UNIT_POS as usize / 8;
        let lane = UNIT_POS as usize % 8;
        let entry = CUBE_POS / heads * 3;
        let head = CUBE_POS % heads;
        let kv_head = head / group;
        let kv_heads = heads / group;
        let from = tiles[entry] as usize;
        let to = from + tiles[entry + 1] as usize;
        let document = tiles[entry + 2] as usize;

        let mut scores = Array::<f32>::new(comptime!(4 * rows));
        let mut slopes = Array::<f32>::new(comptime!(4 * rows));
        let mut sums = Array::<Four>::new(comptime!(rows * chunks));
        let mut lses = Array::<f32>::new(rows);
        let mut deltas = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            let row = from + band * rows + r;
            lses[r] = 0.0f32;
            deltas[r] = 0.0f32;
            if row < to {
                lses[r] = numbers[2 * (row * heads + head)];
                deltas[r] = numbers[2 * (row * heads + head) + 1];
            }
        }

        let mut key = document;
        if from + 1 > document + window {
            key += (from + 1 - window - document) / OTHERS * OTHERS;
        }
        while key < to {
            let edge = key + comptime!(OTHERS - 1) > from || key + window < to;
            dots::<N>(&mut scores, &mut stage, q, from, to, heads, head, k, key, to, kv_heads, kv_head, shape);
            #[unroll]
            for i in 0..comptime!(4 * rows) {
                let r = comptime!(i / 4);
                let (p, slope) = probability(scores[i], lses[r], scale, cap, shape.capped);
                slopes[i] = p * slope * scale;
            }
            dots::<N>(&mut scores, &mut stage, dout, from, to, heads, head, v, key, to, kv_heads, kv_head, shape);
            #[unroll]
            for r in 0..rows {
                let query = from + band * rows + r;
                let mut four = Four::new(0.0f32);
                #[unroll]
                for j in 0..4usize {
                    let mut ds = slopes[4 * r + j] * (scores[4 * r + j] - deltas[r]);
                    if edge && !sees(query, key + 4 * lane + j, window) {
                        ds = 0.0f32;
                    }
                    four.insert(j, ds);
                }
                weights[(band * rows + r) * comptime!(OTHERS / 4) + lane] = four;
            }
            weighted::<N>(
                &mut sums, &weights, &mut stage, k, key, to, kv_heads, kv_head, from, key, window, edge, false, shape,
            );
            key += OTHERS;
        }

        #[unroll]
        for r in 0..rows {
            let row = from + band * rows + r;
            if row < to {
                #[unroll]
                for c in 0..chunks {
                    store::<N>(dq, row * heads + head, 8 * c + lane, sums[r * chunks + c], dim);
                }
            }
        }
    }
}

/// dk and dv: one cube a tile of keys and key head, which goes through the
/// query heads of its group in their order. `tiles` holds per tile its
/// first key, how many there are, and its document's first token and end.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn keys_kernel<N: Size>(
    dout: &[Vector<f32, N>],
    q: &[Vector<f32, N>],
    k: &[Vector<f32, N>],
    v: &[Vector<f32, N>],
    numbers: &[f32],
    tiles: &[u32],
    dk: &mut [Vector<f32, N>],
    dv: &mut [Vector<f32, N>],
    cubes: usize,
    heads: usize,
    group: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
) {
    let (dim, rows, chunks) = comptime!((shape.dim, shape.rows, shape.chunks()));
    let mut stage = Shared::<[Four]>::new_slice(comptime!(shape.stage()));
    let mut weights = Shared::<[Four]>::new_slice(comptime!(shape.tile() * OTHERS / 4));
    let kv_heads = heads / group;
    if CUBE_POS < cubes {
        let band = UNIT_POS as usize / 8;
        let lane = UNIT_POS as usize % 8;
        let entry = CUBE_POS / kv_heads * 4;
        let kv_head = CUBE_POS % kv_heads;
        let from = tiles[entry] as usize;
        let to = from + tiles[entry + 1] as usize;
        let document = tiles[entry + 2] as usize;
        // The last key is seen by the queries of a window from it.
        let mut end = tiles[entry + 3] as usize;
        if to + window - 1 < end {
            end = to + window - 1;
        }

        let mut scores = Array::<f32>::new(comptime!(4 * rows));
        let mut slopes = Array::<f32>::new(comptime!(4 * rows));
        let mut dks = Array::<Four>::new(comptime!(rows * chunks));
        let mut dvs = Array::<Four>::new(comptime!(rows * chunks));
        let mut lses = Array::<f32>::new(4usize);
        let mut deltas = Array::<f32>::new(4usize);

        for head in kv_head * group..(kv_head + 1) * group {
            let mut query = document + (from - document) / OTHERS * OTHERS;
            while query < end {
                let edge = query + 1 < to || query + comptime!(OTHERS - 1) >= from + window || query + OTHERS > end;
                #[unroll]
                for j in 0..4usize {
                    let row = query + 4 * lane + j;
                    lses[j] = 0.0f32;
                    deltas[j] = 0.0f32;
                    if row < end {
                        lses[j] = numbers[2 * (row * heads + head)];
                        deltas[j] = numbers[2 * (row * heads + head) + 1];
                    }
                }
                dots::<N>(&mut scores, &mut stage, k, from, to, kv_heads, kv_head, q, query, end, heads, head, shape);
                #[unroll]
                for r in 0..rows {
                    let key = from + band * rows + r;
                    let mut four = Four::new(0.0f32);
                    #[unroll]
                    for j in 0..4usize {
                        let (value, slope) = probability(scores[4 * r + j], lses[j], scale, cap, shape.capped);
                        let mut p = value;
                        let row = query + 4 * lane + j;
                        if edge && (row >= end || !sees(row, key, window)) {
                            p = 0.0f32;
                        }
                        slopes[4 * r + j] = p * slope * scale;
                        four.insert(j, p);
                    }
                    weights[(band * rows + r) * comptime!(OTHERS / 4) + lane] = four;
                }
                weighted::<N>(
                    &mut dvs, &weights, &mut stage, dout, query, end, heads, head, from, query, window, edge, true,
                    shape,
                );
                dots::<N>(
                    &mut scores,
                    &mut stage,
                    v,
                    from,
                    to,
                    kv_heads,
                    kv_head,
                    dout,
                    query,
                    end,
                    heads,
                    head,
                    shape,
                );
                #[unroll]
                for r in 0..rows {
                    let mut four = Four::new(0.0f32);
                    #[unroll]
                    for j in 0..4usize {
                        four.insert(j, slopes[4 * r + j] * (scores[4 * r + j] - deltas[j]));
                    }
                    weights[(band * rows + r) * comptime!(OTHERS / 4) + lane] = four;
                }
                weighted::<N>(
                    &mut dks, &weights, &mut stage, q, query, end, heads, head, from, query, window, edge, true, shape,
                );
                query += OTHERS;
            }
        }

        #[unroll]
        for r in 0..rows {
            let row = from + band * rows + r;
            if row < to {
                #[unroll]
                for c in 0..chunks {
                    let at = row * kv_heads + kv_head;
                    store::<N>(dk, at, 8 * c + lane, dks[r * chunks + c], dim);
                    store::<N>(dv, at, 8 * c + lane, dvs[r * chunks + c], dim);
                }
            }
        }
    }
}
