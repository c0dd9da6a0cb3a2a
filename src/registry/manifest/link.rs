//! One connection to another member, over anything that carries bytes.
//!
//! Owns joining, the loop that reads and the loop that writes. It must never keep what the other side has not read: what to
//! say is worked out by the table when there is room for it. Look next at `join.rs` for who is let in, and at
//! `table/speak.rs` for what is said.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tokio_util::sync::CancellationToken;

use super::engine::Shared;
use super::frame::{Frame, MAX_FRAME};
use super::join::{Hello, MAX_JOIN_FRAME, NO_MEMBER, Proofs, Refusal, Side};
use super::seal::{PROOF, Seal};
use super::table::{Table, Unwanted};
use crate::registry::address::usable;

/// How long joining may take. With the time that connecting may take it is less than a first call waits for an instance, so
/// that the call can tell what is wrong.
pub(super) const JOIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How much is written at once before the other side must have taken it, in bytes.
const BATCH: usize = 64 << 10;

/// How a connection came about.
pub(super) struct Origin {
    pub(super) side: Side,
    /// Where the other side is, if it is anywhere.
    pub(super) peer: Option<IpAddr>,
    /// The address of this machine that the other side has dialled.
    pub(super) own: Option<IpAddr>,
    /// Which of the places that are dialled it is.
    pub(super) place: Option<usize>,
    /// The right to be joining, of which there are not many: cancelled when it is taken away, or given back.
    pub(super) permit: CancellationToken,
}

/// Why there is no connection any more.
pub(super) enum End {
    /// The other side is this very member.
    Myself,
    /// It was not joined.
    Refused(Refusal),
    /// It was joined, and has ended. Whether everything had been said by then.
    Lost { synced: bool, why: String },
}

type Reader<I> = FramedRead<ReadHalf<I>, LengthDelimitedCodec>;

/// Joins and speaks until the connection ends.
pub(super) async fn run<I>(shared: &Arc<Shared>, io: I, origin: Origin) -> End
where
    I: AsyncRead + AsyncWrite + Send + 'static,
{
    let (read, mut write) = tokio::io::split(io);
    let codec = LengthDelimitedCodec::builder().max_frame_length(MAX_JOIN_FRAME).new_codec();
    let mut reader = FramedRead::new(read, codec);
    let met = tokio::select! {
        met = timeout(JOIN_TIMEOUT, meet(shared, &mut reader, &mut write, &origin)) => met,
        () = origin.permit.cancelled() => Ok(Err("it had not joined when many others came".into())),
        () = shared.stop.cancelled() => return End::Refused("the manifest was closed".into()),
    };
    origin.permit.cancel();
    let (link, mut seals) = match met.unwrap_or_else(|_| Err(silent().into())) {
        Ok((link, seals)) => (Up { shared, link }, seals),
        Err(NotMet::Myself) => return End::Myself,
        Err(NotMet::Refused(why)) => {
            if origin.side == Side::Answered {
                shared.with(|table, _| table.refusals.joins += 1);
            }
            return End::Refused(why);
        }
    };
    shared.look.notify_one();
    reader.decoder_mut().set_max_frame_length(MAX_FRAME + PROOF);
    let why = tokio::select! {
        why = listen(shared, link.link, &origin, &mut reader, &mut seals.theirs) => why,
        why = speak(shared, link.link, &mut write, &mut seals.mine) => why,
        () = shared.stop.cancelled() => "the manifest was closed".to_owned(),
    };
    let synced = shared.with(|table, _| table.is_synced(link.link));
    tracing::debug!(why, "a connection to another member has ended");
    End::Lost { synced, why }
}

/// Ends the link, however the task ends.
struct Up<'a> {
    shared: &'a Arc<Shared>,
    link: u64,
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        self.shared.with(|table, _| table.link_down(self.link));
    }
}

/// What proves the frames of either side.
struct Seals {
    mine: Seal,
    theirs: Seal,
}

enum NotMet {
    Myself,
    Refused(Refusal),
}

impl<T: Into<Refusal>> From<T> for NotMet {
    fn from(why: T) -> Self {
        Self::Refused(why.into())
    }
}

fn silent() -> String {
    format!("it took the connection and did not join within {JOIN_TIMEOUT:?}: is it a member of a manifest?")
}

