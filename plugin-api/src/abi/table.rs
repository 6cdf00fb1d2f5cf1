//! The function table of ABI version 1, frozen. The C header says the same;
//! a test compares their sizes.

use std::ffi::c_void;

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;

use crate::statistic::Statistic;

/// `FTPL`, the first field of every header.
pub const MAGIC: u32 = 0x4654_504c;
/// The version of this table.
pub const ABI_VERSION: u32 = 1;
/// The symbol that hands out the header.
pub const SYMBOL: &str = "finetuned_plugin";

/// What a function returns: it did what it should.
pub const OK: i32 = 0;
/// It did not; the error sink holds why.
pub const ERROR: i32 = 1;
/// It has nothing to give (a loss without a rule, an optimizer without an
/// evaluation program).
pub const NOTHING: i32 = 2;
/// It panicked; the error sink holds the message.
pub const PANIC: i32 = 3;

/// Bytes, as a rule UTF-8 text.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Bytes {
    pub data: *const u8,
    pub length: usize,
}

/// Numbers to read; `data` is null where they were not asked for.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Floats {
    pub data: *const f32,
    pub length: usize,
}

/// Numbers to write into memory of the host; null where they are not wanted.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct FloatsMut {
    pub data: *mut f32,
    /// Room, in numbers.
    pub length: usize,
    /// The plugin sets it to how many it has; the host refuses all but `length`.
    pub written: usize,
}

impl FloatsMut {
    /// Numbers that are not wanted.
    pub const NONE: FloatsMut = FloatsMut { data: std::ptr::null_mut(), length: 0, written: 0 };
}

/// Takes bytes that the plugin gives; may be called once or in parts.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct Sink {
    pub context: *mut c_void,
    pub write: unsafe extern "C" fn(context: *mut c_void, bytes: Bytes),
}

/// Takes named numbers.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct MetricSink {
    pub context: *mut c_void,
    pub add: unsafe extern "C" fn(context: *mut c_void, name: Bytes, value: f64),
}

/// One sequence of a batch.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct SequenceV1 {
    /// Its tokens are `start..end`.
    pub start: usize,
    pub end: usize,
    /// −1: of no pair.
    pub pair: i64,
    /// 0 plain, 1 chosen, 2 rejected, 3 completion, 4 KL completion.
    pub role: u32,
    /// 1 desirable, 0 undesirable, −1 without a label.
    pub label: i32,
    pub reward: f32,
    /// Whether `reward` holds one.
    pub has_reward: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, StableAbi)]
pub struct RoleTotalsV1 {
    pub sequences: u64,
    pub tokens: u64,
    pub weight: f64,
    pub completion_tokens: u64,
    pub completion_weight: f64,
}

