//! The small conversions that every service needs.

use understudy_types::{Epoch, PromotionId, Timeline};

use crate::v1;

/// A message carried a value that cannot be what its field means.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read field {field}: {problem}")]
pub struct FieldError {
    /// The field's name as in the .proto file.
    pub field: &'static str,
    /// What is wrong with the value.
    pub problem: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> FieldError {
        FieldError { field, problem: problem.into() }
    }
}

impl From<FieldError> for tonic::Status {
    fn from(error: FieldError) -> tonic::Status {
        tonic::Status::invalid_argument(error.to_string())
    }
}

impl From<Epoch> for v1::Epoch {
    fn from(epoch: Epoch) -> v1::Epoch {
        v1::Epoch { incarnation: epoch.incarnation, number: epoch.number }
    }
}

impl From<v1::Epoch> for Epoch {
    fn from(epoch: v1::Epoch) -> Epoch {
        Epoch { incarnation: epoch.incarnation, number: epoch.number }
    }
}

/// Reads a promotion's uuid.
///
/// # Errors
/// When `text` is not a uuid.
pub fn parse_promotion(field: &'static str, text: &str) -> Result<PromotionId, FieldError> {
    text.parse().map_err(|_| FieldError::new(field, format!("{text:?} is not a uuid")))
}

/// Reads a timeline number.
///
/// # Errors
/// When it is 0.
pub fn parse_timeline(field: &'static str, number: u32) -> Result<Timeline, FieldError> {
    Timeline::new(number).ok_or_else(|| FieldError::new(field, "0 is not a timeline"))
}
