//! Messages of IPFIX (RFC 7011, section 3).

/// Bytes of the header of a message.
const MESSAGE_HEADER: usize = 16;
/// Bytes of the header of a set.
const SET_HEADER: usize = 4;
/// Sets from this ID on have data records, which the sequence number counts.
const FIRST_DATA_SET: u16 = 256;

/// A record of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetRecord {
    /// The set it belongs to.
    pub set: u16,
    pub bytes: Vec<u8>,
}

/// A message whose header is still empty.
#[derive(Debug)]
pub struct Message {
    bytes: Vec<u8>,
    /// ID of the last set, and where it begins.
    last_set: Option<(u16, usize)>,
    data_records: u32,
    /// Groups of records that begin in it.
    pub groups: usize,
}

impl Message {
    fn new() -> Self {
        Self { bytes: vec![0; MESSAGE_HEADER], last_set: None, data_records: 0, groups: 0 }
    }

    fn is_empty(&self) -> bool {
        self.last_set.is_none()
    }

    /// Records of one set that follow each other share its header.
    fn push(&mut self, record: &SetRecord) {
        let start = match self.last_set {
            Some((set, start)) if set == record.set => start,
            _ => {
                let start = self.bytes.len();
                self.bytes.extend(record.set.to_be_bytes());
                self.bytes.extend([0; 2]);
                self.last_set = Some((record.set, start));
                start
            }
        };
        self.bytes.extend(&record.bytes);
        let length = be_length(self.bytes.len() - start);
        self.bytes[start + 2..start + SET_HEADER].copy_from_slice(&length);
        self.data_records += u32::from(record.set >= FIRST_DATA_SET);
    }

    /// The whole message. `at`: seconds since 1970. `sequence`: data records that were sent before it; it becomes what is so after it.
    pub fn finish(mut self, at: u32, sequence: &mut u32, domain: u32) -> Vec<u8> {
        let length = be_length(self.bytes.len());
        let header =
            [&10_u16.to_be_bytes()[..], &length, &at.to_be_bytes(), &sequence.to_be_bytes(), &domain.to_be_bytes()];
        self.bytes[..MESSAGE_HEADER].copy_from_slice(&header.concat());
        *sequence = sequence.wrapping_add(self.data_records);
        self.bytes
    }
}

/// Messages are shorter than 64 KiB: see [`pack`].
fn be_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Packs records, in order, into messages of at most `limit` bytes. A group is not split, unless it is longer than a message.
pub fn pack<'a>(groups: impl IntoIterator<Item = &'a [SetRecord]>, limit: u16) -> Vec<Message> {
    let limit = usize::from(limit);
    let needed = |record: &SetRecord| SET_HEADER + record.bytes.len();
    let mut messages = Vec::new();
    let mut message = Message::new();
    for group in groups {
        // With headers that a set may not need: these are few bytes.
        let mut room = group.iter().map(needed).sum();
        for (number, record) in group.iter().enumerate() {
            if message.bytes.len() + room > limit && !message.is_empty() {
                messages.push(std::mem::replace(&mut message, Message::new()));
            }
            room = needed(record);
            message.groups += usize::from(number == 0);
            message.push(record);
        }
    }
    if !message.is_empty() {
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(set: u16, bytes: &[u8]) -> SetRecord {
        SetRecord { set, bytes: bytes.to_vec() }
    }

    fn packed(groups: &[Vec<SetRecord>], limit: u16) -> Vec<Message> {
        pack(groups.iter().map(Vec::as_slice), limit)
    }

    #[test]
    fn a_message_has_sets_of_records() {
        let groups =
            [vec![record(2, &[1, 2])], vec![record(256, &[3])], vec![record(256, &[4]), record(257, &[5, 6, 7])]];
        let mut messages = packed(&groups, 1400);
        assert_eq!(messages.len(), 1);
        let message = messages.remove(0);
        assert_eq!(message.groups, 3);
        let mut sequence = u32::MAX;
        let bytes = message.finish(0x0102_0304, &mut sequence, 0x0a0b_0c0d);
        let expected = [
            // Version, length, time, sequence number, observation domain.
            &[0, 10, 0, 35, 1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff, 0x0a, 0x0b, 0x0c, 0x0d][..],
            &[0, 2, 0, 6, 1, 2],
            &[1, 0, 0, 6, 3, 4],
            &[1, 1, 0, 7, 5, 6, 7],
        ];
        assert_eq!(bytes, expected.concat());
        // It counts data records, and no templates.
        assert_eq!(sequence, 2);
    }

    #[test]
    fn messages_have_a_greatest_length() {
        let groups: Vec<_> = (0..100).map(|byte| vec![record(256, &[byte; 30])]).collect();
        let messages = packed(&groups, 200);
        assert_eq!(messages.iter().map(|message| message.groups).sum::<usize>(), 100);
        let mut sequence = 0;
        let mut found = Vec::new();
        for message in messages {
            assert_eq!(usize::try_from(sequence).expect("few"), found.len());
            let bytes = message.finish(0, &mut sequence, 1);
            assert!((170..=200).contains(&bytes.len()) || sequence == 100, "{}", bytes.len());
            found.extend(bytes[MESSAGE_HEADER + SET_HEADER..].chunks(30).map(|chunk| chunk[0]));
        }
        assert_eq!(found, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_group_is_split_only_if_no_message_can_have_it() {
        let group = |length| vec![record(256, &vec![0; length]), record(257, &vec![0; length])];
        let groups = [group(30), group(30), group(70)];
        let messages = packed(&groups, 100);
        let lengths: Vec<_> = messages.iter().map(|message| (message.bytes.len(), message.groups)).collect();
        assert_eq!(lengths, [(84, 1), (84, 1), (90, 1), (90, 0)]);
        assert!(packed(&[], 100).is_empty());
    }
}
