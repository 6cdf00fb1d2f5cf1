//! The host's side: a table's functions as the traits of this crate.

use std::ffi::c_void;
use std::sync::Arc;

use super::calls::{self, Caller};
use super::table::*;
use crate::PluginError;
use crate::alignment::{Alignment, AlignmentNeeds, DataKind};
use crate::loss::{Batch, BeforeStep, Gradients, Loss, Needs, PerStatistic, Statistic, TokenRule, Totals};
use crate::optimizer::{HostOptimizer, Optimizer, TensorShape};
use crate::parameters::Values;
use crate::program::{Program, Scalars, State};
use crate::registry::Factory;

/// Bytes of a plugin's answer are refused beyond this.
const MOST_BYTES: usize = 256 << 20;

/// A plugin of a loaded library.
#[derive(Clone)]
pub(super) struct Plugin {
    pub table: &'static PluginV1,
    pub caller: Arc<Caller>,
}

unsafe extern "C" fn take(context: *mut c_void, bytes: Bytes) {
    // SAFETY: `context` is the vector that `sink` was made of, alive and used by
    // this thread alone during the call; the plugin's bytes are readable.
    let (into, bytes) = unsafe { (&mut *context.cast::<Vec<u8>>(), bytes.slice()) };
    if into.len() + bytes.len() <= MOST_BYTES {
        into.extend_from_slice(bytes);
    }
}

fn sink(into: &mut Vec<u8>) -> Sink {
    Sink { context: std::ptr::from_mut(into).cast(), write: take }
}

unsafe extern "C" fn add_metric(context: *mut c_void, name: Bytes, value: f64) {
    // SAFETY: `context` is the list that `evaluate` gave, as in `take`.
    let (into, name) = unsafe { (&mut *context.cast::<Vec<(String, f64)>>(), name.slice()) };
    if into.len() < 1024 {
        into.push((String::from_utf8_lossy(name).into_owned(), value));
    }
}

impl Plugin {
    /// Makes a call: `f` gets the sink for the plugin's words on a failure.
    /// `None` where the plugin has nothing to give.
    fn call(&self, function: &'static str, f: impl FnOnce(Sink) -> i32) -> Result<Option<()>, PluginError> {
        let mut words = Vec::new();
        let guard = calls::enter(&self.caller, function);
        let status = f(sink(&mut words));
        drop(guard);
        match status {
            OK => Ok(Some(())),
            NOTHING => Ok(None),
            _ => {
                let words = String::from_utf8_lossy(&words);
                let words = if words.is_empty() { "failed without a word".into() } else { words };
                Err(self.failed(function, &words))
            }
        }
    }

    fn failed(&self, function: &str, words: &str) -> PluginError {
        PluginError::Call {
            plugin: self.caller.plugin.clone(),
            version: self.caller.version.clone(),
            step: calls::step(),
            function: function.to_string(),
            message: words.to_string(),
        }
    }

    /// A call that gives bytes.
    fn bytes(&self, function: &'static str, f: impl FnOnce(Sink, Sink) -> i32) -> Result<Option<Vec<u8>>, PluginError> {
        let mut out = Vec::new();
        let into = sink(&mut out);
        let given = self.call(function, |error| f(into, error))?;
        Ok(given.map(|()| out))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, function: &str, bytes: &[u8]) -> Result<T, PluginError> {
        serde_json::from_slice(bytes).map_err(|error| self.failed(function, &error.to_string()))
    }

    fn missing(&self, function: &str) -> PluginError {
        self.failed(function, "the plugin's table lacks this function")
    }

    pub(super) fn describe(&self) -> Result<crate::registry::Descriptor, PluginError> {
        let table = self.table;
        // SAFETY: the table is the library's own, and the sinks outlive the call.
        let bytes = self.bytes("describe", |out, error| unsafe { (table.describe)(table, out, error) })?;
        self.parse("describe", &bytes.unwrap_or_default())
    }

    fn create(&self, values: &Values) -> Result<Made, PluginError> {
        let values = serde_json::to_string(values).map_err(|error| self.failed("create", &error.to_string()))?;
        let mut instance: Instance = std::ptr::null_mut();
        let table = self.table;
        // SAFETY: as in `describe`; `instance` is a place of the host.
        self.call("create", |error| unsafe { (table.create)(table, Bytes::from_text(&values), &mut instance, error) })?;
        if instance.is_null() {
            return Err(self.failed("create", "made nothing"));
        }
        Ok(Made { plugin: self.clone(), instance })
    }
}

/// An instance, destroyed with this.
struct Made {
    plugin: Plugin,
    instance: Instance,
}

