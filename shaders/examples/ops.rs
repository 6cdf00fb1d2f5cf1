//! How fast the operations of a training step are on this CPU, in the shapes
//! of SmolLM2-135M: 1024 tokens in four documents, LoRA of rank 16.
//!
//! `cargo run --release -p finetuned-shaders --example ops [threads] [filter] [seconds a line]`
//!
//! Other work on the machine slows everything, so runs take turns with a matrix
//! product of a known size, the measure: percentages are of the speed of the
//! measures beside it, milliseconds are of the best run.

use std::hint::black_box;
use std::time::Instant;

use finetuned_shaders::random::Key;
use finetuned_shaders::{
    Activation, AttentionSpec, Device, Head, RotaryTable, Segments, StatisticSet, Tensor, TokenCoefficients, Weight,
};

const N: usize = 1024;
const C: usize = 576;
const F: usize = 1536;
const H: usize = 9;
const G: usize = 3;
const D: usize = 64;
const V: usize = 49_152;
const R: usize = 16;
const LAYERS: f64 = 30.0;
/// Rows of the measure `[M, 576] x [576, 576]`, and its flops.
const M: usize = 512;
const MEASURE: f64 = 2.0 * (M * C * C) as f64;
/// The flops of a layer's own products, forward twice and backward once, in
/// measures: the least that it could take.
const LAYER_MEASURES: f64 = 3.0 * 2.0 * (N * (2 * C * C + 2 * C * G * D + 3 * C * F)) as f64 / MEASURE;

struct Bench {
    cpu: Device,
    filter: String,
    start: Instant,
    place: u32,
    operands: (Tensor, Tensor),
    /// What a layer of a LoRA step takes, in measures, and its products' flops.
    layer_measures: f64,
    layer_flops: f64,
}

impl Bench {
    fn random(&mut self, shape: &[usize]) -> Tensor {
        self.place += 1;
        let values = Key::new(1, 0, self.place).uniform_vec(shape.iter().product(), -1.0, 1.0);
        self.cpu.upload(shape, &values).expect("memory")
    }

    /// Seconds of the best run by the clock, and the length of a run in
    /// measures, by turns of both.
    fn seconds(&self, mut work: impl FnMut()) -> (f64, f64) {
        let start = Instant::now();
        let mut best = f64::INFINITY;
        let mut time = |work: &mut dyn FnMut(), turn: f64| {
            let (begin, clock, mut runs) = (self.now(), Instant::now(), 0.0);
            while runs < 1.0 || clock.elapsed().as_secs_f64() < turn {
                let one = Instant::now();
                work();
                best = best.min(one.elapsed().as_secs_f64());
                runs += 1.0;
            }
            (self.now() - begin, runs)
        };
        work();
        let mut sums = [(0.0, 0.0); 2];
        while sums[0].1 < 3.0 || start.elapsed().as_secs_f64() < patience() {
            let (seconds, runs) = time(&mut work, 0.05);
            sums[0] = (sums[0].0 + seconds, sums[0].1 + runs);
            let clock = Instant::now();
            let begin = self.now();
            while clock.elapsed().as_secs_f64() < 0.05 {
                self.measure();
                sums[1].1 += 1.0;
            }
            sums[1].0 += self.now() - begin;
        }
        let [work, measure] = sums.map(|(seconds, runs)| seconds / runs);
        (best, work / measure)
    }

    /// Seconds that this thread has run, where it works alone and the system
    /// says so: then what others do to it matters less. Else of the clock.
    fn now(&self) -> f64 {
        let own =
            || std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse::<f64>().ok();
        match own().filter(|_| self.cpu.info().parallelism == 1) {
            Some(nanoseconds) => nanoseconds / 1e9,
            None => self.start.elapsed().as_secs_f64(),
        }
    }

    /// The product that all else is measured by.
    fn measure(&self) {
        let (x, w) = &self.operands;
        drop(black_box(self.cpu.matmul(x, false, w, true, 1.0, None).expect("product")));
    }

