//! Checks of operations on elements and rows.

use super::{Pairs, plus, random};
use crate::error::Result;
use crate::ops::{
    Activation, Ops, RotaryTable, WeightKind, columns as columns_op, dropout as dropout_op, elementwise,
    embedding as embedding_op, gated as gated_op, gather as gather_op, layer_norm as layer_norm_op,
    random_weight as random_weight_op, rms_norm as rms_norm_op, rotary as rotary_op,
};
use crate::random::Key;

pub(super) fn memory(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 5, 1001] {
        let x = random(1, n);
        let t = ops.upload(&[n], &x)?;
        let mut copy = ops.copy(&t)?;
        pairs.push((ops.read(&copy)?, x.clone()));
        let other = random(2, n);
        ops.write(&mut copy, &other)?;
        pairs.push((ops.read(&copy)?, other));
        pairs.push((ops.read(&t)?, x.clone()));
        pairs.push((ops.read(&ops.zeros(&[n, 2])?)?, vec![0.0; 2 * n]));
        let halves = ops.upload_bf16(&[n], &x)?;
        pairs.push((ops.read(&ops.copy(&halves)?)?, x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect()));
    }
    Ok(pairs)
}

pub(super) fn random_weight(ops: &dyn Ops) -> Result<Pairs> {
    let key = Key::new(0x1234_5678_9abc_def0, 7, 42);
    let mut pairs = Vec::new();
    for shape in [[1, 1], [3, 7], [33, 130]] {
        let x = random_weight_op::reference::uniform(shape[0] * shape[1], 0.035, key);
        for kind in [WeightKind::F32, WeightKind::Bf16] {
            let got = ops.read_weight(&ops.random_weight(&shape, 0.035, key, kind)?)?;
            let round = |x: &f32| if kind == WeightKind::Bf16 { half::bf16::from_f32(*x).to_f32() } else { *x };
            pairs.push((got, x.iter().map(round).collect()));
        }
        for double_quant in [false, true] {
            let got = ops.random_weight(&shape, 0.035, key, WeightKind::Nf4 { double_quant })?;
            let want = ops.upload_nf4(&shape, &x, double_quant)?;
            pairs.push((ops.read_weight(&got)?, ops.read_weight(&want)?));
        }
    }
    Ok(pairs)
}

pub(super) fn add_scaled(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 255, 257, 70_001] {
        let (a, b) = (random(1, n), random(2, n));
        let (mut at, bt) = (ops.upload(&[n], &a)?, ops.upload(&[n], &b)?);
        pairs.push((ops.read(&ops.add(&at, &bt)?)?, elementwise::reference::add(&a, &b)));
        ops.add_scaled(&mut at, &bt, -0.5)?;
        let mut want = a.clone();
        elementwise::reference::add_scaled(&mut want, &b, -0.5);
        pairs.push((ops.read(&at)?, want.clone()));
        ops.scale(&mut at, 3.0)?;
        pairs.push((ops.read(&at)?, want.iter().map(|x| 3.0 * x).collect()));
        ops.fill_zero(&mut at)?;
        pairs.push((ops.read(&at)?, vec![0.0; n]));
    }
    Ok(pairs)
}

pub(super) fn divide(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for n in [1, 255, 70_001] {
        let a = random(1, n);
        // Divisors as norms are: positive, from a thousandth to a thousand.
        let b: Vec<f32> = random(2, n).iter().map(|x| 10f32.powf(3.0 * x)).collect();
        let got = ops.divide(&ops.upload(&[n], &a)?, &ops.upload(&[n], &b)?)?;
        pairs.push((ops.read(&got)?, elementwise::reference::divide(&a, &b)));
    }
    Ok(pairs)
}

