use finetuned_shaders::{Ops, gpu};
#[test]
fn smoke() {
    let list = gpu::list();
    println!("{list:?}");
    let t = std::time::Instant::now();
    let g = gpu::open(&list[0]).unwrap();
    println!("{:?} {:?}", g.facts(), t.elapsed());
    let x = g.upload(&[3, 5], &(0..15).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let w = g.upload(&[5], &[1.0; 5]).unwrap();
    let (y, r) = g.rms_norm(&x, &w, 1e-5, 0.0).unwrap();
    println!("{:?} {:?} {:?}", g.read(&y).unwrap(), g.read(&r).unwrap(), t.elapsed());
    for (m, k, n) in [(1usize, 5usize, 7usize), (33, 17, 65), (128, 576, 576), (512, 576, 1536)] {
        let a: Vec<f32> = (0..m * k).map(|i| ((i * 7 % 13) as f32 - 6.0) / 6.0).collect();
        let b: Vec<f32> = (0..n * k).map(|i| ((i * 5 % 11) as f32 - 5.0) / 5.0).collect();
        let at = g.upload(&[m, k], &a).unwrap();
        let bt = g.upload(&[n, k], &b).unwrap();
        let t = std::time::Instant::now();
        let c = g.read(&g.matmul(&at, false, &bt, true, 1.0, None).unwrap()).unwrap();
        let first = t.elapsed();
        let t = std::time::Instant::now();
        let c2 = g.read(&g.matmul(&at, false, &bt, true, 1.0, None).unwrap()).unwrap();
        let e = t.elapsed();
        let mut worst = 0.0f32;
        for i in 0..m {
            for j in 0..n {
                let want: f32 = (0..k).map(|q| a[i * k + q] * b[j * k + q]).sum();
                worst = worst.max((want - c[i * n + j]).abs());
            }
        }
        println!(
            "{m} {k} {n}: worst {worst} {:?} {:?} {} GFLOP/s {}",
            first,
            e,
            2.0 * (m * k * n) as f64 / e.as_secs_f64() / 1e9,
            c == c2
        );
    }
}
