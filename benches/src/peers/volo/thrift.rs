//! The messages of this service, as volo's generator would write them:
//!
//! ```thrift
//! service Rpc {
//!     i64 add(1: i64 a, 2: i64 b),
//!     binary echo(1: binary body),
//! }
//! ```
//!
//! Written by hand because `volo-build` takes minutes to compile (libgit2 is in it) and writes 2000 lines with `unsafe`
//! in them. Must never: differ from the generated code in what is sent or copied. Next: `volo`, which calls and serves.

use bytes::Bytes;
use pilota::thrift::{
    ApplicationExceptionKind, ProtocolExceptionKind, TAsyncInputProtocol, TInputProtocol, TLengthProtocol,
    TLengthProtocolExt, TMessageIdentifier, TOutputProtocol, TOutputProtocolExt, TStructIdentifier, TType,
    ThriftException, new_application_exception, new_protocol_exception,
};
use volo_thrift::EntryMessage;

/// The name of the service.
pub(super) const SERVICE: &str = "Rpc";

/// The binary protocol does not send the names of structs.
const STRUCT: TStructIdentifier = TStructIdentifier { name: "Rpc" };

#[derive(Clone, Debug)]
pub(super) enum Request {
    Add { a: i64, b: i64 },
    Echo { body: Bytes },
}

#[derive(Clone, Debug)]
pub(super) enum Response {
    Add(i64),
    Echo(Bytes),
}

impl EntryMessage for Request {
    fn encode<T: TOutputProtocol>(&self, protocol: &mut T) -> Result<(), ThriftException> {
        protocol.write_struct_begin(&STRUCT)?;
        match self {
            Self::Add { a, b } => {
                protocol.write_i64_field(1, *a)?;
                protocol.write_i64_field(2, *b)?;
            }
            Self::Echo { body } => protocol.write_bytes_field(1, body.clone())?,
        }
        protocol.write_field_stop()?;
        protocol.write_struct_end()
    }

    fn decode<T: TInputProtocol>(protocol: &mut T, message: &TMessageIdentifier) -> Result<Self, ThriftException> {
        match &*message.name {
            "add" => {
                let (mut a, mut b) = (None, None);
                decode_fields(protocol, |protocol, field| {
                    match field {
                        (Some(1), TType::I64) => a = Some(protocol.read_i64()?),
                        (Some(2), TType::I64) => b = Some(protocol.read_i64()?),
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                Ok(Self::Add { a: a.ok_or_else(missing)?, b: b.ok_or_else(missing)? })
            }
            "echo" => Ok(Self::Echo { body: decode_bytes(protocol, 1)? }),
            _ => Err(unknown(message)),
        }
    }

    async fn decode_async<T: TAsyncInputProtocol>(_: &mut T, _: &TMessageIdentifier) -> Result<Self, ThriftException> {
        Err(not_framed())
    }

    fn size<T: TLengthProtocol>(&self, protocol: &mut T) -> usize {
        let fields = match self {
            Self::Add { a, b } => protocol.i64_field_len(Some(1), *a) + protocol.i64_field_len(Some(2), *b),
            Self::Echo { body } => protocol.bytes_field_len(Some(1), body),
        };
        protocol.struct_begin_len(&STRUCT) + fields + protocol.field_stop_len() + protocol.struct_end_len()
    }
}

impl EntryMessage for Response {
    fn encode<T: TOutputProtocol>(&self, protocol: &mut T) -> Result<(), ThriftException> {
        protocol.write_struct_begin(&STRUCT)?;
        match self {
            Self::Add(sum) => protocol.write_i64_field(0, *sum)?,
            Self::Echo(body) => protocol.write_bytes_field(0, body.clone())?,
        }
        protocol.write_field_stop()?;
        protocol.write_struct_end()
    }

    fn decode<T: TInputProtocol>(protocol: &mut T, message: &TMessageIdentifier) -> Result<Self, ThriftException> {
        match &*message.name {
            "add" => {
                let mut sum = None;
                decode_fields(protocol, |protocol, field| match field {
                    (Some(0), TType::I64) => {
                        sum = Some(protocol.read_i64()?);
                        Ok(true)
                    }
                    _ => Ok(false),
                })?;
                Ok(Self::Add(sum.ok_or_else(missing)?))
            }
            "echo" => Ok(Self::Echo(decode_bytes(protocol, 0)?)),
            _ => Err(unknown(message)),
        }
    }

    async fn decode_async<T: TAsyncInputProtocol>(_: &mut T, _: &TMessageIdentifier) -> Result<Self, ThriftException> {
        Err(not_framed())
    }

    fn size<T: TLengthProtocol>(&self, protocol: &mut T) -> usize {
        let fields = match self {
            Self::Add(sum) => protocol.i64_field_len(Some(0), *sum),
            Self::Echo(body) => protocol.bytes_field_len(Some(0), body),
        };
        protocol.struct_begin_len(&STRUCT) + fields + protocol.field_stop_len() + protocol.struct_end_len()
    }
}

/// The one `binary` field of a struct.
fn decode_bytes<T: TInputProtocol>(protocol: &mut T, id: i16) -> Result<Bytes, ThriftException> {
    let mut body = None;
    decode_fields(protocol, |protocol, field| {
        if field != (Some(id), TType::Binary) {
            return Ok(false);
        }
        body = Some(protocol.read_bytes()?);
        Ok(true)
    })?;
    body.ok_or_else(missing)
}

/// Hands the fields of a struct to `read`, which says whether it took the field.
fn decode_fields<T: TInputProtocol>(
    protocol: &mut T,
    mut read: impl FnMut(&mut T, (Option<i16>, TType)) -> Result<bool, ThriftException>,
) -> Result<(), ThriftException> {
    protocol.read_struct_begin()?;
    loop {
        let field = protocol.read_field_begin()?;
        if field.field_type == TType::Stop {
            break;
        }
        if !read(protocol, (field.id, field.field_type))? {
            protocol.skip(field.field_type)?;
        }
        protocol.read_field_end()?;
    }
    protocol.read_struct_end()
}

fn missing() -> ThriftException {
    new_protocol_exception(ProtocolExceptionKind::InvalidData, "a field is missing")
}

fn unknown(message: &TMessageIdentifier) -> ThriftException {
    let name = &message.name;
    new_application_exception(ApplicationExceptionKind::UNKNOWN_METHOD, format!("unknown method {name}"))
}

/// Only messages without a frame are decoded as they arrive, and both sides frame theirs.
fn not_framed() -> ThriftException {
    new_protocol_exception(ProtocolExceptionKind::NotImplemented, "a message without a frame")
}