pub(super) fn columns(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 7), (130, 33), (5000, 48)] {
        let (x, y, v) = (random(1, n * c), random(2, n * c), random(3, c));
        let (mut xt, yt, vt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &y)?, ops.upload(&[c], &v)?);
        pairs.push((ops.read(&ops.scale_columns(&xt, &vt)?)?, columns_op::reference::scale_columns(&x, &v)));
        let factors = random(5, n);
        let mut scaled = ops.copy(&yt)?;
        ops.scale_rows(&mut scaled, &factors)?;
        pairs.push((ops.read(&scaled)?, y.iter().enumerate().map(|(i, y)| y * factors[i / c]).collect()));
        let mut sums = ops.upload(&[c], &v)?;
        ops.bias_backward(&xt, &mut sums)?;
        pairs.push((ops.read(&sums)?, plus(&v, &columns_op::reference::column_sums(&x, c))));
        let mut dots = ops.upload(&[c], &v)?;
        ops.column_dot(&xt, &yt, &mut dots)?;
        pairs.push((ops.read(&dots)?, plus(&v, &columns_op::reference::column_dot(&x, &y, c))));
        ops.add_bias(&mut xt, &vt)?;
        let mut want = x.clone();
        columns_op::reference::add_bias(&mut want, &v);
        pairs.push((ops.read(&xt)?, want.clone()));
        let parts = ops.split_columns(&xt, &[1, c - 3, 2])?;
        let row = |from: usize, to: usize| want.chunks(c).flat_map(|row| row[from..to].to_vec()).collect::<Vec<f32>>();
        for (part, (from, to)) in parts.iter().zip([(0, 1), (1, c - 2), (c - 2, c)]) {
            pairs.push((ops.read(part)?, row(from, to)));
        }
        pairs.push((ops.read(&ops.join_columns(&[&parts[0], &parts[1], &parts[2]])?)?, want));
    }
    Ok(pairs)
}

pub(super) fn sum_squares(ops: &dyn Ops) -> Result<Pairs> {
    let all: Vec<Vec<f32>> = [1, 100, 4096, 50_001].iter().map(|n| random(*n as u32, *n)).collect();
    let mut tensors = Vec::new();
    for x in &all {
        tensors.push(ops.upload(&[x.len()], x)?);
    }
    let got = ops.sum_squares(&tensors.iter().collect::<Vec<_>>())?;
    let want: f64 = all.iter().flatten().map(|x| f64::from(*x) * f64::from(*x)).sum();
    Ok(vec![(vec![got as f32], vec![want as f32])])
}

/// Indices that repeat.
fn some_indices(n: usize, rows: usize) -> Vec<u32> {
    (0..n).map(|i| (i * 7 % 5 * 3 % rows) as u32).collect()
}

pub(super) fn gather(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, rows, c) in [(1, 1, 3), (40, 17, 65), (9, 300, 576)] {
        let (x, dy) = (random(1, rows * c), random(2, n * c));
        let indices = some_indices(n, rows);
        let xt = ops.upload(&[rows, c], &x)?;
        let dyt = ops.upload(&[n, c], &dy)?;
        pairs.push((ops.read(&ops.gather_rows(&xt, &indices)?)?, gather_op::reference::gather_rows(&x, c, &indices)));
        let want = gather_op::reference::scatter_rows(rows, c, &indices, &dy);
        pairs.push((ops.read(&ops.scatter_rows(rows, &indices, &dyt)?)?, want));
        let mut cache = ops.zeros(&[rows + n, c])?;
        ops.write_rows(&mut cache, rows, &dyt)?;
        pairs.push((ops.read(&cache)?, [vec![0.0; rows * c], dy].concat()));
    }
    Ok(pairs)
}

pub(super) fn dropout(ops: &dyn Ops) -> Result<Pairs> {
    let key = Key::new(0x1234_5678_9abc_def0, 7, 42);
    let mut pairs = Vec::new();
    for n in [1, 6, 10_001] {
        let x = random(1, n);
        let got = ops.read(&ops.dropout(&ops.upload(&[n], &x)?, 0.3, key)?)?;
        pairs.push((got, dropout_op::reference::dropout(&x, 0.3, key)));
    }
    Ok(pairs)
}

pub(super) fn embedding(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, v, c) in [(1, 5, 8), (33, 300, 65)] {
        let table = random(1, v * c);
        let halves: Vec<f32> = table.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
        let ids: Vec<u32> = (0..n).map(|i| (i * 31 % v) as u32).collect();
        let got = ops.embedding(&ids, &ops.upload(&[v, c], &table)?, 1.5)?;
        pairs.push((ops.read(&got)?, embedding_op::reference::forward(&ids, &table, c, 1.5)));
        let got = ops.embedding(&ids, &ops.upload_bf16(&[v, c], &table)?, 1.5)?;
        pairs.push((ops.read(&got)?, embedding_op::reference::forward(&ids, &halves, c, 1.5)));
    }
    Ok(pairs)
}

