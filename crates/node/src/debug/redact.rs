//! Takes out of a text whatever looks like a secret. Pure; it would rather take too much than too little.
//!
//! Private keys in PEM, passwords in URIs, and the values of names such as `password` or `token`, as they
//! stand in connection strings, TOML, JSON, SQL, command lines and HTTP headers. What looks like nothing
//! of this is not found: a password alone on its line for instance.

/// What stands in its place.
const REDACTED: &str = "[redacted]";
/// Names that hold one of these have secrets as values.
const NAMES: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "credential",
    "authorization",
];
/// What an HTTP header says before the secret itself.
const SCHEMES: [&str; 2] = ["bearer", "basic"];

/// The text without them. What has been through it once does not change again.
pub fn redact(text: &str) -> String {
    values(&uris(&keys(text)))
}

/// Private keys, from their first line to their last, or to the end where there is no last one.
fn keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    const END: &str = "-----END ";
    const KEY: &str = "PRIVATE KEY-----";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let label = &rest[begin + BEGIN.len()..];
        let head = label.find(KEY).filter(|at| *at < 40 && !label[..*at].contains('-'));
        let Some(head) = head else {
            let (before, after) = rest.split_at(begin + BEGIN.len());
            out.push_str(before);
            rest = after;
            continue;
        };
        out.push_str(&rest[..begin]);
        out.push_str(REDACTED);
        let body = &label[head + KEY.len()..];
        rest = match body.find(END).and_then(|end| Some(end + body[end..].find(KEY)? + KEY.len())) {
            Some(end) => &body[end..],
            None => "",
        };
    }
    out + rest
}

/// `scheme://user:password@host`.
fn uris(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | '`' | '\\');
        let token = &after[..after.find(ends).unwrap_or(after.len())];
        let user_info = token.rfind('@').map_or("", |at| &token[..at]);
        rest = match user_info.split_once(':') {
            Some((user, _)) => {
                out.push_str(user);
                out.push(':');
                out.push_str(REDACTED);
                &after[user_info.len()..]
            }
            None => after,
        };
    }
    out + rest
}

