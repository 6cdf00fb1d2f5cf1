//! What the runtime's words mean: a device that is lost, memory that is out, or
//! another failure, in a line.

use crate::error::TensorError;

/// The error of an operation from what the runtime said.
pub(super) fn failure(op: &'static str, device: &str, text: &str) -> TensorError {
    // The first lines tell; a backtrace follows.
    let lines = text.lines().take_while(|line| !line.starts_with("Backtrace")).map(str::trim);
    let told = lines.collect::<Vec<_>>().join(" ");
    let device = device.to_string();
    // The driver's memory is out although the ledger has room: others hold it.
    if let Some((_, bytes)) = told.split_once("out of device memory allocating ") {
        let bytes = bytes.split(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or_default();
        return TensorError::Memory { op, bytes, device };
    }
    let root = told.rsplit("Caused by:").next().unwrap_or_default();
    let root = root.split("Asked at:").next().unwrap_or_default().trim();
    // So it is once the driver has reported the loss.
    if told.contains("device is poisoned") {
        return TensorError::Lost { op, device, reason: root.into() };
    }
    // A kernel whose launch failed leaves its outputs unwritten, and every kernel that
    // reads them; the runtime lists them all. Where the launch panicked, the cause went
    // to stderr.
    if told.contains("were never written") {
        let reason = format!("{device}: work was refused ({root}); most often because other programs hold its memory");
        return TensorError::Failed { op, reason };
    }
    TensorError::Failed { op, reason: format!("{device}: {told}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As cubecl 0.11 said them, above the layer of `bad-device`.
    const LOST: &str = "The device is poisoned\nCaused by:\n  Unknown: Device is lost\nBacktrace:\n   0: main";
    const FULL: &str = "Several failures at once\nCaused by:\n  The bytes were never written (failure #4, still \
                        claiming 1 buffer(s))\nCaused by:\n  An IO error happened\nCaused by:\n  out of device memory \
                        allocating 8388608 bytes\nNo backtrace available\nAsked at:\nNo backtrace available";
    const TORN: &str = "Several failures at once\nCaused by:\n  The bytes were never written (failure #318, still \
                        claiming 6 buffer(s))\nskipped `TiledKernel`: it needed memory ManagedMemoryId { value: 914 }, \
                        which carried the failure\nCaused by:\n  The work writing this buffer was torn down\nAsked \
                        at:\nNo backtrace available";

    #[test]
    fn a_loss_a_shortage_and_a_refusal_are_told_apart() {
        let said = |text| failure("read", "vulkan:0 a card", text);
        let device = "vulkan:0 a card".to_string();
        let lost = TensorError::Lost { op: "read", device: device.clone(), reason: "Unknown: Device is lost".into() };
        assert_eq!(said(LOST), lost);
        assert_eq!(said(FULL), TensorError::Memory { op: "read", bytes: 8_388_608, device });
        let torn = said(TORN).to_string();
        assert!(
            torn.contains("vulkan:0 a card: work was refused (The work writing this buffer was torn down);"),
            "{torn}"
        );
        assert!(!torn.contains("TiledKernel"), "{torn}");
        assert_eq!(said("it hurts").to_string(), "read: the device failed: vulkan:0 a card: it hurts");
    }
}
