use super::reference;
use crate::Device;
use crate::ops::testing::{assert_bits, assert_near, on_each, random, read, upload};

/// How far the CPU may be from the reference ([`assert_near`]).
const TOLERANCE: f32 = 1e-6;

#[test]
fn rows_are_looked_up_and_their_gradients_added() {
    // A vocabulary that is no multiple of anything, with repeated ids.
    for (v, c, n) in [(1, 1, 1), (49_153, 8, 100), (50, 576, 201)] {
        let table = random(1, v * c);
        let dy = random(2, n * c);
        let ids: Vec<u32> = (0..n).map(|i| if i % 3 == 0 { v - 1 } else { i * 31 % v } as u32).collect();
        let got = on_each(|cpu| {
            let y = cpu.embedding(&ids, &upload(cpu, &[v, c], &table), 7.5).unwrap();
            let mut dtable = upload(cpu, &[v, c], &table);
            cpu.embedding_backward(&ids, &upload(cpu, &[n, c], &dy), 7.5, &mut dtable).unwrap();
            vec![read(cpu, &y), read(cpu, &dtable)]
        });
        assert_bits(&got[0], &reference::forward(&ids, &table, c, 7.5));
        let mut want = table.clone();
        reference::backward(&ids, &dy, c, 7.5, &mut want);
        assert_near(TOLERANCE, &got[1], &want);
    }
}

#[test]
fn a_bf16_table_gives_its_rounded_rows() {
    let cpu = Device::cpu(Some(2)).unwrap();
    let table = cpu.upload_bf16(&[5, 3], &random(3, 15)).unwrap();
    let rounded = read(&cpu, &table);
    let y = cpu.embedding(&[4, 0, 4], &table, 2.0).unwrap();
    assert_bits(&read(&cpu, &y), &reference::forward(&[4, 0, 4], &rounded, 3, 2.0));
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    let cpu = Device::cpu(Some(1)).unwrap();
    let mut table = upload(&cpu, &[3, 2], &[0.0; 6]);
    assert!(cpu.embedding(&[3], &table, 1.0).is_err());
    let dy = upload(&cpu, &[1, 2], &[0.0; 2]);
    assert!(cpu.embedding_backward(&[3], &dy, 1.0, &mut table).is_err());
    assert!(cpu.embedding_backward(&[1, 1], &dy, 1.0, &mut table).is_err());
}