/// The reasons that the one who answers gives the one who dialled, each the first byte of a frame. All but the first are said to
/// who has proved that it knows the secret, and followed by the proof of who says so: no proof alone is as long as that.
const WRONG_SECRET: u8 = 1;
const MYSELF: u8 = 2;
const TAKEN: u8 = 3;
const FULL: u8 = 4;

const FALSE_SELF: &str = "it claims to be this very member, and is not";

async fn meet<I>(
    shared: &Arc<Shared>,
    reader: &mut Reader<I>,
    write: &mut WriteHalf<I>,
    origin: &Origin,
) -> Result<(u64, Seals), NotMet>
where
    I: AsyncRead + AsyncWrite,
{
    // Read anew for every connection, so that a changed file counts.
    let secret = shared.settings.secret().map_err(|error| error.to_string())?;
    let seen = origin.peer.filter(|_| origin.side == Side::Answered);
    let mine = Hello::new(shared.owner(), shared.birth, secret.is_some(), seen)?;
    let sent = mine.encode();
    let greeting = (origin.side == Side::Dialled).then(|| shared.greets(mine.nonce));
    let (theirs, hello);
    if origin.side == Side::Dialled {
        put(write, &sent).await?;
        theirs = take(reader).await?;
        hello = Hello::decode(&theirs)?;
    } else {
        theirs = take(reader).await?;
        hello = Hello::decode(&theirs)?;
        put(write, &sent).await?;
    }
    if hello.locked != secret.is_some() {
        let who = if hello.locked {
            "the other side has a secret, and this one none"
        } else {
            "the other side has no secret"
        };
        return Err(Refusal::mistake(who).into());
    }
    let (dialled, answered) = match origin.side {
        Side::Dialled => (sent.as_slice(), theirs.as_ref()),
        Side::Answered => (theirs.as_ref(), sent.as_slice()),
    };
    let proofs = Proofs { secret: secret.as_ref(), dialled, answered };
    let (by_dialled, by_answered) = (proofs.seal(Side::Dialled), proofs.seal(Side::Answered));
    if let Some(greeting) = greeting {
        put(write, &proofs.of(Side::Dialled)).await?;
        let proof = take(reader).await?;
        if !proofs.is_right(Side::Answered, &proof) {
            let told = proof.split_first().filter(|(_, proof)| proofs.is_right(Side::Answered, proof));
            return Err(match told.map(|(code, _)| *code) {
                // Whoever is told that it is alone takes its table for all there is.
                Some(MYSELF) if greeting.came_back() => NotMet::Myself,
                Some(MYSELF) => FALSE_SELF.into(),
                Some(code) => {
                    if code == TAKEN {
                        // Whoever it is there, it shall not keep this one out.
                        shared.with(Table::rename);
                    }
                    reason(code).into()
                }
                // Whoever knows no secret may say anything, but it means no more than this.
                None => wrong_secret(),
            });
        }
        let mut seals = Seals { mine: by_dialled, theirs: by_answered };
        let up = match shared.with(|table, now| table.link_up(hello.owner, hello.birth, now)) {
            Ok(up) => up,
            Err(Unwanted::Myself) => return Err(FALSE_SELF.into()),
            Err(why) => {
                if why == Unwanted::Taken {
                    // Nor shall it keep out the one who answered, who takes this for a connection by now.
                    let mut taken = BytesMut::new();
                    Frame::Taken.encode(&mut taken);
                    seals.mine.close(&mut taken, 0);
                    write_out(write, &taken).await.map_err(|error| broken(&error))?;
                }
                return Err(unwanted(why));
            }
        };
        if let (Some(place), Some(peer), Some(seen)) = (origin.place, origin.peer, hello.seen) {
            // A loopback address is only what somebody on the same machine can see; and whoever has the port of `local()` must
            // not move the others away from the machine.
            let same = peer.is_loopback() == seen.is_loopback();
            if usable(seen).is_ok() && (same || peer.is_loopback() && shared.settings.local.is_none()) {
                shared.seen_as(Some(place), seen.to_canonical());
            }
        }
        return Ok((up, seals));
    }
    let proof = take(reader).await?;
    if !proofs.is_right(Side::Dialled, &proof) {
        put(write, &[WRONG_SECRET]).await?;
        return Err(wrong_secret());
    }
    let wanted = shared.with(|table, _| table.is_wanted(hello.owner, hello.birth));
    if let Err(why) = wanted {
        let code = match why {
            Unwanted::Myself => {
                shared.greeted_itself(hello.nonce);
                MYSELF
            }
            Unwanted::Taken => TAKEN,
            Unwanted::Full => FULL,
        };
        put(write, &[&[code][..], &proofs.of(Side::Answered)].concat()).await?;
        return Err(unwanted(why));
    }
    put(write, &proofs.of(Side::Answered)).await?;
    let up = shared.with(|table, now| table.link_up(hello.owner, hello.birth, now)).map_err(unwanted)?;
    if let Some(own) = origin.own.filter(|own| usable(*own).is_ok()) {
        shared.seen_as(None, own);
    }
    Ok((up, Seals { mine: by_answered, theirs: by_dialled }))
}

