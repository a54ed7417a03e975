//! The in-process queue, and the kit itself: no rule without a test, no test without a rule.

use std::fs;
use std::path::Path;

use vidgen_core::conformance::queue::RULES;
use vidgen_core::memory::MemoryQueue;

vidgen_core::queue_conformance!(memory, |clock| async move { MemoryQueue::with_clock(clock) });

fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path)).unwrap()
}

#[test]
fn every_rule_that_is_written_is_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance/queue");
    let mut written = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let names = text.split("pub async fn ").skip(1).filter_map(|rest| rest.split('(').next());
        written.extend(names.map(str::to_owned));
    }
    let mut run = RULES.to_vec();
    run.sort_unstable();
    written.sort_unstable();
    assert_eq!(written, run);
}

#[test]
fn every_rule_of_the_contract_has_a_test_and_every_test_has_a_rule() {
    let contract = source("queue.rs");
    let mut numbers: Vec<u32> =
        contract.split("- **Q").skip(1).filter_map(|rest| rest.split("**").next()?.parse().ok()).collect();
    let mut tested: Vec<u32> =
        RULES.iter().filter_map(|rule| rule.strip_prefix('q')?.split('_').next()?.parse().ok()).collect();
    assert_eq!(tested.len(), RULES.len());
    numbers.sort_unstable();
    tested.sort_unstable();
    tested.dedup();
    assert_eq!(tested, numbers);
}
