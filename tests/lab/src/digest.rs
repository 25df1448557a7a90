//! SHA-256.

use std::fmt::Write as _;

/// The SHA-256 of `bytes` as 64 hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_digest_of_nothing_is_the_known_one() {
        assert!(super::hex(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }
}