// SAFETY: the ABI lets an instance be called from any thread, one at a time;
// `Made` is not `Sync`, and its owner is called through `&self` by one thread.
unsafe impl Send for Made {}

impl Drop for Made {
    fn drop(&mut self) {
        let _guard = calls::enter(&self.plugin.caller, "destroy");
        // SAFETY: made by this table's `create`, destroyed once.
        unsafe { (self.plugin.table.destroy)(self.instance) };
    }
}

impl Made {
    fn bytes(
        &self,
        name: &'static str,
        function: Option<unsafe extern "C" fn(Instance, Bytes, Sink, Sink) -> i32>,
        input: &[u8],
    ) -> Result<Option<Vec<u8>>, PluginError> {
        let Some(function) = function else { return Ok(None) };
        let input = Bytes { data: input.as_ptr(), length: input.len() };
        // SAFETY: the instance is alive; input and sinks outlive the call.
        self.plugin.bytes(name, |out, error| unsafe { function(self.instance, input, out, error) })
    }
}

/// Calls `f` with a batch in the table's layout.
fn with_batch<R>(batch: &Batch, f: impl FnOnce(&BatchV1) -> R) -> R {
    let sequences: Vec<SequenceV1> = batch
        .sequences
        .iter()
        .map(|sequence| SequenceV1 {
            start: sequence.tokens.start,
            end: sequence.tokens.end,
            pair: sequence.pair.map_or(-1, i64::from),
            role: sequence.role as u32,
            label: sequence.label.map_or(-1, i32::from),
            reward: sequence.reward.unwrap_or(0.0) as f32,
            has_reward: sequence.reward.is_some().into(),
        })
        .collect();
    let totals = TotalsV1::from(batch.totals);
    let optional = |slice: Option<&[f32]>| slice.map_or(std::ptr::null(), <[f32]>::as_ptr);
    let mut table = BatchV1 {
        tokens: batch.len(),
        sequence_count: sequences.len(),
        weight: batch.weight.as_ptr(),
        // A bool is a byte of 0 or 1.
        completion: batch.completion.as_ptr().cast(),
        token: batch.token.as_ptr(),
        sequences: sequences.as_ptr(),
        totals: &totals,
        context: batch.context.as_ptr(),
        context_length: batch.context.len(),
        reference_logp: optional(batch.reference_logp),
        logp: std::ptr::null(),
        entropy: std::ptr::null(),
        lse: std::ptr::null(),
        mean_logp: std::ptr::null(),
        values: std::ptr::null(),
    };
    for (statistic, slice) in batch.statistics.iter() {
        *table.statistic(statistic) = optional(*slice);
    }
    f(&table)
}

struct HostLoss {
    made: Made,
    needs: Needs,
}

impl HostLoss {
    fn new(made: Made) -> Result<HostLoss, PluginError> {
        let function = made.plugin.table.needs.ok_or_else(|| made.plugin.missing("needs"))?;
        let mut needs = NeedsV1::default();
        // SAFETY: the instance is alive, the place is the host's.
        made.plugin.call("needs", |error| unsafe { function(made.instance, &mut needs, error) })?;
        let needs = Needs {
            statistics: PerStatistic::from_fn(|statistic| needs.statistic(statistic).is_some_and(|asked| *asked != 0)),
            reference_logp: needs.reference_logp != 0,
            prompt_logp: needs.prompt_logp != 0,
            before_step: match needs.before_step {
                0 => BeforeStep::Nothing,
                1 => BeforeStep::KlCompletions,
                _ => BeforeStep::Everything,
            },
            columns: Vec::new(),
        };
        Ok(HostLoss { made, needs })
    }
}

