use super::reference;
use crate::Device;
use crate::error::TensorError;
use crate::ops::testing::{assert_bits, assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 1e-6;

#[test]
fn rows_are_taken_and_put_back() {
    for (rows, c, m) in [(1, 1, 1), (10, 3, 25), (300, 576, 100), (7, 1000, 2)] {
        let x = random(1, rows * c);
        let dy = random(2, m * c);
        let indices: Vec<u32> = (0..m).map(|i| ((i * 7 + 3) % rows) as u32).collect();
        let got = on_each(|cpu| {
            let taken = cpu.gather_rows(&upload(cpu, &[rows, c], &x), &indices).unwrap();
            let put = cpu.scatter_rows(rows, &indices, &upload(cpu, &[m, c], &dy)).unwrap();
            vec![read(cpu, &taken), read(cpu, &put)]
        });
        assert_bits(&got[0], &reference::gather_rows(&x, c, &indices));
        assert_near(TOLERANCE, &got[1], &reference::scatter_rows(rows, c, &indices, &dy));
    }
}

#[test]
fn cache_rows_are_written_in_place() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let mut cache = cpu.zeros(&[5, 2]).unwrap();
    cpu.write_rows(&mut cache, 1, &upload(&cpu, &[2, 2], &[1.0, 2.0, 3.0, 4.0])).unwrap();
    assert_eq!(read(&cpu, &cache), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0]);
    assert!(cpu.write_rows(&mut cache, 4, &upload(&cpu, &[2, 2], &[0.0; 4])).is_err());
    assert!(cpu.write_rows(&mut cache, 0, &upload(&cpu, &[2, 3], &[0.0; 6])).is_err());
}

#[test]
fn indices_outside_the_table_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let x = upload(&cpu, &[3, 2], &[0.0; 6]);
    let expected = TensorError::Index { op: "gather_rows", index: 3, rows: 3 };
    assert_eq!(cpu.gather_rows(&x, &[0, 3]).unwrap_err(), expected);
    assert!(cpu.scatter_rows(2, &[0, 1, 2], &x).is_err());
    assert!(cpu.scatter_rows(3, &[0, 1], &x).is_err());
    assert_eq!(cpu.gather_rows(&x, &[]).unwrap().shape(), [0, 2]);
}
