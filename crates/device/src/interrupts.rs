//! Message-signalled interrupts as a model raises them.

/// The MSI-X vectors of one function.
pub trait Interrupts {
    /// Sends the message of `vector`, or leaves it pending while the vector is masked or has no
    /// receiver yet. Vectors that the function does not have are ignored.
    ///
    /// What the device wrote before is visible to the interrupt's handler.
    fn signal(&self, vector: u16);
}