pub(super) fn embedding_backward(ops: &dyn Ops) -> Result<Pairs> {
    let (n, v, c) = (50, 40, 33);
    let (dy, before) = (random(1, n * c), random(2, v * c));
    let ids = some_indices(n, v);
    let mut dtable = ops.upload(&[v, c], &before)?;
    ops.embedding_backward(&ids, &ops.upload(&[n, c], &dy)?, 0.5, &mut dtable)?;
    let mut want = before;
    embedding_op::reference::backward(&ids, &dy, c, 0.5, &mut want);
    Ok(vec![(ops.read(&dtable)?, want)])
}

/// Tokens, columns and the norm's group.
const NORMS: [(usize, usize, usize); 5] = [(1, 2, 2), (1, 576, 576), (37, 577, 577), (100, 576, 64), (3, 512, 256)];

pub(super) fn rms_norm(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c, group) in NORMS {
        let (x, w) = (random(1, n * c), random(3, group));
        let (y, rstd) = ops.rms_norm(&ops.upload(&[n, c], &x)?, &ops.upload(&[group], &w)?, 1e-5, 1.0)?;
        let want = rms_norm_op::reference::forward(&x, &w, 1e-5, 1.0);
        pairs.extend([(ops.read(&y)?, want.0), (ops.read(&rstd)?, want.1)]);
    }
    Ok(pairs)
}

pub(super) fn rms_norm_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c, group) in NORMS {
        let (x, dy, w, before) = (random(1, n * c), random(2, n * c), random(3, group), random(4, n * c));
        let (_, rstd) = rms_norm_op::reference::forward(&x, &w, 1e-5, 0.0);
        let (xt, dyt, wt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &dy)?, ops.upload(&[group], &w)?);
        let rt = ops.upload(&[rstd.len()], &rstd)?;
        let mut dw = ops.upload(&[group], &w)?;
        let dx = ops.rms_norm_backward(&dyt, &xt, &wt, &rt, 0.0, None, Some(&mut dw))?;
        let into = Some(ops.upload(&[n, c], &before)?);
        let added = ops.rms_norm_backward(&dyt, &xt, &wt, &rt, 0.0, into, None)?;
        let want = rms_norm_op::reference::backward(&dy, &x, &w, &rstd, 0.0);
        pairs.push((ops.read(&dw)?, plus(&w, &want.1)));
        pairs.push((ops.read(&added)?, plus(&before, &want.0)));
        pairs.push((ops.read(&dx)?, want.0));
    }
    Ok(pairs)
}

pub(super) fn layer_norm(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 2), (37, 577), (5, 48)] {
        let (x, w, b) = (random(1, n * c), random(3, c), random(4, c));
        let (y, both) =
            ops.layer_norm(&ops.upload(&[n, c], &x)?, &ops.upload(&[c], &w)?, &ops.upload(&[c], &b)?, 1e-5)?;
        let want = layer_norm_op::reference::forward(&x, &w, &b, 1e-5);
        pairs.extend([(ops.read(&y)?, want.0), (ops.read(&both)?, want.1)]);
    }
    Ok(pairs)
}

pub(super) fn layer_norm_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, c) in [(1, 3), (37, 577), (130, 48)] {
        let (x, dy, w, before) = (random(1, n * c), random(2, n * c), random(3, c), random(4, n * c));
        let (_, both) = layer_norm_op::reference::forward(&x, &w, &w, 1e-5);
        let (xt, dyt, wt) = (ops.upload(&[n, c], &x)?, ops.upload(&[n, c], &dy)?, ops.upload(&[c], &w)?);
        let bt = ops.upload(&[n, 2], &both)?;
        let (mut dw, mut db) = (ops.upload(&[c], &w)?, ops.zeros(&[c])?);
        let into = Some(ops.upload(&[n, c], &before)?);
        let dx = ops.layer_norm_backward(&dyt, &xt, &wt, &bt, into, Some((&mut dw, &mut db)))?;
        let want = layer_norm_op::reference::backward(&dy, &x, &w, &both);
        pairs.push((ops.read(&dx)?, plus(&before, &want.0)));
        pairs.push((ops.read(&dw)?, plus(&w, &want.1)));
        pairs.push((ops.read(&db)?, want.2));
    }
    Ok(pairs)
}

