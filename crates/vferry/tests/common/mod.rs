//! What the tests of the command have in common.

use std::path::Path;

/// The configuration of a VM with a NIC, whose sockets are in `folder`, and whose `[migration]` begins with
/// these lines.
pub(crate) fn configuration(folder: &Path, migration: &str) -> String {
    let folder = folder.display();
    format!(
        r#"
[vm]
name = "web"
memory = "64M"
[qemu]
qmp = "{folder}/qmp.sock"
[control]
socket = "{folder}/control.sock"
[sidecar]
socket = "{folder}/sidecar.sock"
address = "00:06.0"
[migration]
{migration}
incoming = "unix:{folder}/incoming.sock"
[[device]]
name = "net0"
model = "ixgbevf"
socket = "{folder}/net0.sock"
address = "00:05.0"
mac = "02:00:00:00:00:01"
uplink = "wire:{folder}/wire.sock"
"#
    )
}

/// Where its link is, as `[migration]` has it.
pub(crate) fn link(folder: &Path) -> String {
    format!("link = \"unix:{}/link.sock\"", folder.display())
}
