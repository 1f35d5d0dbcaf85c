//! The files of the status page, carried in the binary. It reads `/status` and nothing else.

/// A file as it is sent.
#[derive(Debug)]
pub(super) struct File {
    /// Where it is asked for.
    path: &'static str,
    pub(super) content_type: &'static str,
    pub(super) text: &'static str,
}

/// What the page may load: what comes from this door, and nothing that stands in the page itself.
pub(super) const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const IMAGE: &str = "image/svg+xml";
const STYLE: &str = "text/css; charset=utf-8";

const FILES: &[File] = &[
    File { path: "/ui", content_type: HTML, text: include_str!("page/index.html") },
    File { path: "/ui/style.css", content_type: STYLE, text: include_str!("page/style.css") },
    File { path: "/ui/icon.svg", content_type: IMAGE, text: include_str!("page/icon.svg") },
    File { path: "/ui/dom.js", content_type: SCRIPT, text: include_str!("page/dom.js") },
    File { path: "/ui/elements.js", content_type: SCRIPT, text: include_str!("page/elements.js") },
    File { path: "/ui/feed.js", content_type: SCRIPT, text: include_str!("page/feed.js") },
    File { path: "/ui/history.js", content_type: SCRIPT, text: include_str!("page/history.js") },
    File { path: "/ui/judge.js", content_type: SCRIPT, text: include_str!("page/judge.js") },
    File { path: "/ui/model.js", content_type: SCRIPT, text: include_str!("page/model.js") },
    File { path: "/ui/page.js", content_type: SCRIPT, text: include_str!("page/page.js") },
    File { path: "/ui/plots.js", content_type: SCRIPT, text: include_str!("page/plots.js") },
    File { path: "/ui/values.js", content_type: SCRIPT, text: include_str!("page/values.js") },
];

/// The file that is asked for by this path.
pub(super) fn file(path: &str) -> Option<&'static File> {
    FILES.iter().find(|file| file.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_served_under_the_policy_that_its_tests_use() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http/page");
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            let path = if name == "index.html" { "/ui".to_owned() } else { format!("/ui/{name}") };
            assert!(file(&path).is_some(), "{path}");
        }
        let driver = include_str!("../../../../tests/page/run.py");
        assert!(driver.contains(&format!("POLICY = \"{CONTENT_SECURITY_POLICY}\"")));
    }
}
