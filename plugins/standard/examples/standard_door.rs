//! The built-in plugins as a library of their own, behind the same door as any
//! other: a test loads it and compares bits.

finetuned_plugin_api::export_plugins!(finetuned_standard::BUILT_IN);
