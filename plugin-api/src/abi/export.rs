//! The plugin's side: from [`BuiltIn`] plugins to the function table.
//!
//! Each function catches a panic and returns it as an error, so that none
//! unwinds into the host.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use super::table::*;
use crate::PluginError;
use crate::alignment::Alignment;
use crate::loss::{Batch, BeforeStep, Gradients, Loss, Needs, Per, PerStatistic, Role, Sequence, Statistic, Totals};
use crate::optimizer::{Optimizer, TensorShape};
use crate::parameters::Values;
use crate::program::Scalars;
use crate::registry::{BuiltIn, Kind, Make};

/// Puts plugins behind the door: the one line that a library needs.
///
/// ```ignore
/// finetuned_plugin_api::export_plugins!(&[BuiltIn { descriptor, make: Make::Loss(make) }]);
/// ```
#[macro_export]
macro_rules! export_plugins {
    ($plugins:expr) => {
        const _: () = {
            static PLUGINS: &[$crate::registry::BuiltIn] = $plugins;
            static EXPORT: $crate::abi::export::Export = $crate::abi::export::Export::new();

            #[unsafe(no_mangle)]
            pub extern "C" fn finetuned_plugin() -> *const $crate::abi::table::HeaderV1 {
                EXPORT.header(PLUGINS)
            }

            // What abi_stable's own attribute would write, by way of this crate.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static ROOT: $crate::abi::private::LibHeader = {
                extern "C" fn erased() -> $crate::abi::private::RootModuleResult {
                    $crate::abi::private::__call_root_module_loader(|| $crate::abi::export::module(finetuned_plugin))
                }
                // SAFETY: `erased` returns the module type that it is declared with.
                unsafe {
                    $crate::abi::private::LibHeader::from_constructor::<$crate::abi::table::PluginModuleV1Ref>(
                        erased,
                        $crate::abi::private::CheckTypeLayout::Yes,
                    )
                }
            };
        };
    };
}

#[doc(hidden)]
pub fn module(header: extern "C" fn() -> *const HeaderV1) -> PluginModuleV1Ref {
    use abi_stable::prefix_type::PrefixTypeTrait;
    PluginModuleV1 { header }.leak_into_prefix()
}

/// The name under which `abi_stable` looks for a root module.
pub(super) const ROOT_SYMBOL: &str = "_1as_0lib_1header_0root_bmodule_bloader";

/// A library's header, made once.
pub struct Export {
    made: OnceLock<(Vec<PluginV1>, HeaderV1)>,
}

const BUILT_WITH: &str = concat!("finetuned-plugin-api ", env!("CARGO_PKG_VERSION"));

impl Export {
    #[doc(hidden)]
    #[allow(clippy::new_without_default, reason = "only the macro makes one, in a static")]
    pub const fn new() -> Export {
        Export { made: OnceLock::new() }
    }

    /// The header of these plugins.
    pub fn header(&'static self, plugins: &'static [BuiltIn]) -> *const HeaderV1 {
        let (_, header) = self.made.get_or_init(|| {
            let tables: Vec<PluginV1> = plugins.iter().map(table).collect();
            let header = HeaderV1 {
                magic: MAGIC,
                abi_version: ABI_VERSION,
                built_with: Bytes::from_text(BUILT_WITH),
                // The vector's memory stays where it is when the vector moves.
                plugins: tables.as_ptr(),
                plugin_count: tables.len(),
            };
            (tables, header)
        });
        header
    }
}

