//! The crate as its users and its clients see it.

mod device;
mod dma_messages;
mod encodings;
mod hostile;
mod lifetime;
mod migration;
mod peer;
mod published_client;
