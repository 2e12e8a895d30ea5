//! Status codes of completions (section 4.6.1).

/// Type and code, as in bits 10:0 of the status field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16);

/// Do Not Retry, in the status field.
pub const DNR: u16 = 1 << 14;

impl Status {
    /// Successful completion.
    pub const SUCCESS: Self = Self(0x00);
    /// The opcode is not one of the controller's.
    pub const INVALID_OPCODE: Self = Self(0x01);
    /// A field of the command has a value that it cannot have.
    pub const INVALID_FIELD: Self = Self(0x02);
    /// Memory of the command could not be read or written.
    pub const DATA_TRANSFER_ERROR: Self = Self(0x04);
    /// The command was aborted by an Abort command.
    pub const ABORT_REQUESTED: Self = Self(0x07);
    /// The command was aborted as its submission queue was deleted.
    pub const SQ_DELETED: Self = Self(0x08);
    /// There is no such namespace.
    pub const INVALID_NAMESPACE: Self = Self(0x0b);
    /// The command comes at a time when it cannot.
    pub const SEQUENCE_ERROR: Self = Self(0x0c);
    /// A PRP entry has an offset where it may have none.
    pub const PRP_OFFSET_INVALID: Self = Self(0x13);
    /// The blocks are not in the namespace.
    pub const LBA_OUT_OF_RANGE: Self = Self(0x80);
    /// The backing has no room left.
    pub const CAPACITY_EXCEEDED: Self = Self(0x81);

    /// Create I/O Submission Queue: there is no such completion queue.
    pub const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    /// There is no such queue, or there is one already.
    pub const INVALID_QUEUE_ID: Self = Self(0x101);
    /// The queue is too small or too large.
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102);
    /// Too many Asynchronous Event Requests are outstanding.
    pub const EVENT_LIMIT_EXCEEDED: Self = Self(0x105);
    /// There is no such interrupt vector.
    pub const INVALID_VECTOR: Self = Self(0x108);
    /// There is no such log page.
    pub const INVALID_LOG_PAGE: Self = Self(0x109);
    /// The completion queue is in use.
    pub const INVALID_QUEUE_DELETION: Self = Self(0x10c);
    /// The feature cannot be saved.
    pub const NOT_SAVEABLE: Self = Self(0x10d);

    /// The backing could not be written.
    pub const WRITE_FAULT: Self = Self(0x280);
    /// The backing could not be read.
    pub const UNRECOVERED_READ: Self = Self(0x281);
    /// Compare found a difference.
    pub const COMPARE_FAILURE: Self = Self(0x285);

    /// Whether the same command would fail again: all errors do but those of the backing and of
    /// commands that were aborted.
    pub fn is_final(self) -> bool {
        !matches!(
            self,
            Self::SUCCESS
                | Self::ABORT_REQUESTED
                | Self::SQ_DELETED
                | Self::WRITE_FAULT
                | Self::UNRECOVERED_READ
        )
    }

    /// The status field without the phase tag, as bits 14:0.
    pub fn field(self) -> u16 {
        if self.is_final() {
            self.0 | DNR
        } else {
            self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retrying_is_left_to_what_may_succeed_then() {
        assert_eq!(Status::SUCCESS.field(), 0);
        assert_eq!(Status::INVALID_FIELD.field(), 0x4002);
        assert_eq!(Status::WRITE_FAULT.field(), 0x0280);
        assert_eq!(Status::COMPARE_FAILURE.field(), 0x4285);
    }
}