fn table(plugin: &'static BuiltIn) -> PluginV1 {
    let kind = (plugin.descriptor)().kind;
    let objective = kind != Kind::Optimizer;
    let optimizer = kind == Kind::Optimizer;
    PluginV1 {
        user: std::ptr::from_ref(plugin).cast(),
        describe,
        create,
        destroy,
        needs: objective.then_some(needs as _),
        prepare: objective.then_some(prepare as _),
        evaluate: objective.then_some(evaluate as _),
        separable: objective.then_some(separable as _),
        end_step: objective.then_some(end_step as _),
        state: objective.then_some(state as _),
        restore: objective.then_some(restore as _),
        alignment_needs: (kind == Kind::Alignment).then_some(alignment_needs as _),
        rule: optimizer.then_some(rule as _),
        evaluation: optimizer.then_some(evaluation as _),
        host_states: optimizer.then_some(host_states as _),
        host_step: optimizer.then_some(host_step as _),
    }
}

/// What `create` makes.
enum Made {
    Loss(Box<dyn Loss>),
    Alignment(Box<dyn Alignment>),
    Optimizer(Box<dyn Optimizer>),
}

impl Made {
    fn loss(&self) -> Result<&dyn Loss, PluginError> {
        match self {
            Made::Loss(loss) => Ok(loss.as_ref()),
            Made::Alignment(method) => Ok(method.objective()),
            Made::Optimizer(_) => Err(PluginError::Failed("an optimizer has no loss".into())),
        }
    }

    fn loss_mut(&mut self) -> Result<&mut dyn Loss, PluginError> {
        match self {
            Made::Loss(loss) => Ok(loss.as_mut()),
            Made::Alignment(method) => Ok(method.objective_mut()),
            Made::Optimizer(_) => Err(PluginError::Failed("an optimizer has no loss".into())),
        }
    }

    fn optimizer(&self) -> Result<&dyn Optimizer, PluginError> {
        match self {
            Made::Optimizer(optimizer) => Ok(optimizer.as_ref()),
            _ => Err(PluginError::Failed("this plugin is no optimizer".into())),
        }
    }
}

impl Bytes {
    pub(super) fn from_text(text: &str) -> Bytes {
        Bytes { data: text.as_ptr(), length: text.len() }
    }

    /// # Safety
    /// `data` must point to `length` readable bytes that outlive `'a`.
    pub(super) unsafe fn slice<'a>(self) -> &'a [u8] {
        // SAFETY: the caller's promise.
        unsafe { read(self.data, self.length) }
    }
}

impl Sink {
    fn put(self, bytes: &[u8]) {
        // SAFETY: the host's function takes any bytes during the call.
        unsafe { (self.write)(self.context, Bytes { data: bytes.as_ptr(), length: bytes.len() }) };
    }
}

/// A slice from a pointer that may be null when it is empty.
///
/// # Safety
/// A pointer that is not null must point to `length` values that outlive `'a`.
unsafe fn read<'a, T>(data: *const T, length: usize) -> &'a [T] {
    if data.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(data, length) }
}

/// Runs the plugin's code: its error, or its panic, goes to the sink.
fn guarded(error: Sink, f: impl FnOnce() -> Result<i32, PluginError>) -> i32 {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(status)) => status,
        Ok(Err(failure)) => {
            error.put(failure.to_string().as_bytes());
            ERROR
        }
        Err(panic) => {
            error.put(format!("panicked: {}", message(panic.as_ref())).as_bytes());
            PANIC
        }
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, PluginError> {
    serde_json::from_slice(bytes).map_err(|error| PluginError::Failed(format!("the host's JSON: {error}")))
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, PluginError> {
    serde_json::to_vec(value).map_err(|error| PluginError::Failed(error.to_string()))
}

/// The instance behind a pointer.
///
/// # Safety
/// `instance` came from [`create`], is not destroyed, and is used by one thread
/// at a time.
unsafe fn made<'a>(instance: Instance) -> Result<&'a mut Made, PluginError> {
    // SAFETY: the caller's promise.
    unsafe { instance.cast::<Made>().as_mut() }.ok_or_else(|| PluginError::Failed("no instance".into()))
}

unsafe extern "C" fn describe(plugin: *const PluginV1, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: `user` of our own table points to a `BuiltIn` that is static.
        let built_in = unsafe { &*(*plugin).user.cast::<BuiltIn>() };
        out.put(&to_json(&(built_in.descriptor)())?);
        Ok(OK)
    })
}

