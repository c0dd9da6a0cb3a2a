//! What members of a manifest say to each other, as bytes.
//!
//! Owns the frames and their coding: one byte for the kind and one MessagePack value. It must never believe anything: what a
//! frame claims is judged in `table.rs`. Look next at `link.rs` for how frames get a length and a connection.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::record::MAX_BODY;
use crate::message;
use crate::state::MAX_REASON;

/// Most records of one owner. A process exposes a handful of services; a thousand is a generator that forgot to free.
pub(super) const MAX_RECORDS: usize = 1024;

/// Most bytes of all records of one owner together: they travel in one frame, so that nobody ever sees half of them.
pub(super) const MAX_OWNER_BYTES: usize = 256 << 10;

/// Longest frame after joining, in bytes: everything of one owner with the heads of its records and the reasons of frees.
pub(super) const MAX_FRAME: usize = MAX_OWNER_BYTES + MAX_RECORDS * 64 + MAX_WHY * (MAX_REASON + 16);

/// Most members, with those that have left lately. What is kept of each, times this, fits a small machine.
pub(super) const MAX_OWNERS: usize = 1024;

/// Most frees of persistent records that are remembered, and said at once.
pub(super) const MAX_FREED: usize = 1024;

/// Most reasons for frees that are remembered of one owner, the latest: a process that leaves has a handful of services.
pub(super) const MAX_WHY: usize = 16;

/// In place of a sum: whoever says this has had no way to hear more, because somebody on the way has fallen silent.
pub(super) const UNSURE: u64 = 1;

/// How one member is doing, as another has heard: owner, incarnation, beat, version, sum of its records or 0 or [`UNSURE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat(pub(super) u64, pub(super) u64, pub(super) u64, pub(super) u64, pub(super) u64);

/// News of one owner's records: what is different between two versions of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    #[serde(rename = "o")]
    pub(super) owner: u64,
    #[serde(rename = "i")]
    pub(super) incarnation: u64,
    #[serde(rename = "b")]
    pub(super) beat: u64,
    /// The version before. 0 means that these are all of its records.
    #[serde(rename = "f")]
    pub(super) from: u64,
    #[serde(rename = "t")]
    pub(super) to: u64,
    /// The owner has gone; what is left is persistent.
    #[serde(rename = "g", default)]
    pub(super) gone: bool,
    #[serde(rename = "p", default)]
    pub(super) put: Vec<Put>,
    /// The numbers of freed records.
    #[serde(rename = "x", default)]
    pub(super) freed: Vec<u64>,
    /// Why some of them were, by their numbers.
    #[serde(rename = "w", default, skip_serializing_if = "Vec::is_empty")]
    pub(super) why: Vec<(u64, String)>,
}

/// A record's number, the owner's version when it last changed, and its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Put(pub(super) u64, pub(super) u64, #[serde(with = "crate::message::bytes_field")] pub(super) Bytes);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Who is alive; if it is full, it names everybody.
    Pulse {
        full: bool,
        beats: Arc<Vec<Beat>>,
    },
    Change(Change),
    /// Persistent records, by owner and number, that were freed by somebody else than their owner.
    Freed(Vec<(u64, u64)>),
    /// What the other one lacked has been said.
    Synced,
    /// All that is known here in one number, which is the same where the same is known; and how many changes and frees have come
    /// over this link so far, so that the other side can tell what it has said too late to be part of that.
    Summary {
        sum: u64,
        heard: u64,
    },
    /// Another process is connected to this one under the name of the other side, which needs another name.
    Taken,
}

const PULSE: u8 = 1;
const DIGEST: u8 = 2;
const CHANGE: u8 = 3;
const FREED: u8 = 4;
const SYNCED: u8 = 5;
const SUMMARY: u8 = 6;
const TAKEN: u8 = 7;

/// Why a frame cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadFrame {
    /// A kind that this version of picom does not know; the next frame may be one that it does.
    Unknown,
    /// No sense can be made of it.
    Malformed,
}

