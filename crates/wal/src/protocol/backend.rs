//! What a server says: reading and writing of backend messages that replication uses.

use bytes::{BufMut, Bytes, BytesMut};

use super::frame::{put_frame, put_text};
use super::{Fields, Frame, ProtocolError};

/// Type `bytea`, from `pg_type.dat`.
pub const OID_BYTEA: u32 = 17;
/// Type `int8`, from `pg_type.dat`.
pub const OID_INT8: u32 = 20;
/// Type `int4`, from `pg_type.dat`.
pub const OID_INT4: u32 = 23;
/// Type `text`, from `pg_type.dat`.
pub const OID_TEXT: u32 = 25;

/// What a server wants before it lets a client in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// The client is in.
    Ok,
    /// Anything else, by its code: 3 clear text, 5 MD5, 7 and 8 GSS, 9 SSPI, 10 to 12 SASL.
    Requested(u32),
}

/// An `ErrorResponse` or `NoticeResponse`: fields by their type byte, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// Type byte and text of each field.
    pub fields: Vec<(u8, String)>,
}

impl ErrorFields {
    /// A report with severity (`ERROR` or `FATAL`), SQLSTATE and message.
    pub fn new(severity: &str, sqlstate: &str, message: impl Into<String>) -> ErrorFields {
        let fields = vec![
            (b'S', severity.to_owned()),
            (b'V', severity.to_owned()),
            (b'C', sqlstate.to_owned()),
            (b'M', message.into()),
        ];
        ErrorFields { fields }
    }

    /// With a detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> ErrorFields {
        self.fields.push((b'D', detail.into()));
        self
    }

    /// With a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ErrorFields {
        self.fields.push((b'H', hint.into()));
        self
    }

    /// The text of a field, if present.
    pub fn field(&self, tag: u8) -> Option<&str> {
        self.fields.iter().find(|(key, _)| *key == tag).map(|(_, text)| text.as_str())
    }

    /// Severity, not translated where the server says so (9.6 on).
    pub fn severity(&self) -> &str {
        self.field(b'V').or_else(|| self.field(b'S')).unwrap_or_default()
    }

    /// The SQLSTATE.
    pub fn sqlstate(&self) -> &str {
        self.field(b'C').unwrap_or_default()
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        self.field(b'M').unwrap_or_default()
    }
}

/// A column of a result, in text format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub type_oid: u32,
    /// The type's width in bytes, negative for variable.
    pub type_width: i16,
}

impl Column {
    /// A column of one of the types named in this file.
    pub fn new(name: &str, type_oid: u32) -> Column {
        let type_width = match type_oid {
            OID_INT8 => 8,
            OID_INT4 => 4,
            _ => -1,
        };
        Column { name: name.to_owned(), type_oid, type_width }
    }
}

/// A message from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendMessage {
    /// `R`
    Authentication(Authentication),
    /// `S`
    ParameterStatus {
        /// Which setting.
        name: String,
        /// Its value.
        value: String,
    },
    /// `K`
    BackendKeyData {
        /// The serving process: its operating system's id for PostgreSQL.
        process_id: u32,
        /// What a cancel request has to show; 4 bytes in protocol 3.0.
        secret: Bytes,
    },
    /// `v`, the options that the server did not recognise.
    NegotiateProtocolVersion {
        /// The newest minor version that the server supports.
        newest_minor: u32,
        /// Options not recognised.
        options: Vec<String>,
    },
    /// `Z`
    ReadyForQuery {
        /// `I` idle, `T` in a transaction, `E` in a failed one.
        status: u8,
    },
    /// `E`
    ErrorResponse(ErrorFields),
    /// `N`
    NoticeResponse(ErrorFields),
    /// `T`
    RowDescription(Vec<Column>),
    /// `D`; `None` is null.
    DataRow(Vec<Option<Bytes>>),
    /// `C`
    CommandComplete(String),
    /// `I`
    EmptyQueryResponse,
    /// `W`: both sides may send CopyData now.
    CopyBothResponse,
    /// `d`
    CopyData(Bytes),
    /// `c`
    CopyDone,
}

