//! A plugin frozen at ABI version 1. Do not change this file: every later host
//! must load what it builds to. It knows nothing of the crate, only the table
//! as version 1 was published.

#![allow(dead_code)]

use std::ffi::c_void;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bytes {
    data: *const u8,
    length: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FloatsMut {
    data: *mut f32,
    length: usize,
    written: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Sink {
    context: *mut c_void,
    write: unsafe extern "C" fn(*mut c_void, Bytes),
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct MetricSink {
    context: *mut c_void,
    add: unsafe extern "C" fn(*mut c_void, Bytes, f64),
}

#[repr(C)]
pub struct RoleTotals {
    sequences: u64,
    tokens: u64,
    weight: f64,
    completion_tokens: u64,
    completion_weight: f64,
}

#[repr(C)]
pub struct Totals {
    roles: [RoleTotals; 5],
    pairs: u64,
    desirable: u64,
    undesirable: u64,
}

#[repr(C)]
pub struct Batch {
    tokens: usize,
    sequence_count: usize,
    logp: *const f32,
    weight: *const f32,
    completion: *const u8,
    token: *const u32,
    sequences: *const c_void,
    totals: *const Totals,
    context: *const f64,
    context_length: usize,
    entropy: *const f32,
    lse: *const f32,
    mean_logp: *const f32,
    reference_logp: *const f32,
    values: *const f32,
}

#[repr(C)]
pub struct Gradients {
    loss: f64,
    dlogp: FloatsMut,
    dentropy: FloatsMut,
    dlse: FloatsMut,
    dmean_logp: FloatsMut,
    dvalue: FloatsMut,
    metrics: MetricSink,
}

#[repr(C)]
pub struct Needs {
    entropy: u32,
    lse: u32,
    mean_logp: u32,
    reference_logp: u32,
    prompt_logp: u32,
    value: u32,
    before_step: u32,
}

type Instance = *mut c_void;

#[repr(C)]
pub struct Plugin {
    user: *const c_void,
    describe: unsafe extern "C" fn(*const Plugin, Sink, Sink) -> i32,
    create: unsafe extern "C" fn(*const Plugin, Bytes, *mut Instance, Sink) -> i32,
    destroy: unsafe extern "C" fn(Instance),
    needs: Option<unsafe extern "C" fn(Instance, *mut Needs, Sink) -> i32>,
    prepare: Option<unsafe extern "C" fn(Instance, *const Batch, Sink, Sink) -> i32>,
    evaluate: Option<unsafe extern "C" fn(Instance, *const Batch, *mut Gradients, Sink) -> i32>,
    separable: Option<unsafe extern "C" fn(Instance, *const Totals, *mut c_void, Sink) -> i32>,
    end_step: Option<unsafe extern "C" fn(Instance, f64, Bytes, Sink) -> i32>,
    state: Option<unsafe extern "C" fn(Instance, Sink, Sink) -> i32>,
    restore: Option<unsafe extern "C" fn(Instance, Bytes, Sink) -> i32>,
    alignment_needs: Option<unsafe extern "C" fn(Instance, *mut c_void, Sink) -> i32>,
    rule: Option<unsafe extern "C" fn(Instance, Bytes, Sink, Sink) -> i32>,
    evaluation: Option<unsafe extern "C" fn(Instance, Bytes, Sink, Sink) -> i32>,
    host_states: Option<unsafe extern "C" fn(Instance, Bytes, Sink, Sink) -> i32>,
    host_step: Option<unsafe extern "C" fn(Instance, *const c_void, Sink) -> i32>,
}

#[repr(C)]
pub struct Header {
    magic: u32,
    abi_version: u32,
    built_with: Bytes,
    plugins: *const Plugin,
    plugin_count: usize,
}

struct Shared<T>(T);
unsafe impl<T> Sync for Shared<T> {}

unsafe fn put(sink: Sink, text: &str) {
    unsafe { (sink.write)(sink.context, Bytes { data: text.as_ptr(), length: text.len() }) }
}

unsafe extern "C" fn describe_loss(_: *const Plugin, out: Sink, _: Sink) -> i32 {
    unsafe {
        put(
            out,
            r#"{"name": "frozen-loss", "kind": "loss", "version": "1.0.0", "help": "Twice the mean of -log p.",
                "parameters": [{"name": "factor", "type": "number", "default": 2.0, "minimum": 0.0, "help": "factor"}]}"#,
        )
    };
    0
}

unsafe extern "C" fn describe_optimizer(_: *const Plugin, out: Sink, _: Sink) -> i32 {
    unsafe {
        put(
            out,
            r#"{"name": "frozen-sgd", "kind": "optimizer", "version": "1.0.0", "help": "p - lr g.", "parameters": []}"#,
        )
    };
    0
}

unsafe extern "C" fn create(_: *const Plugin, values: Bytes, out: *mut Instance, error: Sink) -> i32 {
    let text = unsafe { std::slice::from_raw_parts(values.data, values.length) };
    let text = std::str::from_utf8(text).unwrap_or("");
    let factor = match text.split_once("\"factor\":") {
        None => 2.0,
        Some((_, rest)) => match rest.trim_end_matches('}').trim().parse::<f64>() {
            Ok(factor) => factor,
            Err(_) => {
                unsafe { put(error, "factor is no number") };
                return 1;
            }
        },
    };
    unsafe { *out = Box::into_raw(Box::new(factor)).cast() };
    0
}

unsafe extern "C" fn destroy(instance: Instance) {
    drop(unsafe { Box::from_raw(instance.cast::<f64>()) });
}

unsafe extern "C" fn needs(_: Instance, _: *mut Needs, _: Sink) -> i32 {
    0
}

unsafe extern "C" fn evaluate(instance: Instance, batch: *const Batch, out: *mut Gradients, _: Sink) -> i32 {
    let (factor, batch, out) = unsafe { (*instance.cast::<f64>(), &*batch, &mut *out) };
    let totals = unsafe { &*batch.totals };
    let total: f64 = totals.roles[..4].iter().map(|role| role.weight).sum();
    out.loss = 0.0;
    for i in 0..batch.tokens {
        let (logp, weight) = unsafe { (f64::from(*batch.logp.add(i)), f64::from(*batch.weight.add(i))) };
        let scale = -factor * weight / total;
        if weight != 0.0 {
            out.loss += scale * logp;
        }
        unsafe { *out.dlogp.data.add(i) = scale as f32 };
    }
    out.dlogp.written = batch.tokens;
    unsafe { (out.metrics.add)(out.metrics.context, Bytes { data: b"twice".as_ptr(), length: 5 }, out.loss) };
    0
}

unsafe extern "C" fn rule(_: Instance, _: Bytes, out: Sink, _: Sink) -> i32 {
    unsafe {
        put(
            out,
            r#"{"rows":1,"columns":3,"states":[],"code":["parameter","gradient","learning_rate",
                {"binary":["multiply",2,1]},{"binary":["subtract",0,3]}],"parameter":4,"updates":[]}"#,
        )
    };
    0
}

const NOTHING: Plugin = Plugin {
    user: std::ptr::null(),
    describe: describe_loss,
    create,
    destroy,
    needs: None,
    prepare: None,
    evaluate: None,
    separable: None,
    end_step: None,
    state: None,
    restore: None,
    alignment_needs: None,
    rule: None,
    evaluation: None,
    host_states: None,
    host_step: None,
};

static PLUGINS: Shared<[Plugin; 2]> = Shared([
    Plugin { needs: Some(needs), evaluate: Some(evaluate), ..NOTHING },
    Plugin { describe: describe_optimizer, rule: Some(rule), ..NOTHING },
]);

static HEADER: Shared<Header> = Shared(Header {
    magic: 0x4654_504c,
    abi_version: 1,
    built_with: Bytes { data: b"rustc".as_ptr(), length: 5 },
    plugins: PLUGINS.0.as_ptr(),
    plugin_count: 2,
});

#[unsafe(no_mangle)]
pub extern "C" fn finetuned_plugin() -> *const Header {
    &HEADER.0
}
