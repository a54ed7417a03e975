//! A remote's own words, as far as they do not repeat ours.

use serde_json::Value;

/// Text that has so many characters in common with what we sent repeats it.
const PIECE: usize = 12;
/// Shorter strings (`1`, `mp`) mean nothing.
const WORD: usize = 3;
/// Longer ones are files; a remote that quotes those says nothing else.
const FILE: usize = 64 * 1024;
/// More of a reason is never shown.
const MAX_REASON: usize = 200;

/// Whatever of `reason` may be shown, if anything: values that were `sent` are left out of it, and
/// where it repeats a longer piece of one, there is nothing that may be shown. Remotes like to
/// quote the prompt that they refuse.
pub(crate) fn quotable<'a>(reason: &str, sent: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let original: String = reason.trim().chars().take(MAX_REASON).collect();
    let mut text = original.to_lowercase();
    // Where lower case has other lengths, places in the one are not places in the other.
    let alike = |c: char| c.to_lowercase().map(char::len_utf8).sum::<usize>() == c.len_utf8();
    let mut shown = if original.chars().all(alike) { original } else { text.clone() };
    let word = |s: &&str| s.len() < FILE && s.chars().count() >= WORD;
    let sent: Vec<String> = sent.into_iter().filter(word).map(str::to_lowercase).collect();
    for value in &sent {
        while let Some(at) = text.find(value.as_str()) {
            let range = at..at + value.len();
            shown.get(range.clone())?;
            text.replace_range(range.clone(), "…");
            shown.replace_range(range, "…");
        }
    }
    let characters: Vec<char> = text.chars().collect();
    let repeats = |piece: &[char]| {
        let piece: String = piece.iter().collect();
        sent.iter().any(|value| value.contains(&piece))
    };
    if characters.windows(PIECE).any(repeats) {
        return None;
    }
    Some(shown).filter(|text| text.chars().any(char::is_alphanumeric))
}

/// Every string in `value`, at any depth.
pub(crate) fn strings(value: &Value, all: &mut Vec<String>) {
    match value {
        Value::String(text) => all.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, all)),
        Value::Object(map) => map.values().for_each(|item| strings(item, all)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_sent_is_not_quoted_back() {
        let prompt = "A fox in the snow, at dawn";
        let sent = [prompt, "16:9", "ab"];
        let quoted = |reason: &str| quotable(reason, sent);
        assert_eq!(quoted("Insufficient credit").as_deref(), Some("Insufficient credit"));
        assert_eq!(quoted("aspect_ratio must not be 16:9").as_deref(), Some("aspect_ratio must not be …"));
        assert_eq!(quoted("\"a FOX in the snow, at dawn\" was flagged").as_deref(), Some("\"…\" was flagged"));
        assert_eq!(quoted("prompt 'A fox in the sn…' was flagged"), None);
        assert_eq!(quoted("16:9"), None);
        assert_eq!(quoted("  "), None);
    }

    #[test]
    fn strings_of_any_script_are_cut_and_masked_without_a_panic() {
        let sent = ["İstanbul", "ßß", "日本語の長いプロンプトです"];
        for reason in ["İİİ İSTANBUL ẞẞ", "「日本語の長いプロンプトです」は不可", "K İstanbul"]
        {
            if let Some(text) = quotable(reason, sent) {
                assert!(!text.to_lowercase().contains("istanbul") && !text.contains("日本語の長い"), "{text}");
            }
        }
    }
}
