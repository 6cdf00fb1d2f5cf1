//! Graphics cards that the system shows, without any driver of theirs: how a
//! build without GPU code knows that it leaves one idle.

use std::path::Path;

/// The makers of the graphics cards that the system shows, each once; empty if there
/// are none or the system does not say.
pub fn seen() -> Vec<&'static str> {
    if cfg!(target_vendor = "apple") { vec!["Apple"] } else { listed(Path::new("/sys/class/drm")) }
}

/// Linux lists a card as a folder `cardN` with the PCI vendor in `device/vendor`.
fn listed(folder: &Path) -> Vec<&'static str> {
    let mut makers = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let vendor = std::fs::read_to_string(entry.path().join("device/vendor")).unwrap_or_default();
        let maker = match vendor.trim() {
            "0x10de" => "NVIDIA",
            "0x1002" => "AMD",
            "0x8086" => "Intel",
            // Others are mostly the screens of servers and of virtual machines.
            _ => continue,
        };
        if !makers.contains(&maker) {
            makers.push(maker);
        }
    }
    makers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_are_told_by_their_pci_vendor() {
        let folder = std::env::temp_dir().join(format!("finetuned-drm-{}", std::process::id()));
        let cards = [
            ("card0", "0x10de\n"),
            ("card0-HDMI-A-1", ""),
            ("card1", "0x1002\n"),
            ("card2", "0x1234\n"),
            ("card3", "0x10de\n"),
        ];
        for (card, vendor) in cards {
            std::fs::create_dir_all(folder.join(card).join("device")).unwrap();
            if !vendor.is_empty() {
                std::fs::write(folder.join(card).join("device/vendor"), vendor).unwrap();
            }
        }
        let mut found = listed(&folder);
        found.sort_unstable();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(found, ["AMD", "NVIDIA"]);
        assert!(listed(Path::new("/nowhere")).is_empty());
    }
}
