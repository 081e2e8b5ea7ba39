//! Which tokens end a reply.

use alloc::vec::Vec;

use tandem_formats::Gguf;

use super::vocab::{TokenKind, special_id};

/// Texts of tokens that end a reply in the formats in use, those that llama.cpp counts as such. Files often
/// name only one of them in `eos_token_id`, and some give them the wrong type, so both are taken from the text.
const END_OF_GENERATION: [&[u8]; 22] = [
    b"<|eot_id|>",
    b"<|eom_id|>",
    b"<|im_end|>",
    END,
    RETURN,
    CALL,
    FLUSH,
    CALLS,
    b"<|endoftext|>",
    b"<|end_of_text|>",
    b"<end_of_turn>",
    b"<end_of_utterance>",
    b"<EOT>",
    b"_<EOT>",
    b"[EOT]",
    b"[EOS]",
    b"<eos>",
    b"<turn|>",
    TOOL_RESPONSE,
    b"[e~[",
    b"</s>",
    "<\u{FF5C}end\u{2581}of\u{2581}sentence\u{FF5C}>".as_bytes(),
];
/// What surrounds files and fills batches of code models: a reply does not go on behind it. A model has one
/// of each row, which the file names by the key or is found by its text.
const FILL_IN: [FillIn; 3] = [
    FillIn {
        key: "tokenizer.ggml.fim_pad_token_id",
        texts: &[
            b"<|fim_pad|>",
            b"<fim-pad>",
            b"<fim_pad>",
            b"<PAD>",
            b"[PAD]",
        ],
    },
    FillIn {
        key: "tokenizer.ggml.fim_rep_token_id",
        texts: &[
            b"<|fim_repo|>",
            b"<|repo_name|>",
            b"<fim-repo>",
            b"<REPO>",
            b"<reponame>",
        ],
    },
    FillIn {
        key: "tokenizer.ggml.fim_sep_token_id",
        texts: &[b"<|file_sep|>"],
    },
];

struct FillIn {
    key: &'static str,
    texts: &'static [&'static [u8]],
}

/// Texts of the harmony format that are part of a reply, whatever type the file gives them.
const HARMONY: [&[u8]; 4] = [
    b"<|channel|>",
    b"<|message|>",
    b"<|start|>",
    b"<|constrain|>",
];
const END: &[u8] = b"<|end|>";
const RETURN: &[u8] = b"<|return|>";
const CALL: &[u8] = b"<|call|>";
const CALLS: &[u8] = b"<|calls|>";
const FLUSH: &[u8] = b"<|flush|>";
const TOOL_RESPONSE: &[u8] = b"<|tool_response>";

/// The tokens that end a reply, sorted: those that the file names and those known by their texts, by the
/// rules of llama.cpp. Sets their kinds, where the file has others.
pub(super) fn end_of_generation<'t>(
    gguf: &Gguf<'_>,
    texts: impl Iterator<Item = &'t [u8]>,
    named: impl Iterator<Item = u32>,
    kinds: &mut [TokenKind],
) -> Vec<u32> {
    let mut found: Vec<u32> = named.collect();
    let mut fill_in = FILL_IN.map(|FillIn { key, .. }| special_id(gguf, key, kinds.len()));
    // Where these texts are, among those that end a reply.
    let [
        mut end,
        mut returns,
        mut calls,
        mut flush,
        mut tool_response,
        mut s,
    ] = [None; 6];
    for (id, text) in texts.enumerate() {
        let at = id as u32;
        for (place, FillIn { texts, .. }) in fill_in.iter_mut().zip(FILL_IN) {
            if texts.contains(&text) {
                place.get_or_insert(at);
                kinds[id] = TokenKind::Control;
            }
        }
        if HARMONY.contains(&text) {
            kinds[id] = TokenKind::UserDefined;
        }
        if !END_OF_GENERATION.contains(&text) {
            continue;
        }
        found.push(at);
        kinds[id] = TokenKind::Control;
        match text {
            END => end = Some(at),
            RETURN => returns = Some(at),
            CALL | CALLS => calls = Some(at),
            FLUSH => flush = Some(at),
            TOOL_RESPONSE => tool_response = Some(at),
            b"</s>" => s = Some(at),
            _ => {}
        }
    }
    found.extend(fill_in.into_iter().flatten());
    // In the harmony format, and in Solar's, a message ends by it, and the reply goes on.
    if let Some(end) = end.filter(|_| calls.is_some() && (returns.is_some() || flush.is_some())) {
        found.retain(|id| *id != end);
        kinds[end as usize] = TokenKind::UserDefined;
    }
    // Gemma 4 has a plain token of this text.
    if let Some(s) = s.filter(|_| tool_response.is_some()) {
        found.retain(|id| *id != s);
        kinds[s as usize] = TokenKind::Normal;
    }
    found.sort_unstable();
    found.dedup();
    found
}