    /// One line; `calls` is how often a layer of a step calls it.
    fn line(&mut self, name: &str, calls: f64, flops: f64, bytes: f64, work: impl FnMut()) {
        if !name.contains(&self.filter) {
            return;
        }
        let (seconds, ratio) = self.seconds(work);
        self.layer_measures += calls * ratio;
        self.layer_flops += calls * flops;
        let percent = 100.0 * flops / (ratio * MEASURE);
        let speed =
            if flops > 0.0 { format!("{:7.1} GFLOP/s {percent:4.0}%", flops / seconds / 1e9) } else { " ".repeat(21) };
        let share = 100.0 * calls * ratio / LAYER_MEASURES;
        println!(
            "{name:34} {:9.3} ms {speed} {:6.1} GB/s  x{calls} {share:5.1}% of a layer",
            seconds * 1e3,
            bytes / seconds / 1e9
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let threads = arguments.get(1).and_then(|a| a.parse().ok());
    let cpu = Device::cpu(threads).expect("threads");
    let filter = arguments.get(2).cloned().unwrap_or_default();
    let ones = |shape: &[usize]| cpu.upload(shape, &vec![1.0; shape.iter().product()]).expect("memory");
    let operands = (ones(&[M, C]), ones(&[C, C]));
    let mut b = Bench { cpu, filter, start: Instant::now(), place: 0, operands, layer_measures: 0.0, layer_flops: 0.0 };
    println!("threads: {}", b.cpu.info().parallelism);
    println!("fused multiply-adds in registers: {:.1} GFLOP/s a thread", registers());
    let (measure, _) = b.seconds(|| b.measure());
    println!("the measure: {:.1} GFLOP/s", MEASURE / measure / 1e9);
    products(&mut b);
    adapters(&mut b);
    rows(&mut b);
    attention(&mut b);
    let (layer, layer_flops) = (b.layer_measures, b.layer_flops);
    println!("a layer, forward twice and backward: {:.0}% of the peak", 100.0 * layer_flops / (layer * MEASURE));
    head(&mut b);
    let measures = LAYERS * layer + b.layer_measures - layer;
    let flops = LAYERS * layer_flops + b.layer_flops - layer_flops;
    println!("a step: {:.0}% of the peak", 100.0 * flops / (measures * MEASURE));
    decode(&mut b);
}

/// Seconds for each line: more of them find a quiet moment on a busy machine.
fn patience() -> f64 {
    std::env::args().nth(3).and_then(|a| a.parse().ok()).unwrap_or(0.5)
}

/// What one thread's vector units do without memory.
fn registers() -> f64 {
    const LANES: usize = 16 * 12;
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let rounds = 2_000_000;
        let sum = pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let mut lanes = [1.0f32; LANES];
                let (a, b) = (black_box(0.999_9f32), black_box(0.000_1f32));
                for _ in 0..rounds {
                    for lane in &mut lanes {
                        *lane = lane.mul_add(a, b);
                    }
                }
                lanes.iter().sum::<f32>()
            },
        );
        black_box(sum);
        best = best.max(2.0 * (LANES * rounds) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}

fn products(b: &mut Bench) {
    let ops = b.cpu.clone();
    // Forward twice where activations are recomputed, backward once.
    for (name, inputs, outputs, count) in
        [("q, o", C, C, 2.0), ("k, v", C, G * D, 2.0), ("gate, up", C, F, 2.0), ("down", F, C, 1.0)]
    {
        let (x, dy) = (b.random(&[N, inputs]), b.random(&[N, outputs]));
        let values = b.random(&[outputs, inputs]);
        let flops = 2.0 * (N * inputs * outputs) as f64;
        let bytes = 4.0 * (N * inputs + N * outputs + inputs * outputs) as f64;
        let host = ops.read(&values).expect("values");
        let nf4 = ops.upload_nf4(&[outputs, inputs], &host, true).expect("nf4");
        let dense = Weight::Dense(values);
        b.line(&format!("linear {name}"), 2.0 * count, flops, bytes, || {
            drop(black_box(ops.linear(&x, &dense).expect("linear")));
        });
        b.line(&format!("linear backward {name}"), count, flops, bytes, || {
            drop(black_box(ops.linear_backward(&dy, &dense, None).expect("linear")));
        });
        b.line(&format!("linear nf4 {name}"), 0.0, flops, bytes, || {
            drop(black_box(ops.linear(&x, &nf4).expect("linear")));
        });
        b.line(&format!("linear nf4 backward {name}"), 0.0, flops, bytes, || {
            drop(black_box(ops.linear_backward(&dy, &nf4, None).expect("linear")));
        });
        let mut dw = ops.zeros(&[outputs, inputs]).expect("dw");
        b.line(&format!("linear weight backward {name}"), 0.0, flops, bytes, || {
            ops.linear_weight_backward(&dy, &x, &mut dw).expect("dw");
        });
    }
}

fn adapters(b: &mut Bench) {
    let ops = b.cpu.clone();
    for (name, inputs, outputs, count) in
        [("q, o", C, C, 2.0), ("k, v", C, G * D, 2.0), ("gate, up", C, F, 2.0), ("down", F, C, 1.0)]
    {
        let (x, dy) = (b.random(&[N, inputs]), b.random(&[N, outputs]));
        let (la, lb) = (b.random(&[R, inputs]), b.random(&[outputs, R]));
        let h = b.random(&[N, R]);
        let (down, up) = (2.0 * (N * inputs * R) as f64, 2.0 * (N * outputs * R) as f64);
        let bytes = |wide: usize| 4.0 * (N * wide) as f64;
        b.line(&format!("lora x A' {name}"), 2.0 * count, down, bytes(inputs), || {
            drop(black_box(ops.matmul(&x, false, &la, true, 1.0, None).expect("product")));
        });
        let mut y = Some(ops.zeros(&[N, outputs]).expect("y"));
        b.line(&format!("lora y += h B' {name}"), 2.0 * count, up, 2.0 * bytes(outputs), || {
            y = Some(ops.matmul(&h, false, &lb, true, 2.0, y.take()).expect("product"));
        });
        b.line(&format!("lora dy B {name}"), count, up, bytes(outputs), || {
            drop(black_box(ops.matmul(&dy, false, &lb, false, 1.0, None).expect("product")));
        });
        let mut db = Some(ops.zeros(&[outputs, R]).expect("db"));
        b.line(&format!("lora dB += dy' h {name}"), count, up, bytes(outputs), || {
            db = Some(ops.matmul(&dy, true, &h, false, 1.0, db.take()).expect("product"));
        });
        let mut da = Some(ops.zeros(&[R, inputs]).expect("da"));
        b.line(&format!("lora dA += dh' x {name}"), count, down, bytes(inputs), || {
            da = Some(ops.matmul(&h, true, &x, false, 1.0, da.take()).expect("product"));
        });
        let mut dx = Some(ops.zeros(&[N, inputs]).expect("dx"));
        b.line(&format!("lora dx += dh A {name}"), count, down, 2.0 * bytes(inputs), || {
            dx = Some(ops.matmul(&h, false, &la, false, 1.0, dx.take()).expect("product"));
        });
    }
}

fn rows(b: &mut Bench) {
    let ops = b.cpu.clone();
    let (x, dy, w) = (b.random(&[N, C]), b.random(&[N, C]), b.random(&[C]));
    let wide = 4.0 * (N * C) as f64;
    let (_, rstd) = ops.rms_norm(&x, &w, 1e-5, 0.0).expect("norm");
    b.line("rms_norm", 4.0, 0.0, 2.0 * wide, || drop(black_box(ops.rms_norm(&x, &w, 1e-5, 0.0).expect("norm"))));
    let mut into = Some(ops.zeros(&[N, C]).expect("dx"));
    b.line("rms_norm backward", 2.0, 0.0, 4.0 * wide, || {
        into = Some(ops.rms_norm_backward(&dy, &x, &w, &rstd, 0.0, into.take(), None).expect("norm"));
    });
    b.line("add", 4.0, 0.0, 3.0 * wide, || drop(black_box(ops.add(&x, &dy).expect("sum"))));
    let mut sum = ops.copy(&x).expect("copy");
    b.line("add_scaled", 2.0, 0.0, 3.0 * wide, || ops.add_scaled(&mut sum, &dy, 1.0).expect("sum"));
    let (gate, up, dz) = (b.random(&[N, F]), b.random(&[N, F]), b.random(&[N, F]));
    let wider = 4.0 * (N * F) as f64;
    b.line("gated silu", 2.0, 0.0, 3.0 * wider, || {
        drop(black_box(ops.gated(&gate, &up, Activation::Silu).expect("gated")));
    });
    b.line("gated silu backward", 1.0, 0.0, 5.0 * wider, || {
        drop(black_box(ops.gated_backward(&dz, &gate, &up, Activation::Silu).expect("gated")));
    });
    b.line("gated gelu backward", 0.0, 0.0, 5.0 * wider, || {
        drop(black_box(ops.gated_backward(&dz, &gate, &up, Activation::GeluTanh).expect("gated")));
    });
    b.line("dropout", 0.0, 0.0, 2.0 * wide, || {
        drop(black_box(ops.dropout(&x, 0.1, Key::new(1, 2, 3)).expect("dropout")));
    });
}

fn attention(b: &mut Bench) {
    let ops = b.cpu.clone();
    // Turns, so that repeating one leaves the size of the numbers alone.
    let angles: Vec<f32> = (0..N * D / 2).map(|i| i as f32 * 0.1).collect();
    let turn =
        |f: fn(f32) -> f32| ops.upload(&[N, D / 2], &angles.iter().map(|a| f(*a)).collect::<Vec<_>>()).expect("memory");
    let table = RotaryTable { cos: turn(f32::cos), sin: turn(f32::sin), rotary_dim: D };
    let spec = AttentionSpec { heads: H, kv_heads: G, head_dim: D, scale: 0.125, softcap: None, window: None };
    for (lengths, calls) in [(vec![256; 4], 1.0), (vec![1024], 0.0)] {
        let segments = Segments::from_lengths(lengths.iter().copied());
        let (mut q, k, v) = (b.random(&[N, H * D]), b.random(&[N, G * D]), b.random(&[N, G * D]));
        let mut k_turned = b.random(&[N, G * D]);
        let dout = b.random(&[N, H * D]);
        let pairs: f64 = segments.ranges().map(|r| (r.len() * (r.len() + 1) / 2) as f64).sum();
        let flops = 4.0 * pairs * (H * D) as f64;
        let bytes = 4.0 * (N * (2 * H * D + 2 * G * D)) as f64;
        let name = format!("{} x {}", segments.count(), segments.longest());
        let positions = segments.positions();
        b.line(&format!("rotary q and k {name}"), 3.0 * calls, 0.0, 2.0 * 4.0 * (N * (H + G) * D) as f64, || {
            ops.rotary(&mut q, &positions, &table, D, false).expect("rotary");
            ops.rotary(&mut k_turned, &positions, &table, D, false).expect("rotary");
        });
        let (o, lse) = ops.attention(&q, &k, &v, &segments, &spec).expect("attention");
        b.line(&format!("attention {name}"), 2.0 * calls, flops, bytes, || {
            drop(black_box(ops.attention(&q, &k, &v, &segments, &spec).expect("attention")));
        });
        b.line(&format!("attention backward {name}"), calls, 2.5 * flops, 2.0 * bytes, || {
            drop(black_box(ops.attention_backward(&dout, &q, &k, &v, &o, &lse, &segments, &spec).expect("attention")));
        });
    }
}

fn head(b: &mut Bench) {
    let ops = b.cpu.clone();
    let h = b.random(&[N, C]);
    let weight = Weight::Dense(b.random(&[V, C]));
    let targets: Vec<u32> = (0..N as u32).map(|i| i * 37 % V as u32).collect();
    let want = StatisticSet { correct: true, ..Default::default() };
    let coefficients = TokenCoefficients { logp: vec![-1.0 / N as f32; N], ..Default::default() };
    let flops = 2.0 * (N * C * V) as f64;
    for rows in [0, 256] {
        let head = Head { weight: &weight, softcap: None, chunk_rows: rows };
        let calls = if rows == 0 { 1.0 } else { 0.0 };
        b.line(&format!("token_logp chunk {rows}"), 0.0, flops, 0.0, || {
            drop(black_box(ops.token_logp(&h, &head, &targets, want).expect("head")));
        });
        b.line(&format!("token_logp fused chunk {rows}"), calls, 2.0 * flops, 0.0, || {
            drop(black_box(ops.token_logp_fused(&h, &head, &targets, want, &coefficients, None).expect("head")));
        });
    }
}

fn decode(b: &mut Bench) {
    let ops = b.cpu.clone();
    for (name, inputs, outputs) in [("q", C, C), ("gate", C, F), ("down", F, C), ("head", C, V)] {
        // Several weights in turn, as in a model: one alone would stay in a cache.
        let count = (256 << 20) / (4 * inputs * outputs);
        let weights: Vec<Weight> = (0..count.max(2)).map(|_| Weight::Dense(b.random(&[outputs, inputs]))).collect();
        let x = b.random(&[1, inputs]);
        let mut turn = 0;
        b.line(&format!("decode {name}"), 0.0, 0.0, 4.0 * (inputs * outputs) as f64, || {
            turn = (turn + 1) % weights.len();
            drop(black_box(ops.linear(&x, &weights[turn]).expect("linear")));
        });
    }
    let spec = AttentionSpec { heads: H, kv_heads: G, head_dim: D, scale: 0.125, softcap: None, window: None };
    let (q, k, v) = (b.random(&[1, H * D]), b.random(&[2048, G * D]), b.random(&[2048, G * D]));
    for length in [128, 2048] {
        b.line(&format!("decode attention {length}"), 0.0, 0.0, 8.0 * (length * G * D) as f64, || {
            drop(black_box(ops.attention_cached(&q, &k, &v, length, &spec).expect("attention")));
        });
    }
    let x: Vec<f32> = vec![1.0; 64 << 20];
    let (seconds, _) = b.seconds(|| {
        let (left, right) = x.split_at(x.len() / 2);
        std::thread::scope(|scope| {
            for half in [left, right] {
                scope.spawn(move || {
                    black_box(pulp::Arch::new().dispatch(
                        #[inline(always)]
                        || {
                            let mut lanes = [0.0f32; 64];
                            for x in half.chunks_exact(64) {
                                for (lane, x) in lanes.iter_mut().zip(x) {
                                    *lane += x;
                                }
                            }
                            lanes
                        },
                    ))
                });
            }
        });
    });
    println!("reading memory on two threads: {:.1} GB/s", 4.0 * x.len() as f64 / seconds / 1e9);
}
