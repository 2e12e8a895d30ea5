//! PCI configuration space, capabilities, BARs and MSI-X of an endpoint.
