//! The kernels on this machine's first GPU, against the reference.

use super::reference;
use super::tests::{cases, inputs, spec};
use crate::ops::testing::{assert_bits, gpu_for_test};
use crate::ops::{AttentionSpec, Device, Segments};
use crate::tensor::Tensor;

/// |got − want| ≤ tolerance · (|want| + rms(want)), as on the CPU but wider:
/// a GPU's exp and tanh may be off by some units in the last place, and its
/// products need not be fused.
const FORWARD: f64 = 2e-5;
const BACKWARD: f64 = 1e-4;

#[track_caller]
fn assert_within(tolerance: f64, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "number of values");
    let rms = (want.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>() / want.len().max(1) as f64).sqrt();
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let bound = tolerance * (f64::from(w.abs()) + rms) + 1e-30;
        let error = (f64::from(*g) - f64::from(*w)).abs();
        assert!(error <= bound, "value {i} is {g}, expected {w}: {error:e} is more than {bound:e}");
    }
}

fn tensor(gpu: &Device, columns: usize, values: &[f32]) -> Tensor {
    gpu.upload(&[values.len() / columns, columns], values).unwrap()
}

/// o, lse, dq, dk, dv.
fn run(gpu: &Device, values: &[Vec<f32>; 4], segments: &Segments, spec: &AttentionSpec) -> [Vec<f32>; 5] {
    let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let (q, k) = (tensor(gpu, h, &values[0]), tensor(gpu, g, &values[1]));
    let (v, dout) = (tensor(gpu, g, &values[2]), tensor(gpu, h, &values[3]));
    let (o, lse) = gpu.attention(&q, &k, &v, segments, spec).unwrap();
    let (dq, dk, dv) = gpu.attention_backward(&dout, &q, &k, &v, &o, &lse, segments, spec).unwrap();
    [o, lse, dq, dk, dv].map(|x| gpu.read(&x).unwrap())
}

fn agrees(gpu: &Device, lengths: Vec<usize>, spec: &AttentionSpec) {
    let segments = Segments::from_lengths(lengths);
    let values = inputs(segments.tokens(), spec);
    let [o, lse, dq, dk, dv] = run(gpu, &values, &segments, spec);
    let [q, k, v, dout] = values;
    let (want_o, want_lse) = reference::forward(&q, &k, &v, &segments, spec);
    assert_within(FORWARD, &o, &want_o);
    assert_within(FORWARD, &lse, &want_lse);
    let (want_dq, want_dk, want_dv) = reference::backward(&dout, &q, &k, &v, &segments, spec);
    if segments.longest() > 1 && spec.window != Some(1) {
        assert_within(BACKWARD, &dq, &want_dq);
        assert_within(BACKWARD, &dk, &want_dk);
    } else {
        // With one visible key p is 1 and the scores have no gradient.
        assert!(dq.iter().chain(&dk).all(|d| d.abs() < 1e-4));
    }
    assert_within(BACKWARD, &dv, &want_dv);
}

#[test]
fn the_gpu_agrees_with_the_reference() {
    let Some(gpu) = gpu_for_test() else { return };
    for (lengths, spec) in cases() {
        agrees(&gpu, lengths, &spec);
    }
}

/// Widths whose last group of four columns, chunk of eight groups or pass is
/// not whole, and windows that end beside a tile's edge.
#[test]
fn the_gpu_agrees_for_awkward_widths_and_windows() {
    let Some(gpu) = gpu_for_test() else { return };
    for (heads, kv_heads, dim) in [(2, 1, 7), (3, 1, 80), (2, 2, 96), (2, 1, 128), (2, 1, 130)] {
        agrees(&gpu, vec![37, 2], &spec(heads, kv_heads, dim, None, None));
    }
    for window in [2, 31, 32, 33, 64, 99, 100, 101] {
        agrees(&gpu, vec![3, 100], &spec(4, 2, 8, Some(3.0), Some(window)));
    }
}

#[test]
fn documents_on_the_gpu_do_not_see_each_other() {
    let Some(gpu) = gpu_for_test() else { return };
    for window in [None, Some(20)] {
        let spec = spec(2, 1, 16, None, window);
        let values = inputs(100, &spec);
        let part = |from: usize, to: usize| {
            let cut = |x: &[f32], width: usize| x[from * width..to * width].to_vec();
            let [q, k, v, dout] = &values;
            let values = [cut(q, 32), cut(k, 16), cut(v, 16), cut(dout, 32)];
            run(&gpu, &values, &Segments::from_lengths([to - from]), &spec)
        };
        let together = run(&gpu, &values, &Segments::from_lengths([30, 70]), &spec);
        // Tiles lie in one document each, so the sums are the same sums.
        for ((together, first), second) in together.iter().zip(part(0, 30)).zip(part(30, 100)) {
            assert_bits(together, &[first, second].concat());
        }
    }
}

#[test]
fn the_gpu_s_cache_gives_what_the_whole_sequence_gives() {
    let Some(gpu) = gpu_for_test() else { return };
    for (lengths, spec) in cases().into_iter().filter(|(lengths, _)| lengths.len() == 1) {
        let n = lengths[0];
        let values = inputs(n, &spec);
        let [q, k, v, _] = &values;
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (want, _) = reference::forward(q, k, v, &Segments::from_lengths([n]), &spec);
        // What lies in the cache beyond the length must not matter.
        let caches = [k, v].map(|x| tensor(&gpu, g, &[x.clone(), vec![f32::NAN; 3 * g]].concat()));
        for queries in [1, 2, 3, 9, n / 2, n] {
            let queries = queries.clamp(1, n);
            let last = tensor(&gpu, h, &q[(n - queries) * h..]);
            let got = gpu.attention_cached(&last, &caches[0], &caches[1], n, &spec).unwrap();
            assert_within(FORWARD, &gpu.read(&got).unwrap(), &want[(n - queries) * h..]);
        }
    }
}

