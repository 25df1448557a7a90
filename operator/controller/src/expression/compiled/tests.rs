use k8s_openapi::jiff::SignedDuration;
use podtap_model::bounds::MAX_EXPRESSION;

use super::*;
use crate::fixtures::at;

fn texts(list: &[&str]) -> Texts {
    compilable(list.iter().map(|text| ("shop", *text)))
}

/// Compiles until nothing is being compiled.
async fn compile_all(
    expressions: &mut Compilations,
    compiler: &Compiler,
    texts: &Texts,
    retries: &mut Retries,
    now: Timestamp,
) -> Vec<Error> {
    let mut errors = expressions.compile(compiler, texts, retries, now).await;
    while expressions.processes.running() > 0 {
        errors.extend(expressions.compile(compiler, texts, retries, now).await);
    }
    errors
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
    let (mut expressions, mut retries) = (Compilations::default(), Retries::default());
    for _ in 0..2 {
        let texts = texts(&["tcp", "udp", "tcp", "bad"]);
        assert!(compile_all(&mut expressions, &compiler, &texts, &mut retries, at(0)).await.is_empty());
    }
    let log = std::fs::read_to_string(&path).expect("it was started");
    assert_eq!(log.lines().collect::<BTreeSet<_>>(), ["bad", "tcp", "udp"].into());
    assert_eq!(log.lines().count(), 3);
    assert_eq!(*expressions.known()["bad"], Err(CompileError("no".to_owned())));
    assert_eq!(*expressions.known()["tcp"], Ok(Vec::new()));

    compile_all(&mut expressions, &compiler, &texts(&["udp"]), &mut retries, at(0)).await;
    assert_eq!(expressions.known().keys().collect::<Vec<_>>(), ["udp"]);
    let _ = std::fs::remove_file(&path);
}

#[tokio::test]
async fn a_process_that_fails_is_retried_after_a_pause() {
    let (mut expressions, mut retries) = (Compilations::default(), Retries::default());
    let tcp = texts(&["tcp"]);
    let failing = Compiler::shell("exit 1");
    let now = Timestamp::now();
    assert_eq!(compile_all(&mut expressions, &failing, &tcp, &mut retries, now).await.len(), 1);
    assert!(expressions.known().is_empty() && retries.next(now).is_some());
    let (compiler, path) = counting("again");
    assert!(compile_all(&mut expressions, &compiler, &tcp, &mut retries, now).await.is_empty());
    assert!(expressions.known().is_empty(), "not yet");
    let later = now + SignedDuration::from_secs(60);
    compile_all(&mut expressions, &compiler, &tcp, &mut retries, later).await;
    assert!(expressions.known().contains_key("tcp"));
    let _ = std::fs::remove_file(&path);
}

/// One namespace has two hundred expressions, another one has a single one, and each takes longer than a reconcile waits.
#[tokio::test]
async fn no_namespace_holds_up_another_one() {
    let many: Vec<String> = (0..200).map(|port| format!("tcp port {port}")).collect();
    let many = many.iter().map(|text| ("many", text.as_str()));
    let texts = compilable(many.chain([("one", "udp")]));
    let (mut expressions, mut retries) = (Compilations::default(), Retries::default());
    let slow = Compiler::shell(r#"read -r text; sleep 0.7; echo '{"program": []}'"#);
    let mut reconciles = 0;
    while !expressions.known().contains_key("udp") {
        reconciles += 1;
        assert!(expressions.compile(&slow, &texts, &mut retries, at(0)).await.is_empty());
    }
    assert!(reconciles <= 6, "{reconciles}");
    assert!(expressions.known().len() <= 2 * CONCURRENCY, "{}", expressions.known().len());
}

#[test]
fn invalid_text_is_never_given_to_libpcap() {
    let long = "x".repeat(MAX_EXPRESSION + 1);
    for text in ["", " \n", "a\0b", "host müller", long.as_str()] {
        assert!(texts(&[text]).is_empty(), "{text:?}");
    }
    assert_eq!(texts(&["tcp\n\tport 80", &long[1..]]).values().flatten().count(), 2);
}
