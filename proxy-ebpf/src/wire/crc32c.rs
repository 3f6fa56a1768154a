//! CRC32c, updated incrementally: the checksum of SCTP (RFC 9260, appendix A).
//!
//! The CRC is linear: what changes in a packet changes the checksum by the remainder of that
//! difference alone, whatever else the packet holds. The ports are the first four bytes of `len`,
//! so their difference is followed by `len - 4` zero bytes: it is multiplied by x to the power of
//! 8 `len`, modulo the polynomial. Nothing else of the packet is read.
//!
//! Polynomials are reflected, as everywhere with this CRC: the highest bit is the coefficient of 1.

/// The polynomial of Castagnoli, without its highest term.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x to the power of 8.
const BYTE: u32 = 1 << (31 - 8);

/// x to the power of 8 n: the factor for the low byte of a length.
static LOW: [u32; 256] = powers(BYTE);

/// x to the power of 8 * 256 n: the factor for its high byte.
static HIGH: [u32; 256] = powers(product(LOW[255], BYTE));

/// What a difference in the first four bytes of a message of `len` bytes does to its checksum.
/// Both are as read from memory on a little-endian machine.
#[inline(always)]
pub fn change(first_four: u32, len: u16) -> u32 {
    let [low, high] = len.to_le_bytes();
    let change = product(first_four, LOW[low as usize]);
    product(change, HIGH[high as usize])
}

/// The product of two polynomials, modulo [`POLYNOMIAL`]. Without branches: the verifier walks it
/// once.
#[inline(always)]
const fn product(a: u32, b: u32) -> u32 {
    let (mut a, mut b, mut product) = (a, b, 0);
    let mut bit = 0;
    while bit < 32 {
        product ^= b & 0_u32.wrapping_sub(a >> 31);
        a <<= 1;
        b = b >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(b & 1);
        bit += 1;
    }
    product
}

/// The powers of a polynomial from 0 on.
const fn powers(of: u32) -> [u32; 256] {
    // 1.
    let mut powers = [1 << 31; 256];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = product(powers[exponent - 1], of);
        exponent += 1;
    }
    powers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC32c bit by bit, over all bytes.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(crc & 1);
            }
        }
        !crc
    }

    #[test]
    fn check_value_of_the_algorithm() {
        // RFC 3720, appendix B.4, and the usual catalogues.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn change_of_the_first_bytes_is_what_a_whole_computation_says() {
        for len in [12, 13, 32, 255, 256, 1_452, 9_000, 65_535_u16] {
            let mut bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let before = crc32c(&bytes);
            let new = [0x9c, 0x40, 0x1f, 0x90];
            let old: [u8; 4] = bytes[..4].try_into().expect("four bytes");
            bytes[..4].copy_from_slice(&new);
            let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            assert_eq!(
                before ^ change(difference, len),
                crc32c(&bytes),
                "{len} bytes"
            );
        }
    }
}
