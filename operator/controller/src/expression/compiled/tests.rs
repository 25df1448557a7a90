use podtap_model::bounds::MAX_EXPRESSION;

use super::*;
use crate::fixtures::at;

fn texts(list: &[&str]) -> BTreeSet<String> {
    compilable(list.iter().copied())
}

/// Records in a file how often it was started.
fn counting(name: &str) -> (Compiler, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("podtap-expressions-{name}-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let script = format!(
        "read -r text; echo \"$text\" >>{0}; case $text in bad) echo '{{\"error\": \"no\"}}';; *) echo '{{\"program\": []}}';; esac",
        path.display()
    );
    (Compiler::shell(&script), path)
}

#[tokio::test]
async fn each_text_is_compiled_once() {
    let (compiler, path) = counting("once");
    let (mut known, mut retries) = (Expressions::new(), Retries::default());
    for _ in 0..2 {
        let texts = texts(&["tcp", "udp", "tcp", "bad"]);
        assert!(compile(&mut known, &compiler, &texts, &mut retries, at(0)).await.is_empty());
    }
    let log = std::fs::read_to_string(&path).expect("it was started");
    assert_eq!(log.lines().collect::<BTreeSet<_>>(), ["bad", "tcp", "udp"].into());
    assert_eq!(log.lines().count(), 3);
    assert_eq!(*known["bad"], Err(CompileError("no".to_owned())));
    assert_eq!(*known["tcp"], Ok(Vec::new()));

    compile(&mut known, &compiler, &texts(&["udp"]), &mut retries, at(0)).await;
    assert_eq!(known.keys().collect::<Vec<_>>(), ["udp"]);
    let _ = std::fs::remove_file(&path);
}

#[tokio::test]
async fn a_process_that_fails_is_retried_after_a_pause() {
    let (mut known, mut retries) = (Expressions::new(), Retries::default());
    let tcp = texts(&["tcp"]);
    let failing = Compiler::shell("exit 1");
    assert_eq!(compile(&mut known, &failing, &tcp, &mut retries, at(0)).await.len(), 1);
    assert!(known.is_empty() && retries.next(at(0)).is_some());
    let (compiler, path) = counting("again");
    assert!(compile(&mut known, &compiler, &tcp, &mut retries, at(0)).await.is_empty());
    assert!(known.is_empty(), "not yet");
    compile(&mut known, &compiler, &tcp, &mut retries, at(60)).await;
    assert!(known.contains_key("tcp"));
    let _ = std::fs::remove_file(&path);
}

#[test]
fn invalid_text_is_never_given_to_libpcap() {
    let long = "x".repeat(MAX_EXPRESSION + 1);
    for text in ["", " \n", "a\0b", "host müller", long.as_str()] {
        assert!(texts(&[text]).is_empty(), "{text:?}");
    }
    assert_eq!(texts(&["tcp\n\tport 80", &long[1..]]).len(), 2);
}
