//! Nothing that a guest or a damaged state can do makes the device panic, write more in one call
//! than it may, or fail to come to rest.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_sequence_of_accesses_descriptors_and_loads_breaks_the_device(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500)
    ) {
        stream_device::fuzz::run(&bytes);
    }

    /// As above, but with channels that work from the start.
    #[test]
    fn no_sequence_of_descriptors_breaks_a_device_that_runs(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500)
    ) {
        // The highest rate, and one ring of each kind.
        let mut input = vec![9, 200, 0x40, 0x42, 0x0f, 0, 2, 0, 6, 2, 1, 134];
        for channel in 0..2 {
            for slot in 0..64 {
                input.extend([3, channel, slot, 10, slot, slot]);
            }
        }
        input.extend([5, 0, 64, 0, 6, 0xff, 0xff]);
        input.extend(bytes);
        stream_device::fuzz::run(&input);
    }
}
