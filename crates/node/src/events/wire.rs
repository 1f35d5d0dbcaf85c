//! An event to and from `understudy.v1.Event`: nothing is added and nothing dropped.

use understudy_proto::{FieldError, v1};

use super::{EVENT_VERSION, Event, Kind, Severity};

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> v1::Event {
        v1::Event {
            sequence: event.sequence,
            at_unix_us: event.at_unix_us,
            node: event.node.clone(),
            kind: event.kind.as_str().to_owned(),
            severity: event.severity.as_str().to_owned(),
            subject: event.subject.clone(),
            words: event.words.clone(),
            epoch: Some(event.epoch.into()),
            from: event.from.clone().unwrap_or_default(),
            to: event.to.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = FieldError;

    fn try_from(event: v1::Event) -> Result<Event, FieldError> {
        let severity = Severity::ALL.into_iter().find(|known| known.as_str() == event.severity);
        let present = |text: String| (!text.is_empty()).then_some(text);
        Ok(Event {
            version: EVENT_VERSION,
            sequence: event.sequence,
            at_unix_us: event.at_unix_us,
            node: event.node,
            kind: event.kind.parse().map_err(|words| FieldError::new("kind", words))?,
            severity: severity
                .ok_or_else(|| FieldError::new("severity", format!("{:?}", event.severity)))?,
            subject: event.subject,
            words: event.words,
            epoch: event.epoch.unwrap_or_default().into(),
            from: present(event.from),
            to: present(event.to),
        })
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        let known = Kind::ALL.iter().copied().find(|kind| kind.as_str() == text);
        known.ok_or_else(|| {
            let words: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
            format!("{text:?}: expected one of {}", words.join(", "))
        })
    }
}