impl Frame {
    /// The frame with its length before it.
    pub(super) fn encode(&self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32(0);
        let encoded = match self {
            Self::Pulse { full, beats } => {
                out.put_u8(if *full { DIGEST } else { PULSE });
                put_beats(beats, out);
                Ok(())
            }
            Self::Change(change) => {
                out.put_u8(CHANGE);
                message::encode(change, out)
            }
            Self::Freed(records) => {
                out.put_u8(FREED);
                message::encode(records, out)
            }
            Self::Synced => {
                out.put_u8(SYNCED);
                Ok(())
            }
            Self::Summary { sum, heard } => {
                out.put_u8(SUMMARY);
                message::encode(&(*sum, *heard), out)
            }
            Self::Taken => {
                out.put_u8(TAKEN);
                Ok(())
            }
        };
        let len = out.len() - start - size_of::<u32>();
        match (encoded, u32::try_from(len)) {
            (Ok(()), Ok(len)) => out[start..start + size_of::<u32>()].copy_from_slice(&len.to_be_bytes()),
            // Nothing in these types can fail to be written; half of a frame must not go out in any case.
            _ => out.truncate(start),
        }
    }

    /// Reads a frame without its length.
    pub(super) fn decode(mut frame: Bytes) -> Result<Self, BadFrame> {
        if frame.is_empty() || frame.len() > MAX_FRAME {
            return Err(BadFrame::Malformed);
        }
        let kind = frame.split_to(1)[0];
        let malformed = |_| BadFrame::Malformed;
        let read = match kind {
            PULSE | DIGEST => {
                take_beats(&frame).map(|beats| Self::Pulse { full: kind == DIGEST, beats: Arc::new(beats) })
            }
            CHANGE => {
                let change: Change = message::decode(&frame).map_err(malformed)?;
                let fits = |put: &Put| put.2.len() <= MAX_BODY && change.from < put.1 && put.1 <= change.to;
                let fine = change.from <= change.to
                    && change.put.iter().all(fits)
                    && change.why.len() <= MAX_WHY
                    && change.why.iter().all(|(_, why)| why.len() <= MAX_REASON);
                fine.then_some(Self::Change(change))
            }
            FREED => {
                let records: Vec<(u64, u64)> = message::decode(&frame).map_err(malformed)?;
                (records.len() <= MAX_FREED).then_some(Self::Freed(records))
            }
            SYNCED => frame.is_empty().then_some(Self::Synced),
            SUMMARY => {
                let (sum, heard) = message::decode(&frame).map_err(malformed)?;
                Some(Self::Summary { sum, heard })
            }
            TAKEN => frame.is_empty().then_some(Self::Taken),
            _ => return Err(BadFrame::Unknown),
        };
        read.ok_or(BadFrame::Malformed)
    }
}

/// Beats are nearly all that is ever said, and are numbers only: here they are written as MessagePack without its machinery.
fn put_beats(beats: &[Beat], out: &mut BytesMut) {
    // A name is nine bytes long, and the others seldom more than three.
    out.reserve(5 + beats.len() * 24);
    match (u8::try_from(beats.len()), u16::try_from(beats.len()), u32::try_from(beats.len())) {
        (Ok(len @ 0..16), ..) => out.put_u8(0x90 | len),
        (_, Ok(len), _) => {
            out.put_u8(0xdc);
            out.put_u16(len);
        }
        (.., len) => {
            out.put_u8(0xdd);
            out.put_u32(len.unwrap_or(u32::MAX));
        }
    }
    for Beat(owner, incarnation, beat, version, sum) in beats {
        out.put_u8(0x95);
        [owner, incarnation, beat, version, sum].into_iter().for_each(|number| put_number(*number, out));
    }
}

/// A number in the shortest form that it has.
fn put_number(number: u64, out: &mut BytesMut) {
    match (u8::try_from(number), u16::try_from(number), u32::try_from(number)) {
        (Ok(number @ 0..128), ..) => out.put_u8(number),
        (Ok(number), ..) => out.put_slice(&[0xcc, number]),
        (_, Ok(number), _) => {
            out.put_u8(0xcd);
            out.put_u16(number);
        }
        (.., Ok(number)) => {
            out.put_u8(0xce);
            out.put_u32(number);
        }
        _ => {
            out.put_u8(0xcf);
            out.put_u64(number);
        }
    }
}