unsafe extern "C" fn create(plugin: *const PluginV1, values: Bytes, out: *mut Instance, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: as in `describe`; `values` are the host's, readable during the call.
        let (built_in, values) = unsafe { (&*(*plugin).user.cast::<BuiltIn>(), values.slice()) };
        let values: Values = json(values)?;
        let made = match built_in.make {
            Make::Loss(make) => Made::Loss(make(&values)?),
            Make::Alignment(make) => Made::Alignment(make(&values)?),
            Make::Optimizer(make) => Made::Optimizer(make(&values)?),
        };
        // SAFETY: the host's place for the instance.
        unsafe { *out = Box::into_raw(Box::new(made)).cast::<c_void>() };
        Ok(OK)
    })
}

unsafe extern "C" fn destroy(instance: Instance) {
    if !instance.is_null() {
        // SAFETY: the host destroys what `create` gave, once.
        let made = unsafe { Box::from_raw(instance.cast::<Made>()) };
        // A panic while dropping ends here; there is nobody to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(made)));
    }
}

unsafe extern "C" fn needs(instance: Instance, out: *mut NeedsV1, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and place.
        let (made, out) = unsafe { (made(instance)?, &mut *out) };
        *out = made.loss()?.needs().into();
        Ok(OK)
    })
}

unsafe extern "C" fn alignment_needs(instance: Instance, out: *mut AlignmentNeedsV1, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and place.
        let (made, out) = unsafe { (made(instance)?, &mut *out) };
        let Made::Alignment(method) = made else {
            return Err(PluginError::Failed("this plugin is no alignment method".into()));
        };
        let needs = method.needs();
        *out = AlignmentNeedsV1 {
            data: needs.data as u32,
            reference: needs.reference.into(),
            value_head: needs.value_head.into(),
            kl_completions: needs.kl_completions.into(),
        };
        Ok(OK)
    })
}

/// Calls `f` with the host's batch as a [`Batch`].
///
/// # Safety
/// The pointers of `batch` must be as its documentation says.
unsafe fn with_batch<R>(
    batch: *const BatchV1,
    f: impl FnOnce(&Batch) -> Result<R, PluginError>,
) -> Result<R, PluginError> {
    // SAFETY: the caller's promise, for this and all reads below.
    let raw = unsafe { batch.as_ref() }.ok_or_else(|| PluginError::Failed("no batch".into()))?;
    let (n, count) = (raw.tokens, raw.sequence_count);
    let sequences = unsafe { read(raw.sequences, count) };
    let sequences: Vec<Sequence> = sequences
        .iter()
        .map(|sequence| Sequence {
            tokens: sequence.start..sequence.end,
            role: Role::ALL.get(sequence.role as usize).copied().unwrap_or(Role::Plain),
            pair: u32::try_from(sequence.pair).ok(),
            label: match sequence.label {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
            reward: (sequence.has_reward != 0).then_some(f64::from(sequence.reward)),
            columns: Vec::new(),
        })
        .collect();
    let completion: Vec<bool> = unsafe { read(raw.completion, n) }.iter().map(|byte| *byte != 0).collect();
    let totals: Totals = unsafe { raw.totals.as_ref() }.copied().unwrap_or_default().into();
    let optional = |data: *const f32, n: usize| (!data.is_null()).then(|| unsafe { read(data, n) });
    let mut places = *raw;
    let mut statistics = PerStatistic::from_fn(|statistic| {
        let count = match statistic.per() {
            Per::Token => n,
            Per::Sequence => count,
        };
        optional(*places.statistic(statistic), count)
    });
    // An empty batch has no log-probabilities to point to.
    statistics[Statistic::Logp].get_or_insert_default();
    let batch = Batch {
        statistics,
        reference_logp: optional(raw.reference_logp, n),
        weight: unsafe { read(raw.weight, n) },
        completion: &completion,
        token: unsafe { read(raw.token, n) },
        sequences: &sequences,
        totals: &totals,
        context: unsafe { read(raw.context, raw.context_length) },
    };
    f(&batch)
}

unsafe extern "C" fn prepare(instance: Instance, step: *const BatchV1, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and batch.
        let context = unsafe {
            let made = made(instance)?;
            with_batch(step, |step| made.loss()?.before_step(step))?
        };
        let bytes: Vec<u8> = context.iter().flat_map(|value| value.to_le_bytes()).collect();
        out.put(&bytes);
        Ok(OK)
    })
}

