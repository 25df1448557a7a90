//! Where libpcap's parser fails.
//!
//! libpcap says "syntax error", and not where. Its parser (`pcap_parse`, grammar.y) reads one token at a time from its scanner
//! (`pcap_lex`, scanner.l) and fails at the first that fits nothing. The linker puts [`__wrap_pcap_lex`] between the two, which notes
//! the last token: see `build.rs`, and `--wrap` in ld(1).
//!
//! # Assumptions
//! libpcap 1.8 or later: its scanner is reentrant, and has these names. Otherwise the program cannot be linked.

use std::{
    cell::RefCell,
    ffi::{CStr, c_char, c_int, c_void},
};

/// How much of the text before the error is shown.
const MAX_SHOWN: usize = 40;

/// What the scanner skips between tokens.
const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// A token, by its place in libpcap's copy of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Where the first token of the text begins.
    first: usize,
    start: usize,
    text: String,
}

thread_local! {
    static LAST: RefCell<Option<Token>> = const { RefCell::new(None) };
}

unsafe extern "C" {
    #[link_name = "__real_pcap_lex"]
    fn real_lex(value: *mut c_void, scanner: *mut c_void) -> c_int;
    fn pcap_get_text(scanner: *mut c_void) -> *const c_char;
}

/// Reads the next token, and notes it.
#[unsafe(no_mangle)]
extern "C" fn __wrap_pcap_lex(value: *mut c_void, scanner: *mut c_void) -> c_int {
    // SAFETY: the parser calls this in place of the scanner, with the arguments for the scanner.
    let kind = unsafe { real_lex(value, scanner) };
    // SAFETY: the scanner is the one that has just read a token. The result points into its buffer, where the token ends with a zero
    // byte until the next call (`YY_DO_BEFORE_ACTION` in what flex generates).
    let text = unsafe { CStr::from_ptr(pcap_get_text(scanner)) };
    let start = text.as_ptr().addr();
    LAST.with_borrow_mut(|last| {
        let first = last.as_ref().map_or(start, |last| last.first);
        *last = Some(Token { first, start, text: text.to_string_lossy().into_owned() });
    });
    kind
}

/// The last token that was read in this thread since the last call.
pub fn take() -> Option<Token> {
    LAST.with_borrow_mut(Option::take)
}

/// Where the token is in `text`. `None` if it is not there, which a libpcap with another scanner could cause.
pub fn describe(text: &str, token: &Token) -> Option<String> {
    let first = text.len() - text.trim_start_matches(SPACE).len();
    let start = first + token.start.checked_sub(token.first)?;
    let (before, rest) = (text.get(..start)?.trim_matches(SPACE), text.get(start..)?);
    if !rest.starts_with(&token.text) {
        return None;
    }
    let skipped = before.len().saturating_sub(MAX_SHOWN);
    let before = if skipped == 0 { before.to_owned() } else { format!("...{}", before.get(skipped..)?) };
    Some(match (token.text.is_empty(), before.is_empty()) {
        (true, _) => format!(" at the end, after {before:?}"),
        (false, true) => format!(" at {:?}, the first word", token.text),
        (false, false) => format!(" at {:?}, after {before:?}", token.text),
    })
}

#[cfg(test)]
mod tests {
    use crate::expression::compile;

    fn place(expression: &str) -> String {
        let error = compile(expression).expect_err("not an expression").to_string();
        let (_, place) = error.split_once("syntax error").unwrap_or_else(|| panic!("{error}"));
        place.to_owned()
    }

    #[test]
    fn the_token_at_which_the_parser_fails() {
        for (expression, expected) in [
            ("tcp prot 443", r#" at "prot", after "tcp""#),
            ("  tcp \t and\nand 443 ", r#" at "and", after "tcp \t and""#),
            ("host 192.0.2.1 and and port 5", r#" at "and", after "host 192.0.2.1 and""#),
            ("tcp port", r#" at the end, after "tcp port""#),
            ("(tcp or udp", r#" at the end, after "(tcp or udp""#),
            ("tcp port 443)", r#" at ")", after "tcp port 443""#),
            (") tcp", r#" at ")", the first word"#),
            ("ip[0 == 5", r#" at "==", after "ip[0""#),
            ("tcp&&&&udp", r#" at "&&", after "tcp&&""#),
            ("ip6 host fe80::1 or tcp tcp", r#" at "tcp", after "ip6 host fe80::1 or tcp""#),
        ] {
            assert_eq!(place(expression), expected, "{expression}");
        }
        let long = format!("{} or or", (0..60).map(|n| format!("port {n}")).collect::<Vec<_>>().join(" or "));
        assert_eq!(place(&long), r#" at "or", after "...t 56 or port 57 or port 58 or port 59 or""#);
    }

    #[test]
    fn other_errors_have_words_of_their_own() {
        let error = compile("udp port 70000").expect_err("not an expression").to_string();
        assert_eq!(error, "illegal port number 70000 > 65535");
    }
}
