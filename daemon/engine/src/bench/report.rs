//! What a benchmark measured, and how it is printed.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    pub device: String,
    pub threads: usize,
    pub model: String,
    pub method: String,
    pub tokens_per_step: usize,
    /// Median over the timed steps.
    pub seconds_per_step: f64,
    pub tokens_per_second: f64,
    /// Operations that the step's mathematics needs, not what was executed.
    pub flops_per_token: f64,
    pub gflops: f64,
    /// Best large matrix product before and after the steps.
    pub peak_gflops: f64,
    pub ratio: f64,
    /// Tensors alone.
    pub peak_bytes: u64,
    /// From opening the weights, or making random ones, to all of them on the
    /// device.
    #[serde(default)]
    pub load_seconds: f64,
    pub loss: f64,
    /// Bytes a second that a copy reads and writes together.
    #[serde(default)]
    pub copy_bytes_per_second: f64,
    /// One step with every operation waited for, if asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<OperationTime>,
    /// The other loss, if one was measured beside cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compared: Option<LossReport>,
}

/// What one operation took in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationTime {
    pub operation: String,
    pub calls: usize,
    pub seconds: f64,
    /// Of all operations' time.
    pub share: f64,
}

/// A loss against the built-in cross-entropy: steps of the two in turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LossReport {
    pub name: String,
    /// `built in`, or the file that it comes from.
    pub origin: String,
    /// Medians over the steps in turn.
    pub seconds_per_step: f64,
    pub cross_entropy_seconds_per_step: f64,
    /// Median over the turns of one step's time to the other's.
    pub ratio: f64,
    pub turns: usize,
}

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} · {} · {} · {} threads", self.model, self.method, self.device, self.threads)?;
        writeln!(
            f,
            "  {:.1} tokens/s  ({} tokens in {:.2} s)",
            self.tokens_per_second, self.tokens_per_step, self.seconds_per_step
        )?;
        writeln!(
            f,
            "  {:.1} GFLOP/s of {:.1} in matrix products: {:.0}%",
            self.gflops,
            self.peak_gflops,
            100.0 * self.ratio
        )?;
        writeln!(f, "  {:.1} GB/s in copies", self.copy_bytes_per_second / 1e9)?;
        writeln!(f, "  {:.1} s to load the weights", self.load_seconds)?;
        write!(f, "  {:.2} GB of tensors at the peak", self.peak_bytes as f64 / 1e9)?;
        for line in &self.profile {
            write!(
                f,
                "\n  {:>5.1}%  {:<24} {:>9.3} s in {} calls",
                100.0 * line.share,
                line.operation,
                line.seconds,
                line.calls
            )?;
        }
        if let Some(loss) = &self.compared {
            write!(
                f,
                "\n  {} ({}): {:.3} s a step, cross-entropy {:.3} s, {} turns of both: {:+.1}%",
                loss.name,
                loss.origin,
                loss.seconds_per_step,
                loss.cross_entropy_seconds_per_step,
                loss.turns,
                100.0 * (loss.ratio - 1.0)
            )?;
        }
        Ok(())
    }
}
