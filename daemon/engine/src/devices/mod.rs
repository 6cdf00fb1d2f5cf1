//! The devices of this machine: opening them, listing them, and whether they
//! compute right.

pub(crate) mod memory;
pub(crate) mod rate;

use finetuned_shaders::conformance::{self, Finding};
use finetuned_shaders::device::{self, DeviceChoice};
use finetuned_shaders::gpu::{self, GpuEntry, Products};
use finetuned_shaders::{Device, TensorError};
use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// One device, as `finetune device` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceLine {
    /// What `--device` takes.
    pub spec: String,
    pub name: String,
    /// `cpu`, `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: String,
    pub driver: String,
    /// What kernels are compiled to.
    pub compiler: String,
    /// 0 if the driver does not say.
    pub memory_bytes: u64,
    /// Bytes of the largest single buffer.
    pub largest_buffer: u64,
    /// Number types that the device computes with.
    pub types: Vec<String>,
    /// Units in lockstep, the least and the most.
    pub subgroup: (u32, u32),
    /// The type that tensor cores round operands of products to.
    pub tensor_cores: Option<String>,
    /// Why it cannot be used.
    pub error: Option<String>,
}

/// What a check of one operation found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationResult {
    pub operation: String,
    /// The largest |got − want| / (|want| + rms(want)) against the reference.
    pub worst_error: f64,
    pub tolerance: f64,
    pub passed: bool,
    /// What went wrong beside the error, if anything did.
    pub reason: Option<String>,
}

impl From<&Finding> for OperationResult {
    fn from(finding: &Finding) -> OperationResult {
        let reason = match &finding.error {
            Some(error) => Some(error.clone()),
            None if !finding.repeatable => Some("the same call gave other bits the second time".into()),
            // JSON has no infinity.
            None if !finding.worst.is_finite() => Some("a result is no number, or of another size".into()),
            None => None,
        };
        OperationResult {
            operation: finding.operation.into(),
            worst_error: if finding.worst.is_finite() { finding.worst } else { f64::MAX },
            tolerance: finding.tolerance,
            passed: finding.passed(),
            reason,
        }
    }
}

/// Opens the device that a request names; `threads` are the CPU's.
///
/// # Errors
/// Words that name no device; a device that is not there or cannot be opened.
pub fn open(asked: &str, threads: Option<usize>) -> Result<Device, EngineError> {
    device::open(asked, threads).map_err(|error| refused(asked, error))
}

/// Words that name no device are a mistake of the asker; anything else is an error of
/// the device.
fn refused(asked: &str, error: TensorError) -> EngineError {
    match error {
        TensorError::Words { .. } => error.into(),
        _ => EngineError::Device { asked: asked.into(), reason: error.to_string() },
    }
}

/// The makers of graphics cards that this machine has and this build cannot use, for
/// it has no GPU code.
pub fn unused_gpus() -> Vec<&'static str> {
    if gpu::BUILT_IN { Vec::new() } else { gpu::seen() }
}

/// Whether words may name a device, on whatever machine.
///
/// # Errors
/// Why not, and what there is.
pub fn check_words(asked: &str) -> Result<(), EngineError> {
    asked.parse::<DeviceChoice>().map(|_| ()).map_err(EngineError::from)
}

/// Whether the words of `--device` mean the CPU for certain. `auto` may become a GPU.
pub fn is_cpu(asked: &str) -> bool {
    matches!(asked.parse(), Ok(DeviceChoice::Cpu))
}

/// All devices: the CPU, then the GPUs in the order of `gpu:N`. Opens each.
///
/// # Errors
/// The system refuses the CPU's threads.
pub fn list() -> Result<Vec<DeviceLine>, EngineError> {
    let cpu = open("cpu", None)?;
    let mut lines = vec![DeviceLine {
        spec: "cpu".into(),
        name: format!("{} threads", cpu.info().parallelism),
        kind: "cpu".into(),
        driver: String::new(),
        compiler: std::env::consts::ARCH.into(),
        memory_bytes: memory::host_memory().unwrap_or(0),
        largest_buffer: 0,
        types: vec!["f32".into()],
        subgroup: (1, 1),
        tensor_cores: None,
        error: None,
    }];
    lines.extend(gpu::list().iter().map(line));
    Ok(lines)
}

fn line(entry: &GpuEntry) -> DeviceLine {
    let mut line = DeviceLine {
        spec: entry.spec.clone(),
        name: entry.name.clone(),
        kind: entry.kind.into(),
        driver: entry.driver.clone(),
        compiler: String::new(),
        memory_bytes: 0,
        largest_buffer: 0,
        types: Vec::new(),
        subgroup: (0, 0),
        tensor_cores: None,
        error: None,
    };
    // What the first compiler that starts reaches: the self-test takes them in
    // the same order.
    let compilers = entry.compilers();
    let mut opened = compilers.iter().map(|compiler| gpu::open(&entry.with(*compiler)));
    match opened.find(Result::is_ok).unwrap_or_else(|| gpu::open(entry)) {
        Ok(device) => {
            let facts = device.facts();
            line.compiler = compilers.iter().map(|compiler| compiler.name()).collect::<Vec<_>>().join(", else ");
            line.memory_bytes = facts.memory_bytes;
            line.largest_buffer = facts.largest_buffer;
            line.types = facts.types.iter().map(ToString::to_string).collect();
            line.subgroup = facts.subgroup;
            line.tensor_cores = facts.tensor_cores.map(|cores| cores.name().to_string());
        }
        Err(error) => line.error = Some(error.to_string()),
    }
    line
}

/// A GPU with one compiler, as a test of it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What opens exactly this: `vulkan:0/spirv`.
    pub spec: String,
    /// Another card, driver or version of this program is tested anew.
    pub identity: String,
}

/// What `asked` may mean, the one that uses more of the device first; empty for
/// the CPU. Opens nothing.
///
/// # Errors
/// Words that name no device, a GPU that is not there.
pub fn candidates(asked: &str) -> Result<Vec<Candidate>, EngineError> {
    let choice = asked.parse::<DeviceChoice>().map_err(|error| refused(asked, error))?;
    let Some(entry) = choice.find().map_err(|error| refused(asked, error))? else { return Ok(Vec::new()) };
    // Products of another type are a device of their own to be tested.
    let products = match entry.products {
        Products::Auto => String::new(),
        Products::F32 => "/f32".into(),
        Products::Cores(cores) => format!("/{}", cores.name()),
    };
    let named = matches!(choice, DeviceChoice::With(_, Some(_), _));
    let compilers = if named { vec![entry.compiler] } else { entry.compilers().to_vec() };
    let several = entry.compilers().len() > 1;
    let candidate = |compiler: finetuned_shaders::gpu::Compiler| Candidate {
        spec: match several {
            true => format!("{}/{}{products}", entry.spec, compiler.name()),
            false => format!("{}{products}", entry.spec),
        },
        identity: format!(
            "{}{products} {} {} {} / {}",
            entry.spec,
            compiler.name(),
            entry.name,
            entry.driver,
            env!("CARGO_PKG_VERSION")
        ),
    };
    Ok(compilers.into_iter().map(candidate).collect())
}

/// Runs every operation against its reference; `each` sees the results as they
/// come.
///
/// # Errors
/// The device is not there or cannot be opened.
pub fn test(asked: &str, each: &mut dyn FnMut(&OperationResult)) -> Result<Vec<OperationResult>, EngineError> {
    let device = open(asked, None)?;
    let results = conformance::checks().map(|check| {
        let result = OperationResult::from(&check.run(&device));
        each(&result);
        result
    });
    Ok(results.collect())
}
