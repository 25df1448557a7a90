use serde_json::json;

use super::*;
use crate::{fixtures::{at, object, tap, World}};

fn world(texts: &[&str]) -> World {
    let tap = |(index, text): (usize, &&str)| {
        let mut tap = tap(&format!("t{index}"), json!([{"node": {"name": "n2"}}]));
        tap.spec.filter = Some(object(json!({"expression": text})));
        tap
    };
    World { taps: texts.iter().enumerate().map(tap).collect(), ..World::small() }
}

/// Says how often it was started, by a file.
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
        let snapshot = world(&["tcp", "udp", "tcp", "bad"]).snapshot();
        assert!(compile_new(&mut known, &compiler, &snapshot, &mut retries).await.is_empty());
    }
    let asked = std::fs::read_to_string(&path).expect("it was started");
    assert_eq!(asked.lines().collect::<BTreeSet<_>>(), ["bad", "tcp", "udp"].into());
    assert_eq!(asked.lines().count(), 3);
    assert_eq!(*known["bad"], Err("no".to_owned()));
    assert_eq!(*known["tcp"], Ok(Vec::new()));

    compile_new(&mut known, &compiler, &world(&["udp"]).snapshot(), &mut retries).await;
    assert_eq!(known.keys().collect::<Vec<_>>(), ["udp"]);
    let _ = std::fs::remove_file(&path);
}

#[tokio::test]
async fn a_process_that_fails_is_tried_again_after_a_pause() {
    let (mut known, mut retries) = (Expressions::new(), Retries::default());
    let mut world = world(&["tcp"]);
    let failing = Compiler::shell("exit 1");
    assert_eq!(compile_new(&mut known, &failing, &world.snapshot(), &mut retries).await.len(), 1);
    assert!(known.is_empty() && retries.next(at(0)).is_some());
    let (compiler, path) = counting("again");
    assert!(compile_new(&mut known, &compiler, &world.snapshot(), &mut retries).await.is_empty());
    assert!(known.is_empty(), "not yet");
    world.seconds = 60;
    compile_new(&mut known, &compiler, &world.snapshot(), &mut retries).await;
    assert!(known.contains_key("tcp"));
    let _ = std::fs::remove_file(&path);
}

#[test]
fn what_is_no_text_is_never_given_to_libpcap() {
    let long = "x".repeat(LONGEST + 1);
    for text in ["", " \n", "a\0b", "host müller", long.as_str()] {
        assert!(!is_text(text), "{text:?}");
        assert!(wanted(&world(&[text]).snapshot()).is_empty());
    }
    assert!(is_text("tcp\n\tport 80") && is_text(&long[1..]));
}