impl Loss for HostLoss {
    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn before_step(&self, step: &Batch) -> Result<Vec<f64>, PluginError> {
        let Some(function) = self.made.plugin.table.prepare else { return Ok(Vec::new()) };
        // No value is computed before the step.
        let mut needs = self.needs.clone();
        needs.statistics[Statistic::Value] = false;
        step.check(&needs)?;
        let bytes = with_batch(step, |step| {
            // SAFETY: the instance is alive; batch and sinks outlive the call.
            self.made.plugin.bytes("prepare", |out, error| unsafe { function(self.made.instance, step, out, error) })
        })?;
        Ok(bytes.unwrap_or_default().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
    }

    fn evaluate(&self, batch: &Batch, out: &mut Gradients) -> Result<(), PluginError> {
        let plugin = &self.made.plugin;
        let function = plugin.table.evaluate.ok_or_else(|| plugin.missing("evaluate"))?;
        out.reset(&self.needs, batch)?;
        let mut metrics = std::mem::take(&mut out.metrics);
        let mut raw = GradientsV1 {
            loss: f64::NAN,
            dlogp: FloatsMut::NONE,
            dentropy: FloatsMut::NONE,
            dlse: FloatsMut::NONE,
            dmean_logp: FloatsMut::NONE,
            dvalue: FloatsMut::NONE,
            metrics: MetricSink { context: std::ptr::from_mut(&mut metrics).cast(), add: add_metric },
        };
        for (statistic, derivative) in out.derivatives.iter_mut().filter(|(statistic, _)| self.needs.asks(*statistic)) {
            *raw.derivative(statistic) =
                FloatsMut { data: derivative.as_mut_ptr(), length: derivative.len(), written: 0 };
        }
        with_batch(batch, |batch| {
            // SAFETY: the instance is alive; batch, gradients and sinks outlive
            // the call and are touched by nobody else meanwhile.
            plugin.call("evaluate", |error| unsafe { function(self.made.instance, batch, &mut raw, error) })
        })?;
        for statistic in Statistic::ALL.into_iter().filter(|statistic| self.needs.asks(*statistic)) {
            let slice = raw.derivative(statistic);
            if slice.written != slice.length {
                let name = statistic.name();
                let words = format!("d{name}: expected {} values, got {}", slice.length, slice.written);
                return Err(plugin.failed("evaluate", &words));
            }
        }
        out.loss = raw.loss;
        out.metrics = metrics;
        out.check(&self.needs, batch).map_err(|error| plugin.failed("evaluate", &error.to_string()))
    }

    fn separable(&self, totals: &Totals) -> Option<TokenRule> {
        let function = self.made.plugin.table.separable?;
        let mut rule = TokenRuleV1::default();
        let totals = TotalsV1::from(totals);
        // SAFETY: as above. A failure means that the slower way is taken.
        let given = self
            .made
            .plugin
            .call("separable", |error| unsafe { function(self.made.instance, &totals, &mut rule, error) });
        let coefficients = PerStatistic::from_fn(|statistic| rule.coefficient(statistic).map_or(0.0, |c| *c));
        let finite = coefficients.iter().all(|(_, coefficient)| coefficient.is_finite());
        given.ok().flatten().filter(|()| finite).map(|()| TokenRule { coefficients })
    }

    fn end_step(&mut self, loss: f64, metrics: &[(String, f64)]) -> Result<(), PluginError> {
        let plugin = &self.made.plugin;
        let Some(function) = plugin.table.end_step else { return Ok(()) };
        let metrics = serde_json::to_string(metrics).map_err(|error| plugin.failed("end_step", &error.to_string()))?;
        // SAFETY: the instance is alive; bytes and sink outlive the call.
        plugin.call("end_step", |error| unsafe {
            function(self.made.instance, loss, Bytes::from_text(&metrics), error)
        })?;
        Ok(())
    }

    fn state(&self) -> Result<Vec<u8>, PluginError> {
        let Some(function) = self.made.plugin.table.state else { return Ok(Vec::new()) };
        // SAFETY: as above.
        let bytes =
            self.made.plugin.bytes("state", |out, error| unsafe { function(self.made.instance, out, error) })?;
        Ok(bytes.unwrap_or_default())
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), PluginError> {
        let Some(function) = self.made.plugin.table.restore else {
            return if state.is_empty() { Ok(()) } else { Err(self.made.plugin.missing("restore")) };
        };
        let bytes = Bytes { data: state.as_ptr(), length: state.len() };
        // SAFETY: as above.
        self.made.plugin.call("restore", |error| unsafe { function(self.made.instance, bytes, error) })?;
        Ok(())
    }
}

struct HostAlignment {
    objective: HostLoss,
    needs: AlignmentNeeds,
}

impl Alignment for HostAlignment {
    fn needs(&self) -> AlignmentNeeds {
        self.needs
    }

    fn objective(&self) -> &dyn Loss {
        &self.objective
    }

    fn objective_mut(&mut self) -> &mut dyn Loss {
        &mut self.objective
    }
}

struct LoadedOptimizer {
    made: Made,
    /// Whether it steps on the host.
    host: bool,
}

fn tensor_json(tensor: &TensorShape) -> Result<Vec<u8>, PluginError> {
    serde_json::to_vec(tensor).map_err(|error| PluginError::Failed(error.to_string()))
}

impl Optimizer for LoadedOptimizer {
    fn rule(&self, tensor: &TensorShape) -> Result<Program, PluginError> {
        let plugin = &self.made.plugin;
        let bytes = self.made.bytes("rule", plugin.table.rule, &tensor_json(tensor)?)?;
        let program: Program = plugin.parse("rule", &bytes.ok_or_else(|| plugin.missing("rule"))?)?;
        if (program.rows(), program.columns()) != tensor.matrix() {
            let words = format!("a program of {} by {}", program.rows(), program.columns());
            return Err(plugin.failed("rule", &format!("{words} for a tensor of {:?}", tensor.shape)));
        }
        Ok(program)
    }

