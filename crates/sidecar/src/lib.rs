//! The vhost-user device through which QEMU tells of a migration and carries its state.
