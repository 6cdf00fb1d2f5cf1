use super::reference;
use crate::Device;
use crate::ops::testing::{assert_gradient, assert_near, inner, on_each, random, read, upload};
use crate::ops::{AttentionSpec, Segments};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 1e-5;
const BACKWARD_TOLERANCE: f32 = 3e-5;

pub(super) fn spec(
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    softcap: Option<f32>,
    window: Option<usize>,
) -> AttentionSpec {
    AttentionSpec { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), softcap, window }
}

/// Document lengths and the shape of the layer.
pub(super) fn cases() -> Vec<(Vec<usize>, AttentionSpec)> {
    vec![
        (vec![1], spec(1, 1, 16, None, None)),
        (vec![70], spec(9, 3, 64, None, None)),
        (vec![1, 63, 64, 65, 1, 2], spec(9, 3, 16, None, None)),
        (vec![300], spec(2, 1, 24, None, None)),
        (vec![5, 100], spec(2, 2, 256, None, None)),
        (vec![40, 33], spec(4, 2, 32, Some(2.0), None)),
        (vec![1, 90, 20], spec(4, 1, 17, None, Some(8))),
        (vec![270], spec(2, 2, 16, Some(5.0), Some(70))),
        (vec![600], spec(1, 1, 16, None, Some(1))),
    ]
}

/// q, k, v and do with scores of a spread of some units.
pub(super) fn inputs(n: usize, spec: &AttentionSpec) -> [Vec<f32>; 4] {
    let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let wide = |place, len| random(place, len).iter().map(|x| 2.0 * x).collect();
    [wide(1, n * h), wide(2, n * g), random(3, n * g), random(4, n * h)]
}

#[test]
fn forward_and_backward_agree_with_the_reference() {
    for (lengths, spec) in cases() {
        let segments = Segments::from_lengths(lengths);
        let n = segments.tokens();
        let [q, k, v, dout] = inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let got = on_each(|cpu| {
            let (qt, kt, vt) = (upload(cpu, &[n, h], &q), upload(cpu, &[n, g], &k), upload(cpu, &[n, g], &v));
            let (o, lse) = cpu.attention(&qt, &kt, &vt, &segments, &spec).unwrap();
            let dot = upload(cpu, &[n, h], &dout);
            let (dq, dk, dv) = cpu.attention_backward(&dot, &qt, &kt, &vt, &o, &lse, &segments, &spec).unwrap();
            [o, lse, dq, dk, dv].iter().map(|x| read(cpu, x)).collect()
        });
        let (o, lse) = reference::forward(&q, &k, &v, &segments, &spec);
        assert_near(TOLERANCE, &got[0], &o);
        assert_near(TOLERANCE, &got[1], &lse);
        let (dq, dk, dv) = reference::backward(&dout, &q, &k, &v, &segments, &spec);
        if n > 1 && spec.window != Some(1) {
            // With one visible key p is 1 and the scores have no gradient.
            assert_near(BACKWARD_TOLERANCE, &got[2], &dq);
            assert_near(BACKWARD_TOLERANCE, &got[3], &dk);
        } else {
            assert!(got[2].iter().chain(&got[3]).all(|d| d.abs() < 1e-5));
        }
        assert_near(BACKWARD_TOLERANCE, &got[4], &dv);
    }
}

#[test]
fn the_reference_s_backward_is_the_derivative() {
    for (softcap, window) in [(None, None), (Some(1.5), None), (None, Some(3)), (Some(3.0), Some(4))] {
        let spec = spec(4, 2, 8, softcap, window);
        let segments = Segments::from_lengths([5, 1, 7]);
        let [q, k, v, dout] = inputs(13, &spec);
        let (dq, dk, dv) = reference::backward(&dout, &q, &k, &v, &segments, &spec);
        let loss = |q: &[f32], k: &[f32], v: &[f32]| inner(&reference::forward(q, k, v, &segments, &spec).0, &dout);
        assert_gradient("q", &q, &dq, 50, 1e-2, 5e-3, |q| loss(q, &k, &v));
        assert_gradient("k", &k, &dk, 50, 1e-2, 5e-3, |k| loss(&q, k, &v));
        assert_gradient("v", &v, &dv, 50, 1e-2, 5e-3, |v| loss(&q, &k, v));
    }
}