    fn evaluation(&self, tensor: &TensorShape) -> Result<Option<Program>, PluginError> {
        let plugin = &self.made.plugin;
        let bytes = self.made.bytes("evaluation", plugin.table.evaluation, &tensor_json(tensor)?)?;
        bytes.map(|bytes| plugin.parse("evaluation", &bytes)).transpose()
    }

    fn host(&self) -> Option<&dyn HostOptimizer> {
        self.host.then_some(self)
    }
}

impl HostOptimizer for LoadedOptimizer {
    fn states(&self, tensor: &TensorShape) -> Result<Vec<State>, PluginError> {
        let plugin = &self.made.plugin;
        let bytes = self.made.bytes("host_states", plugin.table.host_states, &tensor_json(tensor)?)?;
        plugin.parse("host_states", &bytes.unwrap_or_else(|| b"[]".to_vec()))
    }

    fn step(
        &self,
        tensor: &TensorShape,
        parameter: &mut [f32],
        gradient: &[f32],
        states: &mut [Vec<f32>],
        scalars: &Scalars,
    ) -> Result<(), PluginError> {
        let plugin = &self.made.plugin;
        let function = plugin.table.host_step.ok_or_else(|| plugin.missing("host_step"))?;
        if parameter.len() != gradient.len() {
            return Err(PluginError::shape("host_step", parameter.len(), gradient.len()));
        }
        let tensor = tensor_json(tensor)?;
        let places: Vec<FloatsMut> = states
            .iter_mut()
            .map(|state| FloatsMut { data: state.as_mut_ptr(), length: state.len(), written: 0 })
            .collect();
        let step = HostStepV1 {
            tensor: Bytes { data: tensor.as_ptr(), length: tensor.len() },
            parameter: parameter.as_mut_ptr(),
            gradient: gradient.as_ptr(),
            elements: parameter.len(),
            states: places.as_ptr(),
            state_count: places.len(),
            learning_rate: scalars.learning_rate,
            step: scalars.step,
        };
        // SAFETY: the instance is alive; all memory outlives the call, is of the
        // stated lengths, and is touched by nobody else meanwhile.
        plugin.call("host_step", |error| unsafe { function(self.made.instance, &step, error) })?;
        let broken = parameter.iter().chain(states.iter().flatten()).any(|x| !x.is_finite());
        if broken {
            return Err(plugin.failed("host_step", "a parameter or a state is no longer finite"));
        }
        Ok(())
    }
}

impl Factory for Plugin {
    fn loss(&self, values: &Values) -> Result<Box<dyn Loss>, PluginError> {
        Ok(Box::new(HostLoss::new(self.create(values)?)?))
    }

    fn optimizer(&self, values: &Values) -> Result<Box<dyn Optimizer>, PluginError> {
        let made = self.create(values)?;
        let probe = TensorShape { shape: vec![1], name: String::new(), kind: crate::optimizer::TensorKind::Matrix };
        let host = made.bytes("host_states", self.table.host_states, &tensor_json(&probe)?)?.is_some();
        Ok(Box::new(LoadedOptimizer { made, host }))
    }

    fn alignment(&self, values: &Values) -> Result<Box<dyn Alignment>, PluginError> {
        let made = self.create(values)?;
        let function = self.table.alignment_needs.ok_or_else(|| self.missing("alignment_needs"))?;
        let mut needs = AlignmentNeedsV1::default();
        // SAFETY: the instance is alive, the place is the host's.
        self.call("alignment_needs", |error| unsafe { function(made.instance, &mut needs, error) })?;
        let data = match needs.data {
            0 => DataKind::Supervised,
            1 => DataKind::Pairs,
            2 => DataKind::Labelled,
            3 => DataKind::Rewards,
            4 => DataKind::Prompts,
            other => return Err(self.failed("alignment_needs", &format!("there is no data kind {other}"))),
        };
        let needs = AlignmentNeeds {
            data,
            reference: needs.reference != 0,
            value_head: needs.value_head != 0,
            kl_completions: needs.kl_completions != 0,
        };
        Ok(Box::new(HostAlignment { objective: HostLoss::new(made)?, needs }))
    }
}
