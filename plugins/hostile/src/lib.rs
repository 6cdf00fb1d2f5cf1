//! Losses that misbehave, each in the way that its name says. With
//! `HOSTILE_VERSION` in the environment the library claims that ABI version.

use std::time::Duration;

use finetuned_plugin_api::PluginError;
use finetuned_plugin_api::loss::{Batch, Gradients, Loss, Needs, Statistic};
use finetuned_plugin_api::parameters::{Parameters, Values};
use finetuned_plugin_api::registry::{BuiltIn, Descriptor, Kind, Make};

#[derive(Clone, Copy)]
enum Way {
    Panic,
    Segfault,
    Exit,
    Hang,
    Nan,
    WrongLength,
    MemoryEater,
}

struct Hostile(Way);

impl Loss for Hostile {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        out.reset(&self.needs(), batch)?;
        let dlogp = &mut out.derivatives[Statistic::Logp];
        match self.0 {
            Way::Panic => panic!("at the disco"),
            Way::Segfault => {
                // SAFETY: there is none; that is the point.
                unsafe { std::hint::black_box(8 as *mut u32).write_volatile(1) };
            }
            Way::Exit => std::process::exit(0),
            Way::Hang => loop {
                std::thread::sleep(Duration::from_millis(10));
            },
            Way::Nan => dlogp.fill(f32::NAN),
            Way::WrongLength => dlogp.push(1.0),
            Way::MemoryEater => {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(vec![1u8; 16 << 20]);
                    std::hint::black_box(&eaten);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        Ok(())
    }
}

macro_rules! ways {
    ($($name:literal $make:ident $way:ident),*) => {
        $(mod $make {
            use super::*;
            pub fn descriptor() -> Descriptor {
                Descriptor {
                    name: $name.into(),
                    kind: Kind::Loss,
                    version: env!("CARGO_PKG_VERSION").into(),
                    parameters: Parameters::default(),
                    help: "Misbehaves.".into(),
                    paper: String::new(),
                }
            }
            pub fn make(_: &Values) -> Result<Box<dyn Loss>, PluginError> {
                Ok(Box::new(Hostile(Way::$way)))
            }
        })*
        static ALL: &[BuiltIn] =
            &[$(BuiltIn { descriptor: $make::descriptor, make: Make::Loss($make::make) }),*];
    };
}

ways!(
    "hostile-panic" panics Panic,
    "hostile-segfault" segfaults Segfault,
    "hostile-exit" exits Exit,
    "hostile-hang" hangs Hang,
    "hostile-nan" nans Nan,
    "hostile-wrong-length" wrong_length WrongLength,
    "hostile-memory" eats MemoryEater
);

static EXPORT: finetuned_plugin_api::abi::export::Export = finetuned_plugin_api::abi::export::Export::new();

/// By hand in place of `export_plugins!`, to be able to lie about the version.
#[unsafe(no_mangle)]
pub extern "C" fn finetuned_plugin() -> *const finetuned_plugin_api::abi::table::HeaderV1 {
    let header = EXPORT.header(ALL);
    match std::env::var("HOSTILE_VERSION").ok().and_then(|version| version.parse().ok()) {
        None => header,
        Some(abi_version) => {
            // SAFETY: `header` is the static header of the line above.
            let lie = finetuned_plugin_api::abi::table::HeaderV1 { abi_version, ..unsafe { *header } };
            Box::leak(Box::new(lie))
        }
    }
}
