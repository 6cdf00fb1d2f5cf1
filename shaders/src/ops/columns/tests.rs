use super::reference;
use crate::Device;
use crate::ops::testing::{assert_bits, assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 3e-6;

#[test]
fn operations_with_a_vector_agree_with_the_reference() {
    for (n, c) in [(1, 1), (1, 576), (33, 7), (100, 576), (257, 65)] {
        let (x, y, g) = (random(1, n * c), random(2, n * c), random(3, c));
        let got = on_each(|cpu| {
            let (a, b, v) = (upload(cpu, &[n, c], &x), upload(cpu, &[n, c], &y), upload(cpu, &[c], &g));
            let mut biased = cpu.copy(&a).unwrap();
            cpu.add_bias(&mut biased, &v).unwrap();
            let mut dbias = cpu.copy(&v).unwrap();
            cpu.bias_backward(&a, &mut dbias).unwrap();
            let scaled = cpu.scale_columns(&a, &v).unwrap();
            let mut dots = cpu.copy(&v).unwrap();
            cpu.column_dot(&a, &b, &mut dots).unwrap();
            vec![read(cpu, &biased), read(cpu, &dbias), read(cpu, &scaled), read(cpu, &dots)]
        });
        let mut want = x.clone();
        reference::add_bias(&mut want, &g);
        assert_near(TOLERANCE, &got[0], &want);
        let plus_g = |sums: Vec<f32>| sums.iter().zip(&g).map(|(s, g)| s + g).collect::<Vec<_>>();
        assert_near(TOLERANCE, &got[1], &plus_g(reference::column_sums(&x, c)));
        assert_near(TOLERANCE, &got[2], &reference::scale_columns(&x, &g));
        assert_near(TOLERANCE, &got[3], &plus_g(reference::column_dot(&x, &y, c)));
    }
}

#[test]
fn joining_undoes_splitting() {
    let (n, widths) = (37, [576, 192, 192, 1]);
    let c: usize = widths.iter().sum();
    let x = random(4, n * c);
    let got = on_each(|cpu| {
        let parts = cpu.split_columns(&upload(cpu, &[n, c], &x), &widths).unwrap();
        assert!(parts.iter().zip(widths).all(|(part, width)| part.shape() == [n, width]));
        let joined = cpu.join_columns(&parts.iter().collect::<Vec<_>>()).unwrap();
        vec![read(cpu, &joined), read(cpu, &parts[1])]
    });
    assert_bits(&got[0], &x);
    assert_bits(&got[1][..192], &x[576..768]);
}

#[test]
fn wrong_widths_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = upload(&cpu, &[2, 3], &[0.0; 6]);
    let v = upload(&cpu, &[2], &[0.0; 2]);
    assert!(cpu.scale_columns(&x, &v).is_err());
    assert!(cpu.split_columns(&x, &[1, 1]).is_err());
    assert!(cpu.split_columns(&x, &[3, 0]).is_err());
    assert!(cpu.join_columns(&[&x, &upload(&cpu, &[3, 1], &[0.0; 3])]).is_err());
    assert!(cpu.add_bias(&mut upload(&cpu, &[2, 3], &[0.0; 6]), &v).is_err());
}
