//! Nothing that a guest, a network or a damaged state can do makes the function panic, do more in
//! one call than it may, or fail to come to rest.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_sequence_of_accesses_frames_and_loads_breaks_the_function(
        bytes in proptest::collection::vec(any::<u8>(), 0..1_500)
    ) {
        ixgbevf::fuzz::run(&bytes);
    }
}