pub(super) fn rotary(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for (n, heads, dim, rotary_dim) in [(1, 1, 2, 2), (33, 9, 64, 64), (5, 2, 256, 256), (9, 2, 96, 24)] {
        let half = rotary_dim / 2;
        let angle = |at: usize| (at / half) as f32 * 10_000f32.powf(-((at % half) as f32) / half as f32);
        let (cos, sin): (Vec<f32>, Vec<f32>) = (0..40 * half).map(|at| (angle(at).cos(), angle(at).sin())).unzip();
        let table =
            RotaryTable { cos: ops.upload(&[40, half], &cos)?, sin: ops.upload(&[40, half], &sin)?, rotary_dim };
        let x = random(1, n * heads * dim);
        let positions: Vec<u32> = (0..n as u32).map(|i| i * 5 % 40).collect();
        let mut t = ops.upload(&[n, heads * dim], &x)?;
        ops.rotary(&mut t, &positions, &table, dim, false)?;
        let mut want = x.clone();
        rotary_op::reference::rotary(&mut want, &positions, &cos, &sin, rotary_dim, dim, false);
        pairs.push((ops.read(&t)?, want));
        ops.rotary(&mut t, &positions, &table, dim, true)?;
        pairs.push((ops.read(&t)?, x));
    }
    Ok(pairs)
}

const KINDS: [Activation; 3] = [Activation::Silu, Activation::GeluTanh, Activation::Gelu];

/// Values of some units, and far ones that must not overflow.
fn gates(n: usize) -> Vec<f32> {
    let mut x: Vec<f32> = random(1, n).iter().map(|x| 6.0 * x).collect();
    for (place, far) in [(1, 90.0), (3, -90.0), (5, 0.0), (7, 1e4), (9, -1e4)] {
        if place < n {
            x[place] = far;
        }
    }
    x
}

pub(super) fn gated(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        for n in [10, 1000] {
            let (gate, up) = (gates(n), random(2, n));
            let got = ops.gated(&ops.upload(&[1, n], &gate)?, &ops.upload(&[1, n], &up)?, kind)?;
            pairs.push((ops.read(&got)?, gated_op::reference::gated(&gate, &up, kind)));
        }
    }
    Ok(pairs)
}

pub(super) fn gated_backward(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        // Moderate values, so that the far ones do not hide them.
        let n = 1000;
        let (gate, up, dy) = (random(1, n).iter().map(|x| 6.0 * x).collect::<Vec<_>>(), random(2, n), random(3, n));
        let (dgate, dup) = ops.gated_backward(
            &ops.upload(&[1, n], &dy)?,
            &ops.upload(&[1, n], &gate)?,
            &ops.upload(&[1, n], &up)?,
            kind,
        )?;
        let want = gated_op::reference::gated_backward(&dy, &gate, &up, kind);
        pairs.extend([(ops.read(&dgate)?, want.0), (ops.read(&dup)?, want.1)]);
    }
    Ok(pairs)
}

pub(super) fn activation(ops: &dyn Ops) -> Result<Pairs> {
    let mut pairs = Vec::new();
    for kind in KINDS {
        let (x, dy) = (gates(500), random(2, 500));
        let t = ops.upload(&[5, 100], &x)?;
        let both: (Vec<f32>, Vec<f32>) = x.iter().map(|x| gated_op::reference::activation(*x, kind)).unzip();
        pairs.push((ops.read(&ops.activation(&t, kind)?)?, both.0));
        let want = both.1.iter().zip(&dy).map(|(slope, dy)| slope * dy).collect();
        pairs.push((ops.read(&ops.activation_backward(&ops.upload(&[5, 100], &dy)?, &t, kind)?)?, want));
    }
    Ok(pairs)
}