impl BackendMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// When the type is not one of these or the body is malformed.
    pub fn decode(frame: Frame) -> Result<BackendMessage, ProtocolError> {
        if frame.tag == b'd' {
            return Ok(BackendMessage::CopyData(frame.body));
        }
        let mut fields = Fields::new(frame.tag, frame.body);
        let message = match frame.tag {
            b'R' => match fields.u32()? {
                0 => BackendMessage::Authentication(Authentication::Ok),
                // The challenge follows; it is never answered here, so it is not read.
                code => {
                    return Ok(BackendMessage::Authentication(Authentication::Requested(code)));
                }
            },
            b'S' => {
                let (name, value) = (fields.text()?, fields.lossy_text()?);
                BackendMessage::ParameterStatus { name, value }
            }
            b'K' => {
                let process_id = fields.u32()?;
                if !(4..=256).contains(&fields.remaining()) {
                    return Err(fields.bad("the secret is not 4 to 256 bytes long"));
                }
                return Ok(BackendMessage::BackendKeyData { process_id, secret: fields.rest() });
            }
            b'v' => {
                let newest_minor = fields.u32()?;
                let count = fields.u32()?;
                let mut options = Vec::new();
                for _ in 0..count {
                    options.push(fields.text()?); // ends with the body, whatever the count says
                }
                BackendMessage::NegotiateProtocolVersion { newest_minor, options }
            }
            b'Z' => BackendMessage::ReadyForQuery { status: fields.u8()? },
            b'E' => BackendMessage::ErrorResponse(error_fields(&mut fields)?),
            b'N' => BackendMessage::NoticeResponse(error_fields(&mut fields)?),
            b'T' => BackendMessage::RowDescription(columns(&mut fields)?),
            b'D' => BackendMessage::DataRow(row(&mut fields)?),
            b'C' => BackendMessage::CommandComplete(fields.text()?),
            b'I' => BackendMessage::EmptyQueryResponse,
            b'W' => {
                fields.u8()?;
                for _ in 0..fields.u16()? {
                    fields.u16()?;
                }
                BackendMessage::CopyBothResponse
            }
            b'c' => BackendMessage::CopyDone,
            tag => return Err(ProtocolError::Tag { tag: char::from(tag) }),
        };
        fields.end()?;
        Ok(message)
    }

    /// Writes a message.
    ///
    /// # Panics
    /// With more than 65,535 columns or a message of 4 GiB, which no caller has.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            BackendMessage::Authentication(authentication) => put_frame(out, b'R', |out| {
                out.put_u32(match authentication {
                    Authentication::Ok => 0,
                    Authentication::Requested(code) => *code,
                });
            }),
            BackendMessage::ParameterStatus { name, value } => put_frame(out, b'S', |out| {
                put_text(out, name);
                put_text(out, value);
            }),
            BackendMessage::BackendKeyData { process_id, secret } => put_frame(out, b'K', |out| {
                out.put_u32(*process_id);
                out.put_slice(secret);
            }),
            BackendMessage::NegotiateProtocolVersion { newest_minor, options } => {
                put_frame(out, b'v', |out| {
                    out.put_u32(*newest_minor);
                    out.put_u32(u32::try_from(options.len()).expect("a handful of options"));
                    options.iter().for_each(|option| put_text(out, option));
                });
            }
            BackendMessage::ReadyForQuery { status } => {
                put_frame(out, b'Z', |out| out.put_u8(*status));
            }
            BackendMessage::ErrorResponse(fields) => put_error(out, b'E', fields),
            BackendMessage::NoticeResponse(fields) => put_error(out, b'N', fields),
            BackendMessage::RowDescription(columns) => put_columns(out, columns),
            BackendMessage::DataRow(values) => {
                let values: Vec<_> = values.iter().map(|value| value.as_deref()).collect();
                encode_data_row(&values, out);
            }
            BackendMessage::CommandComplete(tag) => put_frame(out, b'C', |out| put_text(out, tag)),
            BackendMessage::EmptyQueryResponse => put_frame(out, b'I', |_| {}),
            BackendMessage::CopyBothResponse => put_frame(out, b'W', |out| {
                out.put_u8(0);
                out.put_u16(0);
            }),
            BackendMessage::CopyData(data) => put_frame(out, b'd', |out| out.put_slice(data)),
            BackendMessage::CopyDone => put_frame(out, b'c', |_| {}),
        }
    }
}

/// Writes a `DataRow` from borrowed values; `None` is null.
pub fn encode_data_row(values: &[Option<&[u8]>], out: &mut BytesMut) {
    put_frame(out, b'D', |out| {
        out.put_u16(u16::try_from(values.len()).expect("a handful of columns"));
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(value) => {
                    out.put_i32(i32::try_from(value.len()).expect("values are far below 2 GiB"));
                    out.put_slice(value);
                }
            }
        }
    });
}

fn error_fields(fields: &mut Fields) -> Result<ErrorFields, ProtocolError> {
    let mut report = ErrorFields::default();
    loop {
        match fields.u8()? {
            0 => return Ok(report),
            tag => report.fields.push((tag, fields.lossy_text()?)),
        }
    }
}

fn put_error(out: &mut BytesMut, tag: u8, report: &ErrorFields) {
    put_frame(out, tag, |out| {
        for (tag, text) in report.fields.iter().filter(|(tag, _)| *tag != 0) {
            out.put_u8(*tag);
            put_text(out, text);
        }
        out.put_u8(0);
    });
}

fn columns(fields: &mut Fields) -> Result<Vec<Column>, ProtocolError> {
    let mut columns = Vec::new();
    for _ in 0..fields.u16()? {
        let name = fields.text()?;
        let (_table, _attribute) = (fields.u32()?, fields.u16()?);
        let type_oid = fields.u32()?;
        let type_width = fields.u16()?.cast_signed();
        let (_modifier, _format) = (fields.u32()?, fields.u16()?);
        columns.push(Column { name, type_oid, type_width });
    }
    Ok(columns)
}

fn put_columns(out: &mut BytesMut, columns: &[Column]) {
    put_frame(out, b'T', |out| {
        out.put_u16(u16::try_from(columns.len()).expect("a handful of columns"));
        for column in columns {
            put_text(out, &column.name);
            out.put_u32(0);
            out.put_u16(0);
            out.put_u32(column.type_oid);
            out.put_i16(column.type_width);
            out.put_i32(-1);
            out.put_u16(0);
        }
    });
}

fn row(fields: &mut Fields) -> Result<Vec<Option<Bytes>>, ProtocolError> {
    let mut values = Vec::new();
    for _ in 0..fields.u16()? {
        let length = fields.i32()?;
        values.push(match usize::try_from(length) {
            Ok(length) => Some(fields.bytes(length)?),
            Err(_) if length == -1 => None,
            Err(_) => return Err(fields.bad("a value has a negative length")),
        });
    }
    Ok(values)
}