/// All beats of a frame, if it has nothing else and not too many of them.
fn take_beats(mut frame: &[u8]) -> Option<Vec<Beat>> {
    let len = match take(&mut frame)? {
        [short @ 0x90..=0x9f] => usize::from(short & 0x0f),
        [0xdc] => u16::from_be_bytes(take(&mut frame)?).into(),
        [0xdd] => u32::from_be_bytes(take(&mut frame)?).try_into().ok()?,
        _ => return None,
    };
    if len > MAX_OWNERS {
        return None;
    }
    let mut beats = Vec::with_capacity(len);
    for _ in 0..len {
        let [0x95] = take(&mut frame)? else { return None };
        let mut number = || take_number(&mut frame);
        beats.push(Beat(number()?, number()?, number()?, number()?, number()?));
    }
    frame.is_empty().then_some(beats)
}

fn take_number(frame: &mut &[u8]) -> Option<u64> {
    Some(match take(frame)? {
        [small @ 0..=0x7f] => small.into(),
        [0xcc] => take::<1>(frame)?[0].into(),
        [0xcd] => u16::from_be_bytes(take(frame)?).into(),
        [0xce] => u32::from_be_bytes(take(frame)?).into(),
        [0xcf] => u64::from_be_bytes(take(frame)?),
        _ => return None,
    })
}

