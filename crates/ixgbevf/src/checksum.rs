//! The Internet checksum (RFC 1071) and SCTP's `CRC32c` (RFC 9260, appendix A).

/// Adds `bytes` to an unfolded one's complement sum of 16-bit words. Each call but the last must
/// be of even length.
pub(crate) fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    // Summing 32-bit words is the same modulo 0xffff, and cannot overflow below 16 GiB.
    words
        .iter()
        .chain(std::iter::once(&last))
        .fold(sum, |sum, word| sum + u64::from(u32::from_be_bytes(*word)))
}

/// Folds a sum to 16 bits.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    // Not more than 0xffff, as the loop says.
    (sum & 0xffff) as u16
}

/// The checksum of `bytes`: 0 when they contain a right one.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    !fold(add(0, bytes))
}

/// The sum of a TCP or UDP pseudo header; `addresses` are both IP addresses.
pub(crate) fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u64 {
    add(0, addresses) + u64::from(protocol) + len as u64
}

/// SCTP's checksum of `packet`, taking the field at bytes 8 to 11 as zero.
pub(crate) fn sctp(packet: &[u8]) -> u32 {
    let zero_field = |(i, byte): (usize, &u8)| if (8..12).contains(&i) { 0 } else { *byte };
    !packet
        .iter()
        .enumerate()
        .map(zero_field)
        .fold(!0, |crc: u32, byte| {
            crc >> 8 ^ CRC32C[usize::from(crc.to_le_bytes()[0] ^ byte)]
        })
}

const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut i: u8 = 0;
    loop {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 {
                crc >> 1 ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[i as usize] = crc;
        if i == u8::MAX {
            break;
        }
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(add(0, &bytes)), 0xddf2);
        assert_eq!(fold(add(add(0, &bytes[..2]), &bytes[2..])), 0xddf2);
        assert_eq!(checksum(&[0xff]), 0x00ff);
    }

    #[test]
    fn crc32c_of_the_digits_is_the_check_value_with_the_field_taken_as_zero() {
        // The catalogued check value of CRC-32C is e3069283 for "123456789"; eight bytes of it
        // come before the field here.
        let plain = |bytes: &[u8]| {
            !bytes.iter().fold(!0_u32, |c, b| {
                c >> 8 ^ CRC32C[usize::from(c.to_le_bytes()[0] ^ b)]
            })
        };
        assert_eq!(plain(b"123456789"), 0xe306_9283);
        assert_eq!(
            sctp(b"12345678\xff\xff\xff\xff9"),
            plain(b"12345678\0\0\0\x009")
        );
    }
}
