//! The forward pass of a tile of queries: a running maximum and sum per
//! row (Milakov and Gimelshein, 2018) over the tiles of keys that it sees.

use cubecl::prelude::*;

use super::tile::{Four, LEAST, OTHERS, Shape, UNITS, dots, sees, store, weighted};
use crate::ops::gated::kernel::safe_tanh;

/// One cube a tile and query head. `tiles` holds per tile its first query
/// row, how many there are, and its document's first token; query row i stands
/// at key `offset + i`.
#[cube(launch)]
#[allow(clippy::too_many_arguments)]
pub(super) fn forward_kernel<N: Size>(
    q: &[Vector<f32, N>],
    k: &[Vector<f32, N>],
    v: &[Vector<f32, N>],
    tiles: &[u32],
    out: &mut [Vector<f32, N>],
    lse: &mut [f32],
    cubes: usize,
    heads: usize,
    group: usize,
    offset: usize,
    window: usize,
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
) {
    let (dim, rows, chunks) = comptime!((shape.dim, shape.rows, shape.chunks()));
    let mut stage = Shared::<[Four]>::new_slice(comptime!(shape.stage()));
    let mut weights = Shared::<[Four]>::new_slice(comptime!(shape.tile() * OTHERS / 4));
    let mut partial = Shared::<[f32]>::new_slice(comptime!(UNITS * rows));
    if CUBE_POS < cubes {
        let band = UNIT_POS as usize / 8;
        let lane = UNIT_POS as usize % 8;
        let entry = CUBE_POS / heads * 3;
        let head = CUBE_POS % heads;
        let kv_head = head / group;
        let kv_heads = heads / group;
        let row_from = tiles[entry] as usize;
        let row_to = row_from + tiles[entry + 1] as usize;
        let document = tiles[entry + 2] as usize;
        let position = row_from + offset;
        let end = row_to + offset;

        let mut scores = Array::<f32>::new(comptime!(4 * rows));
        let mut sums = Array::<Four>::new(comptime!(rows * chunks));
        let mut largest = Array::<f32>::new(rows);
        let mut total = Array::<f32>::new(rows);
        #[unroll]
        for r in 0..rows {
            largest[r] = f32::new(LEAST);
            total[r] = 0.0f32;
        }

        // The first row sees furthest back. Tiles of keys lie at multiples of
        // their size from the document's start, whatever else is in the batch.
        let mut key = document;
        if position + 1 > document + window {
            key += (position + 1 - window - document) / OTHERS * OTHERS;
        }
        while key < end {
            dots::<N>(&mut scores, &mut stage, q, row_from, row_to, heads, head, k, key, end, kv_heads, kv_head, shape);
            let edge = key + comptime!(OTHERS - 1) > position || key + window < end;
            #[unroll]
            for r in 0..rows {
                let query = position + band * rows + r;
                let mut top = f32::new(LEAST);
                #[unroll]
                for j in 0..4usize {
                    let mut s = scores[4 * r + j] * scale;
                    if comptime!(shape.capped) {
                        s = cap * safe_tanh(s / cap);
                    }
                    if edge && !sees(query, key + 4 * lane + j, window) {
                        s = f32::new(LEAST);
                    }
                    if s > top {
                        top = s;
                    }
                    scores[4 * r + j] = s;
                }
                partial[(band * rows + r) * 8 + lane] = top;
            }
            sync_cube();
            #[unroll]
            for r in 0..rows {
                let query = position + band * rows + r;
                let mut new = largest[r];
                #[unroll]
                for other in 0..8usize {
                    let top = partial[(band * rows + r) * 8 + other];
                    if top > new {
                        new = top;
                    }
                }
                let rescale = (largest[r] - new).exp();
                largest[r] = new;
                let mut sum = 0.0f32;
                let mut four = Four::new(0.0f32);
                #[unroll]
                for j in 0..4usize {
                    let mut p = (scores[4 * r + j] - new).exp();
                    if edge && !sees(query, key + 4 * lane + j, window) {
                        p = 0.0f32;
                    }
                    sum += p;
                    four.insert(j, p);
                }
                weights[(band * rows + r) * comptime!(OTHERS / 4) + lane] = four;
                total[r] = total[r] * rescale + sum;
                #[unroll]
                for c in 0..chunks {
                    sums[r * chunks + c] *= Four::new(rescale);
                }
            }
            weighted::<N>(
                &mut sums, &weights, &mut stage, v, key, end, kv_heads, kv_head, position, key, window, edge, false,
                shape,
            );
            key += OTHERS;
        }

        sync_cube();
        #[unroll]
        for r in 0..rows {
            partial[(band * rows + r) * 8 + lane] = total[r];
        }
        sync_cube();
        #[unroll]
        for r in 0..rows {
            let row = row_from + band * rows + r;
            let mut sum = 0.0f32;
            #[unroll]
            for other in 0..8usize {
                sum += partial[(band * rows + r) * 8 + other];
            }
            if row < row_to {
                let at = row * heads + head;
                if lane == 0 {
                    lse[at] = largest[r] + sum.ln();
                }
                #[unroll]
                for c in 0..chunks {
                    store::<N>(out, at, 8 * c + lane, sums[r * chunks + c] / Four::new(sum), dim);
                }
            }
        }
    }
}
