//! Where a NIC model's frames go: TAP, a unix-socket wire, a built-in peer.