fn take<const N: usize>(frame: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = frame.split_first_chunk()?;
    *frame = rest;
    Some(*taken)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(frame: &Frame) -> Bytes {
        let mut out = BytesMut::new();
        frame.encode(&mut out);
        let len = u32::from_be_bytes(out[..4].try_into().unwrap());
        assert_eq!(len as usize, out.len() - 4);
        out.split_off(4).freeze()
    }

    fn change() -> impl Strategy<Value = Change> {
        let puts = prop::collection::vec((any::<u64>(), 1..=50u64, prop::collection::vec(any::<u8>(), 0..64)), 0..8);
        let heads = (any::<u64>(), any::<u64>(), any::<u64>(), any::<bool>());
        (heads, puts, prop::collection::vec(any::<u64>(), 0..8)).prop_map(
            |((owner, incarnation, beat, gone), put, freed)| {
                let put = put.into_iter().map(|(number, version, body)| Put(number, version, body.into())).collect();
                let why = freed.iter().map(|number| (*number, "a reason".to_owned())).collect();
                Change { owner, incarnation, beat, from: 0, to: 50, gone, put, freed, why }
            },
        )
    }

    proptest! {
        #[test]
        fn frames_survive_their_way(
            beats in prop::collection::vec(any::<[u64; 5]>(), 0..20),
            full: bool,
            change in change(),
            freed in prop::collection::vec(any::<(u64, u64)>(), 0..20),
            (sum, heard) in any::<(u64, u64)>(),
        ) {
            let beats = beats.into_iter().map(|[a, b, c, d, e]| Beat(a, b, c, d, e)).collect();
            let (pulse, summary) = (Frame::Pulse { full, beats: Arc::new(beats) }, Frame::Summary { sum, heard });
            for frame in [pulse, Frame::Change(change), Frame::Freed(freed), Frame::Synced, summary, Frame::Taken] {
                prop_assert_eq!(Frame::decode(encoded(&frame)).unwrap(), frame);
            }
        }

        #[test]
        fn beats_are_the_messagepack_that_they_always_were(
            beats in prop::collection::vec(any::<[(u64, u32); 5]>(), 0..40),
            cut in 0..2000usize,
        ) {
            // Numbers of every length.
            let rows: Vec<[u64; 5]> = beats.iter().map(|row| row.map(|(n, bits)| n >> (bits % 64))).collect();
            let beats: Vec<_> = rows.iter().map(|[a, b, c, d, e]| Beat(*a, *b, *c, *d, *e)).collect();
            let (mut by_hand, mut by_serde) = (BytesMut::new(), BytesMut::new());
            put_beats(&beats, &mut by_hand);
            message::encode(&rows, &mut by_serde).unwrap();
            prop_assert_eq!(&by_hand, &by_serde);
            prop_assert_eq!(take_beats(&by_hand), Some(beats));
            if cut < by_hand.len() {
                prop_assert_eq!(take_beats(&by_hand[..cut]), None);
            }
            by_hand.put_u8(0);
            prop_assert_eq!(take_beats(&by_hand), None);
        }

        #[test]
        fn any_bytes_are_a_frame_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..512), kind in 0..9u8) {
            let _ = Frame::decode(Bytes::from(bytes.clone()));
            let _ = Frame::decode([&[kind], bytes.as_slice()].concat().into());
        }
    }

    #[test]
    fn limits_hold_at_their_edge() {
        let pulse = |len| Frame::Pulse { full: true, beats: Arc::new(vec![Beat(1, 1, 1, 1, 1); len]) };
        assert!(Frame::decode(encoded(&pulse(MAX_OWNERS))).is_ok());
        assert_eq!(Frame::decode(encoded(&pulse(MAX_OWNERS + 1))), Err(BadFrame::Malformed));
        let freed = |len| Frame::Freed(vec![(1, 1); len]);
        assert!(Frame::decode(encoded(&freed(MAX_FREED))).is_ok());
        assert_eq!(Frame::decode(encoded(&freed(MAX_FREED + 1))), Err(BadFrame::Malformed));
        let with = |len| {
            let put = vec![Put(1, 1, vec![0; len].into())];
            let why = Vec::new();
            Frame::Change(Change {
                owner: 1,
                incarnation: 1,
                beat: 1,
                from: 0,
                to: 1,
                gone: false,
                put,
                freed: vec![],
                why,
            })
        };
        assert!(Frame::decode(encoded(&with(MAX_BODY))).is_ok());
        assert_eq!(Frame::decode(encoded(&with(MAX_BODY + 1))), Err(BadFrame::Malformed));
        let why = |count, len| {
            let why = vec![(1, "x".repeat(len)); count];
            let (put, freed) = (Vec::new(), vec![1]);
            Frame::Change(Change { owner: 1, incarnation: 1, beat: 1, from: 0, to: 1, gone: false, put, freed, why })
        };
        assert!(Frame::decode(encoded(&why(MAX_WHY, MAX_REASON))).is_ok());
        assert_eq!(Frame::decode(encoded(&why(MAX_WHY + 1, MAX_REASON))), Err(BadFrame::Malformed));
        assert_eq!(Frame::decode(encoded(&why(MAX_WHY, MAX_REASON + 1))), Err(BadFrame::Malformed));
        assert_eq!(Frame::decode(Bytes::from(vec![SYNCED; MAX_FRAME + 1])), Err(BadFrame::Malformed));
        assert_eq!(Frame::decode(Bytes::new()), Err(BadFrame::Malformed));
        assert_eq!(Frame::decode(Bytes::from_static(&[99, 1, 2])), Err(BadFrame::Unknown));
    }

    #[test]
    fn everything_that_one_owner_may_have_fits_a_frame() {
        let body = Bytes::from(vec![7; MAX_OWNER_BYTES / MAX_RECORDS]);
        let put = (0..MAX_RECORDS).map(|_| Put(u64::MAX, u64::MAX, body.clone())).collect();
        let freed = vec![u64::MAX; MAX_RECORDS];
        let change = Change {
            owner: u64::MAX,
            incarnation: u64::MAX,
            beat: u64::MAX,
            from: 0,
            to: u64::MAX,
            gone: true,
            put,
            freed,
            why: vec![(u64::MAX, "x".repeat(MAX_REASON)); MAX_WHY],
        };
        let frame = Frame::Change(change);
        assert_eq!(Frame::decode(encoded(&frame)).unwrap(), frame);
    }
}