unsafe extern "C" fn evaluate(instance: Instance, batch: *const BatchV1, out: *mut GradientsV1, error: Sink) -> i32 {
    guarded(error, || {
        let mut gradients = Gradients::default();
        // SAFETY: the host's instance and batch.
        unsafe {
            let made = made(instance)?;
            with_batch(batch, |batch| made.loss()?.evaluate(batch, &mut gradients))?;
        }
        // SAFETY: the host's place.
        let out = unsafe { &mut *out };
        out.loss = gradients.loss;
        // SAFETY: each destination has room for `length` numbers.
        unsafe {
            for (statistic, derivative) in gradients.derivatives.iter() {
                put(out.derivative(statistic), derivative);
            }
        }
        for (name, value) in &gradients.metrics {
            // SAFETY: the host's function takes any name during the call.
            unsafe { (out.metrics.add)(out.metrics.context, Bytes::from_text(name), *value) };
        }
        Ok(OK)
    })
}

/// # Safety
/// `into` must have room for `length` numbers, or be null.
unsafe fn put(into: &mut FloatsMut, from: &[f32]) {
    into.written = from.len();
    if !into.data.is_null() {
        let count = from.len().min(into.length);
        // SAFETY: at most as many as there is room for.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.data, count) };
    }
}

unsafe extern "C" fn separable(instance: Instance, totals: *const TotalsV1, out: *mut TokenRuleV1, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance, totals and place.
        let (made, totals, out) = unsafe { (made(instance)?, (*totals).into(), &mut *out) };
        Ok(match made.loss()?.separable(&totals) {
            None => NOTHING,
            Some(rule) => {
                for (statistic, coefficient) in rule.coefficients.iter() {
                    match out.coefficient(statistic) {
                        Some(place) => *place = *coefficient,
                        None if *coefficient != 0.0 => {
                            return Err(PluginError::Batch(format!("a token rule cannot use {}", statistic.name())));
                        }
                        None => {}
                    }
                }
                OK
            }
        })
    })
}

unsafe extern "C" fn end_step(instance: Instance, loss: f64, metrics: Bytes, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and bytes.
        let (made, metrics) = unsafe { (made(instance)?, metrics.slice()) };
        let metrics: Vec<(String, f64)> = json(metrics)?;
        made.loss_mut()?.end_step(loss, &metrics)?;
        Ok(OK)
    })
}

unsafe extern "C" fn state(instance: Instance, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance.
        out.put(&unsafe { made(instance) }?.loss()?.state()?);
        Ok(OK)
    })
}

unsafe extern "C" fn restore(instance: Instance, state: Bytes, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and bytes.
        let (made, state) = unsafe { (made(instance)?, state.slice()) };
        made.loss_mut()?.restore(state)?;
        Ok(OK)
    })
}

unsafe extern "C" fn rule(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and bytes.
        let (made, tensor) = unsafe { (made(instance)?, tensor.slice()) };
        out.put(&to_json(&made.optimizer()?.rule(&json(tensor)?)?)?);
        Ok(OK)
    })
}

unsafe extern "C" fn evaluation(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and bytes.
        let (made, tensor) = unsafe { (made(instance)?, tensor.slice()) };
        Ok(match made.optimizer()?.evaluation(&json(tensor)?)? {
            None => NOTHING,
            Some(program) => {
                out.put(&to_json(&program)?);
                OK
            }
        })
    })
}