#[test]
fn scores_of_any_size_do_not_overflow_on_the_gpu() {
    let Some(gpu) = gpu_for_test() else { return };
    let spec = AttentionSpec { scale: 1.0, ..spec(1, 1, 1, None, None) };
    let segments = Segments::from_lengths([3]);
    let q = vec![1e4, 1e4, -1e4];
    let values = [q, vec![1.0, -1.0, 2.0], vec![1.0, 2.0, 3.0], vec![1.0; 3]];
    let [o, lse, dq, dk, dv] = run(&gpu, &values, &segments, &spec);
    assert_eq!(o, [1.0, 1.0, 2.0]);
    assert_eq!(lse, [1e4, 1e4, 1e4]);
    assert_eq!([dq, dk, dv], [vec![0.0; 3], vec![0.0; 3], vec![2.0, 1.0, 0.0]]);
}

/// A NaN reaches the rows that see it, and no others: not over the diagonal,
/// not behind the window, not in another document, though they share tiles.
#[test]
fn nan_reaches_only_the_rows_that_see_it_on_the_gpu() {
    let Some(gpu) = gpu_for_test() else { return };
    let segments = Segments::from_lengths([5, 50]);
    let bad = 25usize;
    for window in [None, Some(10)] {
        let spec = spec(1, 1, 8, None, window);
        let last = window.map_or(54, |window| bad + window - 1);
        let nan_rows = |x: &[f32]| -> Vec<usize> {
            x.chunks(x.len() / 55)
                .enumerate()
                .filter(|(_, row)| row.iter().any(|x| x.is_nan()))
                .map(|(i, _)| i)
                .collect()
        };
        let first_seen = window.map_or(5, |window| bad + 1 - window);
        for place in 0..4 {
            let mut values = inputs(55, &spec);
            values[place][bad * 8 + 3] = f32::NAN;
            let [o, lse, dq, dk, dv] = run(&gpu, &values, &segments, &spec);
            let (above, below): (Vec<usize>, Vec<usize>) = ((bad..=last).collect(), (first_seen..=bad).collect());
            // The keys that the queries above see, and so share a softmax with.
            let around: Vec<usize> = (first_seen..=last).collect();
            let none = Vec::new();
            let want = match place {
                0 => [vec![bad], vec![bad], vec![bad], below.clone(), below],
                1 => [above.clone(), above.clone(), above, around.clone(), around],
                2 => [above.clone(), none.clone(), above, around, none],
                _ => [none.clone(), none, vec![bad], below.clone(), below],
            };
            let got = [&o, &lse, &dq, &dk, &dv].map(|x| nan_rows(x));
            assert_eq!(got, want, "NaN in argument {place}, window {window:?}");
        }
    }
}

#[test]
fn the_gpu_gives_the_same_bits_twice() {
    let Some(gpu) = gpu_for_test() else { return };
    let spec = spec(6, 2, 32, Some(4.0), Some(50));
    let segments = Segments::from_lengths([90, 40]);
    let values = inputs(130, &spec);
    let first = run(&gpu, &values, &segments, &spec);
    for (again, first) in run(&gpu, &values, &segments, &spec).iter().zip(&first) {
        assert_bits(again, first);
    }
}

#[test]
fn no_tokens_are_no_launch_and_wrong_shapes_are_refused_on_the_gpu() {
    let Some(gpu) = gpu_for_test() else { return };
    let good = spec(2, 1, 4, None, None);
    let none = Segments::from_lengths([]);
    let (q, kv) = (gpu.upload(&[0, 8], &[]).unwrap(), gpu.upload(&[0, 4], &[]).unwrap());
    let (o, lse) = gpu.attention(&q, &kv, &kv, &none, &good).unwrap();
    assert_eq!((o.shape(), lse.shape()), (&[0, 8][..], &[0, 2][..]));
    let (dq, dk, dv) = gpu.attention_backward(&q, &q, &kv, &kv, &o, &lse, &none, &good).unwrap();
    assert!([dq, dk, dv].iter().all(|x| gpu.read(x).unwrap().is_empty()));
    assert!(gpu.attention_cached(&q, &kv, &kv, 0, &good).unwrap().is_empty());

    let segments = Segments::from_lengths([3]);
    let (q, kv) = (gpu.zeros(&[3, 8]).unwrap(), gpu.zeros(&[3, 4]).unwrap());
    assert!(gpu.attention(&q, &kv, &kv, &Segments::from_lengths([2]), &good).is_err());
    assert!(gpu.attention(&q, &kv, &kv, &segments, &spec(3, 2, 4, None, None)).is_err());
    assert!(gpu.attention_cached(&q, &kv, &kv, 4, &good).is_err());
    let lse = gpu.zeros(&[3, 1]).unwrap();
    assert!(gpu.attention_backward(&q, &q, &kv, &kv, &q, &lse, &segments, &good).is_err());
}