/// Values of names that say that they are secrets.
fn values(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(is_of_name) {
        let name = &rest[begin..];
        let name = &name[..name.find(|c| !is_of_name(c)).unwrap_or(name.len())];
        let end = begin + name.len();
        out.push_str(&rest[..end]);
        rest = &rest[end..];
        let lower = name.to_ascii_lowercase();
        let is_scheme = SCHEMES.contains(&lower.as_str());
        if !is_scheme && !NAMES.iter().any(|secret| lower.contains(secret)) {
            continue;
        }
        let flag = name.starts_with('-') || is_scheme;
        if let Some((kept, value)) = value_of(rest, flag) {
            out.push_str(&rest[..kept]);
            rest = &rest[kept..];
            // `Authorization: Bearer …`: the scheme is not the secret, and is looked at next.
            if SCHEMES.iter().any(|scheme| rest[..value].eq_ignore_ascii_case(scheme)) {
                continue;
            }
            out.push_str(REDACTED);
            rest = &rest[value..];
        }
    }
    out + rest
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// After a name: how much stands before its value, and how long that is. A name that is a flag may have
/// its value behind a blank or as the next of a list; another needs `=`, `:` or a quoted value.
fn value_of(text: &str, flag: bool) -> Option<(usize, usize)> {
    let blank = |c: char| c == ' ' || c == '\t';
    let after_quote = text.trim_start_matches('\\').trim_start_matches(['"', '\'']);
    let quoted_name = after_quote.len() < text.len();
    let after_blanks = after_quote.trim_start_matches(blank);
    let after_sign = after_blanks.trim_start_matches(['=', ':', '>']);
    let signed = after_sign.len() < after_blanks.len();
    let listed = after_blanks.strip_prefix(',').filter(|_| flag && quoted_name);
    let value = listed.unwrap_or(after_sign).trim_start_matches(blank);
    let opening = value.trim_start_matches('\\');
    let escapes = value.len() - opening.len();
    let quote = opening.chars().next().filter(|c| matches!(c, '"' | '\''));
    let spaced = after_blanks.len() < after_quote.len() && !quoted_name;
    if !(signed || listed.is_some() || spaced && (flag || quote.is_some())) {
        return None;
    }
    let (before, length) = match quote {
        Some(quote) => {
            let inner = &opening[1..];
            (text.len() - inner.len(), quoted_length(inner, quote, escapes > 0))
        }
        None => {
            let ends = |c: char| {
                c.is_whitespace() || matches!(c, ',' | ';' | '&' | '"' | '\'' | ')' | '}')
            };
            (text.len() - value.len(), value.find(ends).unwrap_or(value.len()))
        }
    };
    (length > 0 && !text[before..].starts_with(REDACTED)).then_some((before, length))
}

/// Up to the quote that ends it; one behind a backslash does not, unless all of them are.
fn quoted_length(inner: &str, quote: char, all_escaped: bool) -> usize {
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        if c == quote && (all_escaped || !escaped) {
            return if all_escaped { inner[..at].trim_end_matches('\\').len() } else { at };
        }
        escaped = c == '\\' && !escaped;
    }
    inner.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let once = redact(text);
        assert_eq!(once, expected);
        assert_eq!(redact(&once), once, "the second time is another");
    }

    #[test]
    fn passwords_in_uris_and_connection_strings_are_taken_out() {
        check(
            "postgres://ada:s3c:r@t@north:5432/db x",
            "postgres://ada:[redacted]@north:5432/db x",
        );
        check("see http://north:7480/ui and a@b", "see http://north:7480/ui and a@b");
        check("postgresql://ada@north/db", "postgresql://ada@north/db");
        check(
            "host=north user=ada password=s3cret port=5",
            "host=north user=ada password=[redacted] port=5",
        );
        check("x = 'host=north password=s3cret'", "x = 'host=north password=[redacted]'");
        check(r"x = 'password=\'s 3\' port=5'", r"x = 'password=\'[redacted]\' port=5'");
        check("PGPASSWORD=abc psql", "PGPASSWORD=[redacted] psql");
        check(
            "postgres://u:p@h?sslpassword=q&x=1",
            "postgres://u:[redacted]@h?sslpassword=[redacted]&x=1",
        );
    }

    #[test]
    fn values_in_toml_json_sql_headers_and_command_lines_are_taken_out() {
        check("api_key = \"k 1\"\nname = \"x\"", "api_key = \"[redacted]\"\nname = \"x\"");
        check(r#"{"password":"a\"b","n":1}"#, r#"{"password":"[redacted]","n":1}"#);
        check(
            r#"{"m":"{\"token\": \"abc\", \"n\": 1}"}"#,
            r#"{"m":"{\"token\": \"[redacted]\", \"n\": 1}"}"#,
        );
        check("CREATE ROLE a PASSWORD 'x y' LOGIN", "CREATE ROLE a PASSWORD '[redacted]' LOGIN");
        check(
            "Authorization: Bearer abc.def\nHost: x",
            "Authorization: Bearer [redacted]\nHost: x",
        );
        check("tool --password s3 --port 5", "tool --password [redacted] --port 5");
        check(
            "[\"/x\", \"--token\", \"abc\", \"y\"]",
            "[\"/x\", \"--token\", \"[redacted]\", \"y\"]",
        );
        check("[\"/x\", \"--token=abc\", \"y\"]", "[\"/x\", \"--token=[redacted]\", \"y\"]");
    }

    #[test]
    fn keys_are_taken_out_whole_and_certificates_are_left() {
        let key = "a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQ==\n-----END EC PRIVATE KEY-----\nb";
        check(key, "a\n[redacted]\nb");
        check("-----BEGIN PRIVATE KEY-----\nMHcC cut off", "[redacted]");
        let escaped =
            r#"{"k":"-----BEGIN PRIVATE KEY-----\nMHcC\n-----END PRIVATE KEY-----\n","n":1}"#;
        check(escaped, r#"{"k":"[redacted]\n","n":1}"#);
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        check(certificate, certificate);
    }

    #[test]
    fn ordinary_words_stay() {
        for text in [
            "FATAL: password authentication failed for user \"ada\"",
            "the token ring, a secret nobody knows",
            "key = \"tls/node.key\"",
            "lease_left_seconds 2.5",
            "",
        ] {
            check(text, text);
        }
    }
}
