//! The page that shows the map and flows: static files, and headers that confine what it may do in a browser.
//!
//! Names in the map come from frames that anyone may have sent. The page shows them as text only, and if it did not, these headers would
//! keep them from being a script, and from sending anything anywhere.

use podtap_runtime::http::{
    Bytes, Full, Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
    plain,
};

/// Its files: path, media type, content.
const FILES: [(&str, &str, &str); 12] = [
    ("/", "text/html; charset=utf-8", include_str!("../../page/index.html")),
    ("/page/style.css", "text/css; charset=utf-8", include_str!("../../page/style.css")),
    ("/page/icon.svg", "image/svg+xml", include_str!("../../page/icon.svg")),
    ("/page/app.js", JAVASCRIPT, include_str!("../../page/app.js")),
    ("/page/dom.js", JAVASCRIPT, include_str!("../../page/dom.js")),
    ("/page/flows.js", JAVASCRIPT, include_str!("../../page/flows.js")),
    ("/page/graph.js", JAVASCRIPT, include_str!("../../page/graph.js")),
    ("/page/layout.js", JAVASCRIPT, include_str!("../../page/layout.js")),
    ("/page/picture.js", JAVASCRIPT, include_str!("../../page/picture.js")),
    ("/page/state.js", JAVASCRIPT, include_str!("../../page/state.js")),
    ("/page/tables.js", JAVASCRIPT, include_str!("../../page/tables.js")),
    ("/page/worker.js", JAVASCRIPT, include_str!("../../page/worker.js")),
];
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// `trusted-types`: text cannot become HTML or a script in this page, except for the address of the worker that computes the layout.
const POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types worker";

/// Headers of every response, also those of the API: none is to be used by pages of other origins, or guessed to be of another type.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-embedder-policy"), "require-corp"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// The file with this path.
pub fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (_, media_type, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = plain(StatusCode::OK, Bytes::from_static(content.as_bytes()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Some(response)
}

/// Adds the headers that every response has. What was answered may be outdated at once.
pub fn confine(response: &mut Response<Full<Bytes>>) {
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn all_files_are_served_and_confined() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let files = fs::read_dir(directory).expect("it exists");
        let name = |file: fs::DirEntry| file.file_name().into_string().expect("text");
        let mut names: BTreeSet<String> = files.map(|file| format!("/page/{}", name(file.expect("a file")))).collect();
        assert!(names.remove("/page/index.html") && names.insert("/".to_owned()));
        assert_eq!(names, FILES.iter().map(|(path, ..)| (*path).to_owned()).collect());
        for path in names {
            let mut response = file(&path).expect("it is served");
            confine(&mut response);
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            let policy = header("content-security-policy");
            assert!(
                policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
                "{policy}"
            );
            for part in [
                "frame-ancestors 'none'",
                "form-action 'none'",
                "base-uri 'none'",
                "require-trusted-types-for 'script'",
            ] {
                assert!(policy.contains(part), "{policy}");
            }
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("referrer-policy"), "no-referrer");
            assert_eq!(header("cross-origin-resource-policy"), "same-origin");
        }
        assert!(file("/page/../Cargo.toml").is_none() && file("/page/").is_none());
    }

    #[test]
    fn text_never_becomes_html() {
        for (path, _, content) in FILES {
            for way in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "DOMParser",
                "http://",
                "https://",
            ] {
                // A name of SVG, which is never requested.
                let content = content.replace("http://www.w3.org/2000/svg", "");
                assert!(!content.contains(way), "{path} has {way}");
            }
        }
    }
}
