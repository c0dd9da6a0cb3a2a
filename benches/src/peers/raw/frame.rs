//! The head of a frame: length, kind, generation and slot in twelve bytes.
//!
//! Must never look into bodies. Next: `inbox` reads frames, `outbox` writes them.

/// Bytes before each body.
pub(crate) const HEAD: usize = 12;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Add,
    EchoPart,
    EchoEnd,
    Items,
    ItemsSent,
    Chunks,
    Sum,
    Size,
    Data,
    End,
    Credit,
    Number,
    BodyPart,
    BodyEnd,
}

const KINDS: [Kind; 14] = [
    Kind::Add,
    Kind::EchoPart,
    Kind::EchoEnd,
    Kind::Items,
    Kind::ItemsSent,
    Kind::Chunks,
    Kind::Sum,
    Kind::Size,
    Kind::Data,
    Kind::End,
    Kind::Credit,
    Kind::Number,
    Kind::BodyPart,
    Kind::BodyEnd,
];

/// Whose answer it is: a place in the client's slab, and which of its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    /// 24 bits.
    pub(crate) generation: u32,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) length: usize,
}

impl Head {
    pub(crate) fn new(kind: Kind, key: Key, length: usize) -> Self {
        Self { kind, key, length }
    }

    #[inline]
    pub(crate) fn bytes(self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&((self.key.generation << 8) | u32::from(self.kind as u8)).to_le_bytes());
        bytes[8..].copy_from_slice(&self.key.slot.to_le_bytes());
        bytes
    }

    #[inline]
    pub(crate) fn read(bytes: &[u8; HEAD]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mark = word(4);
        let key = Key { slot: word(8), generation: mark >> 8 };
        Self { kind: KINDS[(mark & 0xff) as usize], key, length: word(0) as usize }
    }
}

/// The 64-bit number at the front of a body.
#[inline]
pub(crate) fn number(body: &[u8]) -> u64 {
    u64::from_le_bytes(*body.first_chunk().expect("eight bytes"))
}
