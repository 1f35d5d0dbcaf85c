//! What a health check asks for behind the question mark: Patroni's parameters, and our units.

use super::lag::LagLimit;

/// The conditions of one request. What is not known here is ignored, as load balancers expect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    /// `lag=10MB`, `lag=5s`.
    pub(super) lag: Option<LagLimit>,
    /// `replication_state=streaming`.
    pub(super) replication_state: Option<String>,
    /// The first `tag_…=…`; there are no tags here, so none ever matches.
    pub(super) tag: Option<String>,
    /// `mode=write`: lag counts to what is durable, not to what is replayed.
    pub(super) written: bool,
}

impl Query {
    /// Reads the part behind the question mark.
    ///
    /// # Errors
    /// In words, when a value cannot be read.
    pub(super) fn parse(text: Option<&str>) -> Result<Query, String> {
        let mut query = Query::default();
        for pair in text.unwrap_or_default().split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            match key {
                "lag" => query.lag = Some(LagLimit::of_value(value)?),
                "replication_state" => query.replication_state = Some(value.to_owned()),
                "mode" => match value {
                    "apply" => query.written = false,
                    "write" => query.written = true,
                    _ => return Err(format!("mode={value}: expected apply or write")),
                },
                tag if tag.starts_with("tag_") => query.tag = Some(pair.to_owned()),
                _ => {}
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_patroni_knows_is_read_and_the_rest_ignored() {
        let query = Query::parse(Some("lag=10MB&replication_state=streaming&mode=write&x=y"));
        let query = query.unwrap();
        assert_eq!(query.lag, Some(LagLimit::Bytes(10 << 20)));
        assert_eq!(query.replication_state.as_deref(), Some("streaming"));
        assert!(query.written && query.tag.is_none());
        assert_eq!(Query::parse(None), Ok(Query::default()));
        assert_eq!(Query::parse(Some("")), Ok(Query::default()));
        let tagged = Query::parse(Some("tag_zone=a")).unwrap();
        assert_eq!(tagged.tag.as_deref(), Some("tag_zone=a"));
        for wrong in ["lag", "lag=much", "mode=fast"] {
            assert!(Query::parse(Some(wrong)).is_err(), "{wrong} was accepted");
        }
    }
}
