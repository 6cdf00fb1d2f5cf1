//! No second-class plugins: what is linked in and what comes through the
//! dynamic door computes the same bits.

mod common;

use common::{Data, OBJECTIVES, batch, evaluate, rows, step};
use finetuned_plugin_api::optimizer::{TensorKind, TensorShape};
use finetuned_plugin_api::registry::{Kind, Registry};
use finetuned_plugin_api::{abi, conformance};

fn loaded() -> Registry {
    let target = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    let name = format!("{}standard_door{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let mut registry = Registry::default();
    for entry in abi::load(&target.join(name), "").unwrap() {
        registry.add(entry).unwrap();
    }
    registry
}

#[test]
fn every_built_in_plugin_is_the_same_through_the_door() {
    let (outside, inside) = (loaded(), finetuned_standard::registry().unwrap());
    assert_eq!(outside.entries().len(), inside.entries().len());
    for (a, b) in outside.entries().iter().zip(inside.entries()) {
        assert_eq!(a.descriptor, b.descriptor);
    }
    for (name, parameters, data) in OBJECTIVES {
        let given = serde_json::from_str(parameters).unwrap();
        let (a, b) = (outside.objective(name, &given).unwrap(), inside.objective(name, &given).unwrap());
        assert_eq!(a.alignment_needs(), b.alignment_needs(), "{name}");
        let needs = a.loss().needs();
        assert_eq!(needs, b.loss().needs(), "{name}");
        let kl = batch(&rows(Data::Kl), &needs);
        let cut: Vec<_> = rows(*data).chunks(4).map(|rows| batch(rows, &needs)).collect();
        let ((_, seen), (_, expected)) = (step(a.loss(), &cut, Some(&kl)), step(b.loss(), &cut, Some(&kl)));
        assert_eq!(seen, expected, "{name}: the step's context");
        for batch in &seen {
            assert_eq!(evaluate(a.loss(), &batch.view()), evaluate(b.loss(), &batch.view()), "{name}");
            assert_eq!(a.loss().separable(&batch.totals), b.loss().separable(&batch.totals), "{name}");
        }
    }
    let tensor = |shape: &[usize]| TensorShape { shape: shape.to_vec(), name: "w".into(), kind: TensorKind::Matrix };
    for entry in inside.entries().iter().filter(|entry| entry.descriptor.kind == Kind::Optimizer) {
        let name = &entry.descriptor.name;
        let make = |registry: &Registry| registry.optimizer(name, &Default::default()).unwrap();
        let (a, b) = (make(&outside), make(&inside));
        for tensor in [tensor(&[7]), tensor(&[96, 64])] {
            assert_eq!(a.rule(&tensor).unwrap(), b.rule(&tensor).unwrap(), "{name}");
            assert_eq!(a.evaluation(&tensor).unwrap(), b.evaluation(&tensor).unwrap(), "{name}");
            assert!(a.host().is_none(), "{name}");
        }
    }
}

#[test]
fn every_built_in_plugin_passes_the_conformance_kit() {
    for entry in finetuned_standard::registry().unwrap().entries() {
        for conformance::Check { name: check, .. } in conformance::checks(entry.descriptor.kind) {
            let name = &entry.descriptor.name;
            conformance::run(entry, check).unwrap_or_else(|why| panic!("{name}, {check}: {why}"));
        }
    }
}
