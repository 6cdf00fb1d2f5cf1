//! GGUF tensor names → transformers' names.

use crate::families::Family;

/// The canonical name of a GGUF tensor; `None` for tables that are no weights
/// (`rope_freqs.weight`) and for names of other architectures.
pub(super) fn canonical_name(family: &Family, stored: &str) -> Option<String> {
    let find = |names: &[(&str, &'static str)], name: &str| {
        names.iter().find(|(known, _)| *known == name).map(|(_, canonical)| *canonical)
    };
    if let Some(name) = find(family.gguf.globals, stored) {
        return Some(name.to_string());
    }
    let (layer, part) = stored.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, kind) = part.rsplit_once('.')?;
    if !matches!(kind, "weight" | "bias") {
        return None;
    }
    let module = find(family.gguf.modules, module)?;
    Some(format!("{}.{layer}.{module}.{kind}", family.parts.layers))
}