unsafe extern "C" fn host_states(instance: Instance, tensor: Bytes, out: Sink, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance and bytes.
        let (made, tensor) = unsafe { (made(instance)?, tensor.slice()) };
        Ok(match made.optimizer()?.host() {
            None => NOTHING,
            Some(host) => {
                out.put(&to_json(&host.states(&json(tensor)?)?)?);
                OK
            }
        })
    })
}

unsafe extern "C" fn host_step(instance: Instance, step: *const HostStepV1, error: Sink) -> i32 {
    guarded(error, || {
        // SAFETY: the host's instance, and memory as the table says.
        let (made, step) = unsafe { (made(instance)?, &*step) };
        let host = made.optimizer()?.host();
        let host = host.ok_or_else(|| PluginError::Failed("this optimizer has no host step".into()))?;
        // SAFETY: as above; parameter, gradient and states do not overlap.
        let (tensor, parameter, gradient, places) = unsafe {
            (
                json::<TensorShape>(step.tensor.slice())?,
                write(step.parameter, step.elements),
                read(step.gradient, step.elements),
                read(step.states, step.state_count),
            )
        };
        // The trait takes vectors; the escape hatch is slow as it is.
        let mut states: Vec<Vec<f32>> =
            places.iter().map(|place| unsafe { read(place.data.cast_const(), place.length) }.to_vec()).collect();
        let scalars = Scalars { learning_rate: step.learning_rate, step: step.step };
        host.step(&tensor, parameter, gradient, &mut states, &scalars)?;
        for (place, state) in places.iter().zip(&states) {
            if state.len() != place.length {
                return Err(PluginError::shape("a state after the step", place.length, state.len()));
            }
            // SAFETY: as above.
            unsafe { write(place.data, place.length) }.copy_from_slice(state);
        }
        Ok(OK)
    })
}

/// # Safety
/// As [`read`], and nothing else may use that memory during `'a`.
unsafe fn write<'a>(data: *mut f32, length: usize) -> &'a mut [f32] {
    if data.is_null() || length == 0 {
        return &mut [];
    }
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(data, length) }
}

impl From<Needs> for NeedsV1 {
    fn from(needs: Needs) -> NeedsV1 {
        let mut table = NeedsV1 {
            reference_logp: needs.reference_logp.into(),
            prompt_logp: needs.prompt_logp.into(),
            before_step: match needs.before_step {
                BeforeStep::Nothing => 0,
                BeforeStep::KlCompletions => 1,
                BeforeStep::Everything => 2,
            },
            ..NeedsV1::default()
        };
        for (statistic, asked) in needs.statistics.iter() {
            if let Some(place) = table.statistic(statistic) {
                *place = (*asked).into();
            }
        }
        table
    }
}

impl From<TotalsV1> for Totals {
    fn from(totals: TotalsV1) -> Totals {
        let role = |role: RoleTotalsV1| crate::loss::RoleTotals {
            sequences: role.sequences,
            tokens: role.tokens,
            weight: role.weight,
            completion_tokens: role.completion_tokens,
            completion_weight: role.completion_weight,
        };
        Totals {
            roles: totals.roles.map(role),
            pairs: totals.pairs,
            desirable: totals.desirable,
            undesirable: totals.undesirable,
        }
    }
}

impl From<&Totals> for TotalsV1 {
    fn from(totals: &Totals) -> TotalsV1 {
        let role = |role: crate::loss::RoleTotals| RoleTotalsV1 {
            sequences: role.sequences,
            tokens: role.tokens,
            weight: role.weight,
            completion_tokens: role.completion_tokens,
            completion_weight: role.completion_weight,
        };
        TotalsV1 {
            roles: totals.roles.map(role),
            pairs: totals.pairs,
            desirable: totals.desirable,
            undesirable: totals.undesirable,
        }
    }
}