fn unwanted(why: Unwanted) -> NotMet {
    match why {
        Unwanted::Myself => NotMet::Myself,
        Unwanted::Taken => reason(TAKEN).into(),
        Unwanted::Full => reason(FULL).into(),
    }
}

fn wrong_secret() -> NotMet {
    Refusal::mistake("the secrets are not the same").into()
}

const fn reason(code: u8) -> &'static str {
    match code {
        TAKEN => "another process is connected there under the same name",
        FULL => "it has no room for another connection",
        _ => "it gives a reason that is not known",
    }
}

async fn put<I: AsyncWrite>(write: &mut WriteHalf<I>, frame: &[u8]) -> Result<(), String> {
    let mut out = BytesMut::with_capacity(size_of::<u32>() + frame.len());
    out.put_u32(u32::try_from(frame.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(frame);
    write_out(write, &out).await.map_err(|error| broken(&error))
}

fn broken(error: &io::Error) -> String {
    format!("the connection broke while joining: {error}")
}

async fn write_out<I: AsyncWrite>(write: &mut WriteHalf<I>, out: &[u8]) -> io::Result<()> {
    write.write_all(out).await?;
    write.flush().await
}

async fn take<I: AsyncRead>(reader: &mut Reader<I>) -> Result<BytesMut, String> {
    match reader.next().await {
        Some(Ok(frame)) => Ok(frame),
        // What it said would be longer than any frame while joining.
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(NO_MEMBER.to_owned()),
        Some(Err(error)) => Err(broken(&error)),
        None => Err("it closed the connection while joining".to_owned()),
    }
}

async fn listen<I: AsyncRead>(
    shared: &Arc<Shared>,
    link: u64,
    origin: &Origin,
    reader: &mut Reader<I>,
    seal: &mut Seal,
) -> String {
    // Why it failed before is told until it has not failed: who lets others in only to close is of no use.
    let mut place = origin.place;
    loop {
        let frame = match reader.next().await {
            Some(Ok(frame)) => frame.freeze(),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                shared.with(|table, _| table.refusals.malformed_frames += 1);
                return "it sent a frame that is too long".to_owned();
            }
            Some(Err(error)) => return error.to_string(),
            None => return "the other side closed it".to_owned(),
        };
        let Some(frame) = seal.open(frame) else {
            shared.with(|table, _| table.refusals.malformed_frames += 1);
            return "a frame was not from the one who joined".to_owned();
        };
        if let Err(close) = shared.with(|table, now| table.receive(link, frame, now)) {
            return close.0.to_owned();
        }
        if let Some(reached) = place.take_if(|_| shared.peek(|table| table.is_synced(link))) {
            shared.reached(reached);
        }
    }
}

async fn speak<I: AsyncWrite>(shared: &Arc<Shared>, link: u64, write: &mut WriteHalf<I>, seal: &mut Seal) -> String {
    let Some(bell) = shared.peek(|table| table.bell(link)) else { return "it was closed".to_owned() };
    let mut out = BytesMut::new();
    loop {
        loop {
            while out.len() < BATCH {
                let Some(frame) = shared.peek(|table| table.next_frame(link, Instant::now())) else { break };
                let start = out.len();
                frame.encode(&mut out);
                seal.close(&mut out, start);
            }
            if out.is_empty() {
                break;
            }
            match timeout(shared.settings.lifetime * 2, write_out(write, &out)).await {
                Ok(Ok(())) => out.clear(),
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return "the other side does not read".to_owned(),
            }
        }
        // Many members in one process have many of these.
        if out.capacity() > BATCH {
            out = BytesMut::new();
        }
        if shared.written(link) {
            return "the other side has fallen silent".to_owned();
        }
        bell.notified().await;
    }
}
