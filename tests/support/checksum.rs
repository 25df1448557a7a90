//! Checksums that the kernel leaves to the device. In a captured frame, the field may contain only the sum of the pseudo-header
//! (`CHECKSUM_PARTIAL`, include/linux/skbuff.h); on the wire, it contains the real checksum.

/// Completes the TCP or UDP checksum of an Ethernet frame if it is partial. Leaves any other frame unchanged, even if its checksum
/// is wrong.
pub fn complete(frame: &mut [u8]) {
    let Some((source, protocol, segment)) = segment(frame) else { return };
    let field = segment.start + if protocol == 6 { 16 } else { 6 };
    if segment.len() < field - segment.start + 2 {
        return;
    }
    let length = u32::try_from(segment.len()).expect("a frame is short");
    let pseudo_header = sum(&frame[source..segment.start]) + length + u32::from(protocol);
    if u16::from_be_bytes([frame[field], frame[field + 1]]) == fold(pseudo_header) {
        // The sum includes the field itself, which contains the sum of the pseudo-header.
        let checksum = !fold(sum(&frame[segment]));
        // 0 means "none" in UDP (RFC 768), and the kernel never writes it (`skb_checksum_help`, net/core/dev.c).
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Replaces a TCP checksum of 0 by 0xffff, the same number in ones' complement. The kernel writes 0xffff when it completes a checksum
/// (`skb_checksum_help`, `net/core/dev.c`) and 0 when it segments a GSO packet (`tcp_gso_segment`, `net/ipv4/tcp_offload.c`): one frame in
/// 65,536 whose segments were joined and segmented again differs in that.
pub fn unify_zero(frame: &mut [u8]) {
    let Some((_, 6, segment)) = segment(frame) else { return };
    if let Some(field @ [0, 0]) = frame[segment].get_mut(16..18) {
        field.fill(0xff);
    }
}

/// The offset of the addresses, the protocol, and the range of the segment. None unless it is unfragmented TCP or UDP directly after
/// the IP header.
fn segment(frame: &[u8]) -> Option<(usize, u8, std::ops::Range<usize>)> {
    let ip = frame.get(14..)?;
    let word = |at: usize| Some(usize::from(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?])));
    let (source, protocol, begin, end) = match frame.get(12..14)? {
        [8, 0] if word(6)? % 0x4000 == 0 => (26, *ip.get(9)?, usize::from(ip[0] & 15) * 4, word(2)?),
        [0x86, 0xdd] => (22, *ip.get(6)?, 40, 40 + word(4)?),
        _ => return None,
    };
    // IP options would lie between the addresses and the segment; the tests send none.
    let is_plain = end <= ip.len() && begin < end && begin == if source == 26 { 20 } else { 40 };
    ([6, 17].contains(&protocol) && is_plain).then_some((source, protocol, 14 + begin..14 + end))
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("it is folded")
}

#[cfg(test)]
mod tests {
    #[test]
    fn both_zeros_of_a_tcp_checksum_are_the_same() {
        // 10.0.0.1:1 to 10.0.0.2:2, without data.
        let mut frame = vec![0; 54];
        (frame[12], frame[14], frame[17], frame[23], frame[46]) = (8, 0x45, 40, 6, 0x50);
        let mut other = frame.clone();
        other[50..52].fill(0xff);
        super::unify_zero(&mut frame);
        assert_eq!(frame, other);
        super::unify_zero(&mut frame);
        assert_eq!(frame, other, "any other checksum stays");
        let mut datagram = frame.clone();
        (datagram[23], datagram[50], datagram[51]) = (17, 0, 0);
        let before = datagram.clone();
        super::unify_zero(&mut datagram);
        assert_eq!(datagram, before, "UDP has no such rule");
    }

    /// An acknowledgement as captured with a partial checksum.
    #[test]
    fn a_partial_checksum_is_completed() {
        let parse = |hex: &str| -> Vec<u8> {
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
        };
        // 10.0.0.1:1 to 10.0.0.2:2, ACK, no data: sum of the pseudo-header 0x141d.
        let partial = parse("0200000000020200000000010800450000280000400040060000 0a0000010a000002000100020000000a0000000b50100400141d0000".replace(' ', "").as_str());
        let mut frame = partial.clone();
        super::complete(&mut frame);
        assert_ne!(frame, partial);
        let segment = &frame[34..54];
        let whole = super::sum(&frame[26..34]) + 20 + 6 + super::sum(segment);
        assert_eq!(super::fold(whole), 0xffff, "a receiver accepts it");
        let again = frame.clone();
        super::complete(&mut frame);
        assert_eq!(frame, again, "a complete checksum stays");
    }
}
