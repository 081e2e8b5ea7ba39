//! The cutting of a text into the pieces within which byte-level BPE merges, by the name in
//! `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' own `tokenizer.json`, as collected in llama.cpp's
//! `llama-vocab.cpp`, in the order in which they are applied: each cuts the pieces that the ones
//! before it left, into its matches and what lies between them.
//!
//! They are written here without the look-ahead `\s+(?!\S)` of the originals, which only a
//! backtracking matcher could run: what it does, leaving the last of several spaces to the word
//! that follows, is done by `Stage::split`. So the time to cut a text is linear in its length
//! whatever the text is, and no match can fail for want of steps.

#[cfg(feature = "std")]
pub(super) use regexes::PreTokenizer;

/// Which of the known ways of cutting a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Default,
    Gpt2,
    Llama3,
    Dbrx,
    DeepseekLlm,
    DeepseekCoder,
    DeepseekV3,
    Falcon,
    Starcoder,
    Qwen2,
    Qwen35,
    Tekken,
    Gpt4o,
    Glm4,
    MiniCpm5,
    Bloom,
    Viking,
    SeedCoder,
    Bailing,
    UfakZeka,
    Laguna,
    ExaoneMoe,
    Spark,
    Youtu,
    SuperBpe,
    TinyAya,
}

impl Family {
    fn by_name(name: &str) -> Option<Family> {
        Some(match name {
            "" | "default" => Family::Default,
            "gpt-2" | "phi-2" | "olmo" | "mpt" | "jais" | "exaone4" | "gigachat" | "mellum"
            | "trillion" | "a.x-4.0" | "granite-docling" => Family::Gpt2,
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2"
            | "midm-2.0" => Family::Llama3,
            "dbrx" | "smaug-bpe" | "chatglm-bpe" => Family::Dbrx,
            "deepseek-llm" => Family::DeepseekLlm,
            "deepseek-coder" => Family::DeepseekCoder,
            "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => Family::DeepseekV3,
            "falcon" => Family::Falcon,
            "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone"
            | "minerva-7b" | "mellum2" => Family::Starcoder,
            "qwen2" | "stablelm2" | "deepseek-r1-qwen" | "megrez" | "hunyuan" | "kormo"
            | "f2llmv2" | "solar-open" | "grok-2" => Family::Qwen2,
            "qwen35" => Family::Qwen35,
            "tekken" => Family::Tekken,
            "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" => Family::Gpt4o,
            "glm4" | "glm5" => Family::Glm4,
            "minicpm5" => Family::MiniCpm5,
            "bloom" | "poro-chat" | "gpt3-finnish" => Family::Bloom,
            "viking" => Family::Viking,
            "seed-coder" => Family::SeedCoder,
            "bailingmoe" | "bailingmoe2" | "llada-moe" => Family::Bailing,
            "ufakzeka" => Family::UfakZeka,
            "laguna" => Family::Laguna,
            "exaone-moe" => Family::ExaoneMoe,
            "spark2_5" => Family::Spark,
            "youtu" => Family::Youtu,
            "superbpe" => Family::SuperBpe,
            "tiny_aya" | "cohere2moe" => Family::TinyAya,
            _ => return None,
        })
    }
}

/// Whether vocabularies of this pre-tokenizer begin texts with BOS where the file does not say.
pub(super) fn adds_bos(name: &str) -> bool {
    matches!(Family::by_name(name), Some(Family::Llama3 | Family::Tekken))
}

#[cfg(feature = "std")]
mod regexes {
    use std::boxed::Box;
    use std::string::ToString;
    use std::vec::Vec;

    use tokenizers::utils::SysRegex;

    use super::Family;
    use crate::tokenizer::TokenizerError;