/// Of the whole accumulated step; roles in the order of their numbers.
#[repr(C)]
#[derive(Clone, Copy, Default, StableAbi)]
pub struct TotalsV1 {
    pub roles: [RoleTotalsV1; 5],
    pub pairs: u64,
    pub desirable: u64,
    pub undesirable: u64,
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct BatchV1 {
    /// Number of trained tokens: the length of each token slice.
    pub tokens: usize,
    pub sequence_count: usize,
    pub logp: *const f32,
    pub weight: *const f32,
    /// 0 or 1.
    pub completion: *const u8,
    pub token: *const u32,
    pub sequences: *const SequenceV1,
    pub totals: *const TotalsV1,
    pub context: *const f64,
    pub context_length: usize,
    /// Null where not asked for; so with the next four.
    pub entropy: *const f32,
    pub lse: *const f32,
    pub mean_logp: *const f32,
    pub reference_logp: *const f32,
    /// One for each sequence.
    pub values: *const f32,
}

impl BatchV1 {
    /// The place of a statistic in this table.
    pub(super) fn statistic(&mut self, statistic: Statistic) -> &mut *const f32 {
        match statistic {
            Statistic::Logp => &mut self.logp,
            Statistic::MeanLogp => &mut self.mean_logp,
            Statistic::Entropy => &mut self.entropy,
            Statistic::Lse => &mut self.lse,
            Statistic::Value => &mut self.values,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct GradientsV1 {
    pub loss: f64,
    pub dlogp: FloatsMut,
    pub dentropy: FloatsMut,
    pub dlse: FloatsMut,
    pub dmean_logp: FloatsMut,
    pub dvalue: FloatsMut,
    pub metrics: MetricSink,
}

impl GradientsV1 {
    /// The place of a statistic's derivative in this table.
    pub(super) fn derivative(&mut self, statistic: Statistic) -> &mut FloatsMut {
        match statistic {
            Statistic::Logp => &mut self.dlogp,
            Statistic::MeanLogp => &mut self.dmean_logp,
            Statistic::Entropy => &mut self.dentropy,
            Statistic::Lse => &mut self.dlse,
            Statistic::Value => &mut self.dvalue,
        }
    }
}

/// Booleans are 0 or 1.
#[repr(C)]
#[derive(Clone, Copy, Default, StableAbi)]
pub struct NeedsV1 {
    pub entropy: u32,
    pub lse: u32,
    pub mean_logp: u32,
    pub reference_logp: u32,
    pub prompt_logp: u32,
    pub value: u32,
    /// 0 nothing, 1 KL completions, 2 everything.
    pub before_step: u32,
}

impl NeedsV1 {
    /// The place of a statistic in this table; none for `logp`, which every batch has.
    pub(super) fn statistic(&mut self, statistic: Statistic) -> Option<&mut u32> {
        match statistic {
            Statistic::Logp => None,
            Statistic::MeanLogp => Some(&mut self.mean_logp),
            Statistic::Entropy => Some(&mut self.entropy),
            Statistic::Lse => Some(&mut self.lse),
            Statistic::Value => Some(&mut self.value),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default, StableAbi)]
pub struct AlignmentNeedsV1 {
    /// 0 supervised, 1 pairs, 2 labelled, 3 rewards, 4 prompts.
    pub data: u32,
    pub reference: u32,
    pub value_head: u32,
    pub kl_completions: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, StableAbi)]
pub struct TokenRuleV1 {
    pub logp: f64,
    pub mean_logp: f64,
    pub entropy: f64,
    pub lse: f64,
}

impl TokenRuleV1 {
    /// The place of a statistic's coefficient in this table; none for `value`, which is not a
    /// token's.
    pub(super) fn coefficient(&mut self, statistic: Statistic) -> Option<&mut f64> {
        match statistic {
            Statistic::Logp => Some(&mut self.logp),
            Statistic::MeanLogp => Some(&mut self.mean_logp),
            Statistic::Entropy => Some(&mut self.entropy),
            Statistic::Lse => Some(&mut self.lse),
            Statistic::Value => None,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct HostStepV1 {
    /// A tensor's shape as JSON: `{"shape": [..], "name": "..", "kind": ".."}`.
    pub tensor: Bytes,
    pub parameter: *mut f32,
    pub gradient: *const f32,
    pub elements: usize,
    /// One for each state, in the order of `host_states`.
    pub states: *const FloatsMut,
    pub state_count: usize,
    pub learning_rate: f64,
    pub step: u64,
}

/// What `create` makes.
pub type Instance = *mut c_void;

/// One plugin. Functions that its kind does not have are null; those that it
/// must have are marked.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct PluginV1 {
    /// The plugin's own; handed back as it is.
    pub user: *const c_void,

    /// Every kind: the descriptor as JSON.
    pub describe: unsafe extern "C" fn(plugin: *const PluginV1, out: Sink, error: Sink) -> i32,
    /// Every kind: from a JSON object with a value for each stated parameter.
    pub create: unsafe extern "C" fn(plugin: *const PluginV1, values: Bytes, out: *mut Instance, error: Sink) -> i32,
    /// Every kind.
    pub destroy: unsafe extern "C" fn(instance: Instance),

    /// Loss, alignment.
    pub needs: Option<unsafe extern "C" fn(instance: Instance, out: *mut NeedsV1, error: Sink) -> i32>,
    /// May be null: gives no context. `out` takes f64 numbers, little-endian.
    pub prepare: Option<unsafe extern "C" fn(instance: Instance, step: *const BatchV1, out: Sink, error: Sink) -> i32>,
    /// Loss, alignment.
    pub evaluate: Option<
        unsafe extern "C" fn(instance: Instance, batch: *const BatchV1, out: *mut GradientsV1, error: Sink) -> i32,
    >,
    /// May be null: no rule.
    pub separable: Option<
        unsafe extern "C" fn(instance: Instance, totals: *const TotalsV1, out: *mut TokenRuleV1, error: Sink) -> i32,
    >,
    /// May be null. `metrics` is a JSON array of [name, value].
    pub end_step: Option<unsafe extern "C" fn(instance: Instance, loss: f64, metrics: Bytes, error: Sink) -> i32>,
    /// May be null: no state; so with `restore`.
    pub state: Option<unsafe extern "C" fn(instance: Instance, out: Sink, error: Sink) -> i32>,
    pub restore: Option<unsafe extern "C" fn(instance: Instance, state: Bytes, error: Sink) -> i32>,

    /// Alignment.
    pub alignment_needs:
        Option<unsafe extern "C" fn(instance: Instance, out: *mut AlignmentNeedsV1, error: Sink) -> i32>,

    /// Optimizer: the program for a tensor, both as JSON.
    pub rule: Option<unsafe extern "C" fn(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32>,
    /// May be null: the parameter itself is evaluated.
    pub evaluation: Option<unsafe extern "C" fn(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32>,
    /// May be null; given, the host calls `host_step` in place of the program.
    /// `out` takes a JSON array of states.
    pub host_states: Option<unsafe extern "C" fn(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32>,
    pub host_step: Option<unsafe extern "C" fn(instance: Instance, step: *const HostStepV1, error: Sink) -> i32>,
}

/// What a library holds. The first two fields are the same in every version.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct HeaderV1 {
    pub magic: u32,
    pub abi_version: u32,
    /// What it was built with: `finetuned-plugin-api 0.1.0`, or a compiler's name.
    pub built_with: Bytes,
    pub plugins: *const PluginV1,
    pub plugin_count: usize,
}

// SAFETY: a header and its table are immutable after their making, and the
// functions may be called from any thread.
unsafe impl Send for HeaderV1 {}
// SAFETY: as above.
unsafe impl Sync for HeaderV1 {}
// SAFETY: as above.
unsafe impl Send for PluginV1 {}
// SAFETY: as above.
unsafe impl Sync for PluginV1 {}

/// The root module of a Rust plugin: the same header, its layout checked.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleV1Ref)))]
pub struct PluginModuleV1 {
    #[sabi(last_prefix_field)]
    pub header: extern "C" fn() -> *const HeaderV1,
}

impl RootModule for PluginModuleV1Ref {
    abi_stable::declare_root_module_statics! {PluginModuleV1Ref}
    const BASE_NAME: &'static str = "finetuned_plugin_v1";
    const NAME: &'static str = "finetuned_plugin_v1";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}