#[test]
fn documents_do_not_see_each_other() {
    let spec = spec(2, 1, 16, None, None);
    let cpu = Device::cpu(Some(2)).unwrap();
    let run = |segments: &Segments, values: &[Vec<f32>; 4], from: usize, to: usize| {
        let cut = |x: &[f32], width: usize| upload(&cpu, &[to - from, width], &x[from * width..to * width]);
        let (q, k, v) = (cut(&values[0], 32), cut(&values[1], 16), cut(&values[2], 16));
        read(&cpu, &cpu.attention(&q, &k, &v, segments, &spec).unwrap().0)
    };
    let values = inputs(100, &spec);
    let together = run(&Segments::from_lengths([30, 70]), &values, 0, 100);
    let first = run(&Segments::from_lengths([30]), &values, 0, 30);
    let second = run(&Segments::from_lengths([70]), &values, 30, 100);
    crate::ops::testing::assert_bits(&together, &[first, second].concat());
}

#[test]
fn the_cache_gives_what_the_whole_sequence_gives() {
    for (lengths, spec) in cases().into_iter().filter(|(lengths, _)| lengths.len() == 1) {
        let n = lengths[0];
        let [q, k, v, _] = inputs(n, &spec);
        let (h, g) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let (want, _) = reference::forward(&q, &k, &v, &Segments::from_lengths([n]), &spec);
        for queries in [1, 2, 3, n / 2, n] {
            let queries = queries.clamp(1, n);
            let got = on_each(|cpu| {
                let mut caches = [&k, &v].map(|_| cpu.zeros(&[n + 3, g]).unwrap());
                for (cache, x) in caches.iter_mut().zip([&k, &v]) {
                    cpu.write_rows(cache, 0, &upload(cpu, &[n, g], x)).unwrap();
                }
                let last = upload(cpu, &[queries, h], &q[(n - queries) * h..]);
                vec![read(cpu, &cpu.attention_cached(&last, &caches[0], &caches[1], n, &spec).unwrap())]
            });
            assert_near(TOLERANCE, &got[0], &want[(n - queries) * h..]);
        }
    }
}

#[test]
fn scores_of_any_size_do_not_overflow() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let spec = AttentionSpec { scale: 1.0, ..spec(1, 1, 1, None, None) };
    let segments = Segments::from_lengths([3]);
    let q = upload(&cpu, &[3, 1], &[1e4, 1e4, -1e4]);
    let k = upload(&cpu, &[3, 1], &[1.0, -1.0, 2.0]);
    let v = upload(&cpu, &[3, 1], &[1.0, 2.0, 3.0]);
    let (o, lse) = cpu.attention(&q, &k, &v, &segments, &spec).unwrap();
    assert_eq!(read(&cpu, &o), [1.0, 1.0, 2.0]);
    assert_eq!(read(&cpu, &lse), [1e4, 1e4, 1e4]);
    let nan = upload(&cpu, &[3, 1], &[1.0, f32::NAN, 1.0]);
    let o = read(&cpu, &cpu.attention(&nan, &k, &v, &segments, &spec).unwrap().0);
    assert!(o[0].is_finite() && o[1].is_nan() && o[2].is_finite());
}

#[test]
fn wrong_shapes_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let good = spec(2, 1, 4, None, None);
    let segments = Segments::from_lengths([3]);
    let (q, kv) = (upload(&cpu, &[3, 8], &[0.0; 24]), upload(&cpu, &[3, 4], &[0.0; 12]));
    assert!(cpu.attention(&q, &kv, &kv, &Segments::from_lengths([2]), &good).is_err());
    assert!(cpu.attention(&kv, &kv, &kv, &segments, &good).is_err());
    assert!(cpu.attention(&q, &kv, &kv, &segments, &spec(3, 2, 4, None, None)).is_err());
    assert!(cpu.attention(&q, &kv, &kv, &segments, &spec(2, 1, 4, None, Some(0))).is_err());
    assert!(cpu.attention(&q, &kv, &kv, &segments, &spec(2, 1, 4, Some(f32::NAN), None)).is_err());
    assert!(cpu.attention_cached(&q, &kv, &kv, 2, &good).is_err());
    assert!(cpu.attention_cached(&q, &kv, &kv, 4, &good).is_err());
}