    // `'s` and so on before letters with at most one character before them.
    const LLAMA3: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    );
    const QWEN2: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    );
    const QWEN35: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    );
    const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
    const TEKKEN: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    );
    const GPT4O: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    );
    const DEEPSEEK_V3: &str = concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+",
    );
    const MINICPM5: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+",
    );
    const SEED_CODER: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+",
    );
    const BAILING: &str = concat!(
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|",
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+",
    );
    // That of Qwen 2 without English contractions, as Turkish has apostrophes before its suffixes.
    const UFAK_ZEKA: &str =
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
    const EXAONE_MOE: &str = concat!(
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|",
        r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+",
    );
    const SPARK: &str = concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+",
    );
    const YOUTU: &str = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|",
        r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    );
    const YOUTU_ASIAN: &str = concat!(
        r"[\u{AC00}-\u{D7A3}\u{3131}-\u{318E}]+|",
        r"[\u{FF01}\u{2026}\u{201C}\u{201D}\u{2018}\u{2019}\u{2014}\u{FF1A}\u{FF1B}\u{FF0C}",
        r"\u{3001}-\u{303F}\u{FE30}-\u{FE4F}]+|[\u{3105}-\u{312F}]+|",
        r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
    );
    const BLOOM: &str = r" ?[^(\s|.,!?\u{2026}\u{3002}\u{FF0C}\u{3001}\u{964}\u{6D4}\u{60C})]+";
    /// Not an expression: digits in groups of three from the right, which takes a look ahead.
    const THREES: &str = "threes";
    /// The same, where no letter follows the digits.
    const THREES_OF_WORDS: &str = "threes of words";
    // Letters that have case, as far as the makers of DeepSeek LLM listed them.
    const DEEPSEEK_LETTERS: &str = concat!(
        r"\s?[A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}",
        r"\u{1C4}-\u{293}\u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}",
        r"\u{386}\u{388}-\u{38A}\u{38C}\u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}",
        r"\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\u{13A0}-\u{13F5}\u{13F8}-\u{13FD}",
        r"\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\u{1D6B}-\u{1D77}",
        r"\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}",
        r"\u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}",
        r"\u{1F80}-\u{1FB4}\u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}",
        r"\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}",
        r"\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\u{2119}-\u{211D}",
        r"\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\u{213C}-\u{213F}",
        r"\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}",
        r"\u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}",
        r"\u{A722}-\u{A76F}\u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}",
        r"\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}",
        r"\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\u{10C80}-\u{10CB2}",
        r"\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+",
    );
    const DEEPSEEK_PUNCTUATION: &str =
        r"\s?[!-/:-~\u{FF01}-\u{FF0F}\u{FF1A}-\u{FF5E}\u{2018}-\u{201F}\u{3000}-\u{3002}]+";
    const DEEPSEEK_CJK: &str = r"[\u{4E00}-\u{9FA5}\u{800}-\u{4E00}\u{AC00}-\u{D7FF}]+";

    impl Family {
        fn regexes(self) -> &'static [&'static str] {
            match self {
                Family::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
                Family::Gpt2 => &[GPT2],
                Family::Llama3 | Family::Dbrx => &[LLAMA3],
                Family::DeepseekLlm => &[
                    r"[\r\n]",
                    DEEPSEEK_LETTERS,
                    DEEPSEEK_PUNCTUATION,
                    r"\s+$",
                    DEEPSEEK_CJK,
                    r"\p{N}+",
                ],
                Family::DeepseekCoder => &[
                    r"[\r\n]",
                    r"\s?\p{L}+",
                    r"\s?\p{P}+",
                    DEEPSEEK_CJK,
                    r"\p{N}",
                ],
                Family::DeepseekV3 => &[
                    r"\p{N}{1,3}",
                    r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
                    DEEPSEEK_V3,
                ],
                Family::Falcon => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, r"[0-9][0-9][0-9]"],
                Family::Starcoder => &[r"\p{N}", GPT2],
                Family::Qwen2 => &[QWEN2],
                Family::Qwen35 => &[QWEN35],
                Family::Tekken => &[TEKKEN],
                Family::Gpt4o => &[GPT4O],
                Family::Glm4 => &[LLAMA3],
                Family::MiniCpm5 => &[r"\p{N}{1,3}", MINICPM5],
                Family::Bloom => &[BLOOM],
                Family::Viking => &[BLOOM, r"\p{N}"],
                Family::SeedCoder => &[SEED_CODER],
                Family::Bailing => &[BAILING],
                Family::UfakZeka => &[UFAK_ZEKA],
                Family::Laguna => &[r"[^\n]+|[\n]+", QWEN2],
                Family::ExaoneMoe => &[EXAONE_MOE],
                Family::Spark => &[
                    r"\p{N}{1,3}",
                    r"[\u{4E00}-\u{9FA5}\u{3040}-\u{309F}\u{30A0}-\u{30FF}]+",
                    SPARK,
                    r"\p{N}",
                ],
                Family::Youtu => &[YOUTU_ASIAN, YOUTU],
                Family::SuperBpe => &[r"\p{N}+", THREES],
                Family::TinyAya => &[THREES_OF_WORDS, GPT4O],
            }
        }
    }

    /// Cuts texts as one model's tokenizer does.
    pub(in crate::tokenizer) struct PreTokenizer {
        family: Family,
        stages: Vec<Stage>,
    }

    impl PreTokenizer {
        pub(in crate::tokenizer) fn by_name(name: &str) -> Result<PreTokenizer, TokenizerError> {
            let family = Self::family(name)?;
            let stages = family.regexes().iter().map(|regex| Stage::new(regex));
            let stages = stages.collect::<Result<_, _>>()?;
            Ok(PreTokenizer { family, stages })
        }

        /// Whether there is a pre-tokenizer of this name, without the cost of building it.
        pub(in crate::tokenizer) fn check_name(name: &str) -> Result<(), TokenizerError> {
            Self::family(name).map(|_| ())
        }

        fn family(name: &str) -> Result<Family, TokenizerError> {
            Family::by_name(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
                name: name.to_string(),
            })
        }

        /// Whether a piece that is a token as it stands is taken without merging.
        pub(in crate::tokenizer) fn ignores_merges(&self) -> bool {
            let family = self.family;
            let whole_first = matches!(family, Family::Llama3 | Family::Tekken);
            whole_first || matches!(family, Family::Glm4 | Family::MiniCpm5 | Family::Youtu)
        }

        /// The pieces of a text, in order. None is empty, and joined they are the text.
        pub(in crate::tokenizer) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
            let mut pieces = Vec::new();
            if !text.is_empty() {
                pieces.push(text);
            }
            for stage in &self.stages {
                let mut cut = Vec::with_capacity(pieces.len());
                for piece in pieces {
                    stage.split(piece, &mut cut);
                }
                pieces = cut;
            }
            pieces
        }
    }

    /// One cut of all pieces.
    enum Stage {
        Regex(Box<Expression>),
        /// Digits in groups of three from the right; none where a letter follows them, if `of_words`.
        Threes {
            of_words: bool,
        },
    }

    struct Expression {
        regex: SysRegex,
        /// The expression ended in `\s+(?!\S)`.
        leaves_last_space: bool,
        /// It has `\s*[\r\n]+` before that, which has no look-ahead and takes every run of white
        /// space up to its last line end.
        newlines_apart: bool,
    }

    impl Stage {
        fn new(regex: &str) -> Result<Stage, TokenizerError> {
            Ok(match regex {
                THREES => Stage::Threes { of_words: false },
                THREES_OF_WORDS => Stage::Threes { of_words: true },
                _ => Stage::Regex(Box::new(Expression::new(regex)?)),
            })
        }

        fn split<'t>(&self, piece: &'t str, out: &mut Vec<&'t str>) {
            match self {
                Stage::Regex(expression) => expression.split(piece, out),
                Stage::Threes { of_words } => threes(piece, *of_words, out),
            }
        }
    }

    /// Cuts digits into groups of three from the right.
    fn threes<'t>(piece: &'t str, of_words: bool, out: &mut Vec<&'t str>) {
        let mut rest = piece;
        while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
            let digits = &rest[start..];
            let n = digits.find(|c: char| !c.is_ascii_digit());
            let (digits, after) = digits.split_at(n.unwrap_or(digits.len()));
            let in_word = after.starts_with(|c: char| c == '_' || c.is_alphanumeric());
            if of_words && in_word {
                // They stay with what is around them.
                let end = start + digits.len();
                let next = after.find(|c: char| c.is_ascii_digit());
                let end = next.map_or(rest.len(), |next| end + next);
                out.push(&rest[..end]);
                rest = &rest[end..];
                continue;
            }
            if start > 0 {
                out.push(&rest[..start]);
            }
            let (first, others) = digits.split_at(digits.len() % 3);
            if !first.is_empty() {
                out.push(first);
            }
            out.extend((0..others.len()).step_by(3).map(|at| &others[at..at + 3]));
            rest = after;
        }
        if !rest.is_empty() {
            out.push(rest);
        }
    }

    impl Expression {
        fn new(regex: &str) -> Result<Expression, TokenizerError> {
            Ok(Expression {
                regex: SysRegex::new(regex).map_err(|e| TokenizerError::Regex {
                    message: e.to_string(),
                })?,
                leaves_last_space: regex.ends_with(r"|\s+"),
                newlines_apart: regex.contains(r"|\s*[\r\n]+|") || regex.contains(r"|\s*[\r\n]|"),
            })
        }

        fn split<'t>(&self, piece: &'t str, out: &mut Vec<&'t str>) {
            let mut rest = piece;
            while !rest.is_empty() {
                // No expression looks behind, so searching from the last match on is the same as
                // going on in the whole piece.
                let found = self.regex.find_iter(rest).next();
                let Some((start, end)) = found.filter(|(start, end)| start < end) else {
                    out.push(rest);
                    return;
                };
                if start > 0 {
                    out.push(&rest[..start]);
                }
                let end = start + self.kept(&rest[start..end], end == rest.len());
                out.push(&rest[start..end]);
                rest = &rest[end..];
            }
        }

        /// How much of a match `\s+(?!\S)|\s+` would have left: of white space before a word all
        /// but the last character, if there are several.
        fn kept(&self, matched: &str, at_end: bool) -> usize {
            let by_newline = self.newlines_apart && matched.ends_with(['\r', '\n']);
            if self.leaves_last_space
                && !at_end
                && !by_newline
                && matched.chars().all(char::is_whitespace)
                && let Some((last, _)) = matched.char_indices().next_back()
                && last > 0
            {
                return last;
            }
            matched.len()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn split<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
            PreTokenizer::by_name(name).unwrap().split(text)
        }

        #[test]
        fn the_last_space_goes_to_the_word() {
            assert_eq!(split("gpt-2", "a   b"), ["a", "  ", " b"]);
            assert_eq!(split("gpt-2", "a\n\nb \n"), ["a", "\n", "\n", "b", " \n"]);
            assert_eq!(
                split("gpt-2", "\u{3000}\u{3000}x"),
                ["\u{3000}", "\u{3000}", "x"]
            );
            assert_eq!(
                split("llama3", "a \n\n  b\t\tc"),
                ["a", " \n\n", " ", " b", "\t", "\tc"]
            );
            assert_eq!(split("llama3", "1234 5  "), ["123", "4", " ", "5", "  "]);
            assert_eq!(split("qwen2", "12  3"), ["1", "2", " ", " ", "3"]);
        }

        #[test]
        fn contractions_and_cases() {
            assert_eq!(split("gpt-2", "I'll 'LL"), ["I", "'ll", " '", "LL"]);
            assert_eq!(split("llama3", "I'll'LL"), ["I", "'ll", "'LL"]);
            assert_eq!(
                split("tekken", "helloWorld \u{C9}t\u{E9}"),
                ["hello", "World", " \u{C9}t\u{E9}"]
            );
            assert_eq!(split("gpt-4o", "ABCdef's"), ["ABCdef's"]);
            assert_eq!(split("starcoder", "x 12"), ["x", " ", "1", "2"]);
            assert_eq!(split("deepseek-llm", "ab 12  "), ["ab", " ", "12", "  "]);
            assert_eq!(
                split("viking", "ab, c12 (d)"),
                ["ab", ",", " c", "1", "2", " (", "d", ")"]
            );
            assert_eq!(split("minicpm5", "ab 1234"), ["ab", " ", "123", "4"]);
            assert_eq!(split("ufakzeka", "Ali'nin"), ["Ali", "'nin"]);
            assert_eq!(split("seed-coder", "a!\nb"), ["a", "!", "\n", "b"]);
            assert_eq!(split("bailingmoe", "a \n\n b"), ["a", " \n\n", " b"]);
            assert_eq!(split("laguna", "a\n\nb"), ["a", "\n\n", "b"]);
            assert_eq!(
                split("superbpe", "a 1234567b"),
                ["a ", "1", "234", "567", "b"]
            );
            assert_eq!(
                split("tiny_aya", "12345 1234"),
                ["12", "345", " ", "1", "234"]
            );
            assert_eq!(split("tiny_aya", "1234a"), ["123", "4", "a"]);
        }

        #[test]
        fn every_name_cuts_without_loss_and_unknown_ones_are_named() {
            let text = " \t x\r\n\n 12345'S \u{1F680}\u{4E2D}\u{6587}  \u{A0}y.z!?  ";
            for name in [
                "default",
                "gpt-2",
                "llama-bpe",
                "dbrx",
                "deepseek-llm",
                "deepseek-coder",
                "deepseek-v3",
                "falcon",
                "starcoder",
                "qwen2",
                "qwen35",
                "tekken",
                "gpt-4o",
                "glm4",
                "minicpm5",
                "bloom",
                "viking",
                "seed-coder",
                "bailingmoe",
                "ufakzeka",
                "laguna",
                "exaone-moe",
                "spark2_5",
                "youtu",
                "superbpe",
                "tiny_aya",
            ] {
                let pieces = split(name, text);
                assert_eq!(pieces.concat(), text, "{name}");
                assert!(pieces.iter().all(|p| !p.is_empty()), "{name}");
                assert!(split(name, "").is_empty());
            }
            let error = PreTokenizer::by_name("new\nthing").err();
            assert_eq!(
                error.map(|e| e.to_string()).as_deref(),
                Some(r#"tokenizer.ggml.pre is "new\nthing", an unknown pre-tokenizer"#)
            );
        }

        #[test]
        fn a_long_run_takes_linear_time() {
            let mut text = " ".repeat(1 << 20);
            text.push('x');
            for name in ["gpt-2", "llama3", "deepseek-llm", "falcon"] {
                assert_eq!(split(name, &text).concat(), text);
            }
        }
    }
}
