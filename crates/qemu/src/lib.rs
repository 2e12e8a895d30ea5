//! QMP client, and what vferry asks of QEMU.
