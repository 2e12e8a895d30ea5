//! One PCI endpoint of a VM: joins model, configuration space, MSI-X and guest memory.
