//! The built-in lab: Debian root, QEMU, guests, load.
