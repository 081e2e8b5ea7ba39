//! What an answer must look like: JSON of a schema, a text of a regular expression.
//!
//! A [`Grammar`] is made by [`Model::grammars`]; its [`Constraint`] holds one answer to it, token by token.
//!
//! ```no_run
//! use tandem_engine::{Model, Sampling};
//!
//! let model = Model::open("model.gguf")?;
//! let grammar = model.grammars()?.json_schema(r#"{"type": "object", "properties": {"on": {"type": "boolean"}}}"#)?;
//! let mut session = model.session().build()?;
//! let sampling = Sampling::default();
//! let mut answer = session.generate("Turn the light on.", &sampling)?;
//! answer.set_filter(Box::new(grammar.constraint()));
//! for piece in answer {
//!     print!("{}", piece?);
//! }
//! # Ok::<(), tandem_engine::Error>(())
//! ```
//!
//! The grammars are those of the library llguidance: what of JSON Schema it cannot enforce, it refuses by name.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use std::sync::Mutex;

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::tokenizer::{ControlTokens, TokenKind, Tokenizer, TokenizerError};
use crate::{Model, TokenFilter, free_memory};

/// The longest schema or regular expression, in bytes.
const MAX_BYTES: usize = 256 << 10;
/// Where less memory is free than this, the vocabulary is prepared in the form that takes less of it.
const LITTLE_MEMORY: usize = 1 << 30;
/// Grammars that are kept, as clients ask for the same again and again.
const MAX_KEPT: usize = 8;
/// The most levels of a schema, its references followed.
const MAX_LEVELS: usize = 1500;
/// The stack on which a grammar is made, in bytes: llguidance goes as deep as the schema does, some 4 KB a level, and
/// the caller's stack may be small.
const MAKING_STACK: usize = MAX_LEVELS * (16 << 10);
/// The most characters of a reason.
const MAX_REASON: usize = 500;

/// What a schema has as `x-guidance` to allow a space after commas and colons, and no other white space: small models
/// fall into endless space where any is allowed.
pub const JSON_SPACING: &str =
    r#"{"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"}"#;

/// Why answers cannot be held to a form.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GrammarError {
    /// It is not valid, or has parts that cannot be enforced.
    Invalid(String),
    /// It is too much.
    TooComplex(String),
    /// The vocabulary cannot be prepared for it.
    Vocabulary(String),
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GrammarError::Invalid(reason) => write!(f, "the form cannot be enforced: {reason}"),
            GrammarError::TooComplex(reason) => write!(f, "the form is too complex: {reason}"),
            GrammarError::Vocabulary(reason) => {
                write!(
                    f,
                    "answers of this vocabulary cannot be held to a form: {reason}"
                )
            }
        }
    }
}

impl core::error::Error for GrammarError {}

/// Makes grammars for the vocabulary of a model, see [`Model::grammars`].
pub struct Grammars {
    factory: ParserFactory,
    /// Those that were asked for last, the latest at the end.
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    /// Of the kind and the text.
    hash: blake3::Hash,
    grammar: Grammar,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    pub(crate) fn new(model: &Model) -> Result<Grammars, GrammarError> {
        let unusable = |error: &dyn fmt::Display| GrammarError::Vocabulary(error.to_string());
        let tokenizer = model.tokenizer().map_err(|error| unusable(&error))?;
        let env = token_env(tokenizer).map_err(|error| unusable(&error))?;
        let is_short = free_memory().is_some_and(|free| free < LITTLE_MEMORY);
        let slices = match is_short {
            true => Vec::new(),
            false => SlicedBiasComputer::general_slices(),
        };
        let capabilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(&env, capabilities, &slices);
        let mut factory = factory.map_err(|error| unusable(&error))?;
        factory.quiet();
        Ok(Grammars {
            factory,
            kept: Mutex::default(),
        })
    }

    /// The grammar of the JSON values that a schema allows, which is JSON itself.
    ///
    /// # Errors
    ///
    /// What is no schema, has keywords that cannot be enforced, or is too complex.
    pub fn json_schema(&self, schema: &str) -> Result<Grammar, GrammarError> {
        check_size(schema)?;
        self.kept_or(b's', schema, || {
            let schema: Value = serde_json::from_str(schema)
                .map_err(|error| GrammarError::Invalid(format!("it is no JSON: {error}")))?;
            let mut schema = match schema {
                Value::Bool(true) => json!({}),
                Value::Bool(false) => json!({"not": {}}),
                Value::Object(_) => schema,
                _ => return Err(GrammarError::Invalid("an object is wanted".to_string())),
            };
            check_levels(&schema)?;
            schema["x-guidance"] = serde_json::from_str(JSON_SPACING).unwrap_or_default();
            Ok(TopLevelGrammar::from_json_schema(schema))
        })
    }

    /// The grammar of the texts that a regular expression allows, from beginning to end.
    ///
    /// # Errors
    ///
    /// What is no regular expression, looks around or back, or is too complex.
    pub fn regex(&self, regex: &str) -> Result<Grammar, GrammarError> {
        check_size(regex)?;
        self.kept_or(b'r', regex, || Ok(TopLevelGrammar::from_regex(regex)))
    }

    /// A grammar as llguidance's dialect of Lark writes it.
    ///
    /// # Errors
    ///
    /// What is no such grammar, or is too complex.
    pub fn lark(&self, lark: &str) -> Result<Grammar, GrammarError> {
        check_size(lark)?;
        self.kept_or(b'l', lark, || {
            for (at, mark) in lark.match_indices("%json") {
                let rest = &lark[at + mark.len()..];
                let mut schemas = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
                if let Some(Ok(schema)) = schemas.next() {
                    check_levels(&schema)?;
                }
            }
            Ok(TopLevelGrammar::from_lark(lark.to_string()))
        })
    }

    /// The grammar of this kind and text: one that is kept, else one that is made and kept.
    fn kept_or(
        &self,
        kind: u8,
        text: &str,
        read: impl FnOnce() -> Result<TopLevelGrammar, GrammarError> + Send,
    ) -> Result<Grammar, GrammarError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&[kind]).update(text.as_bytes());
        let hash = hasher.finalize();
        if let Some(grammar) = self.find(hash) {
            return Ok(grammar);
        }
        let grammar = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(MAKING_STACK);
            let making = thread.spawn_scoped(scope, || self.make(read()?));
            let making = making.map_err(|error| {
                GrammarError::TooComplex(format!("no thread to make it on: {error}"))
            })?;
            let broken = |_| GrammarError::Invalid("the library failed on it".to_string());
            making.join().map_err(broken)?
        })?;
        if let Ok(mut kept) = self.kept.lock() {
            if kept.len() == MAX_KEPT {
                kept.remove(0);
            }
            let grammar = grammar.clone();
            kept.push(Kept { hash, grammar });
        }
        Ok(grammar)
    }

    fn make(&self, grammar: TopLevelGrammar) -> Result<Grammar, GrammarError> {
        let clipped =
            |error: &dyn fmt::Display| error.to_string().chars().take(MAX_REASON).collect();
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|error| GrammarError::Invalid(clipped(&error)))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What is too much shows at the first token as a rule: it is better told before the answer begins.
        if let Err(error) = matcher.compute_mask_or_eos() {
            return Err(GrammarError::TooComplex(clipped(&error)));
        }
        Ok(Grammar(Arc::new(matcher)))
    }

    /// One that is kept, which is the latest from now on.
    fn find(&self, hash: blake3::Hash) -> Option<Grammar> {
        let mut kept = self.kept.lock().ok()?;
        let at = kept.iter().position(|kept| kept.hash == hash)?;
        let found = kept.remove(at);
        let grammar = found.grammar.clone();
        kept.push(found);
        Some(grammar)
    }
}

fn check_size(text: &str) -> Result<(), GrammarError> {
    match text.len() {
        n if n > MAX_BYTES => {
            let reason = format!("it has {n} bytes, {MAX_BYTES} at most are taken");
            Err(GrammarError::TooComplex(reason))
        }
        _ => Ok(()),
    }
}

/// llguidance follows a reference where it first meets it, in the middle of all that refers to it: the stack holds each
/// of them once at most.
fn check_levels(schema: &Value) -> Result<(), GrammarError> {
    let of_all = levels(schema);
    let mut references = BTreeSet::new();
    find_references(schema, &mut references);
    let mut n = of_all;
    for reference in references {
        // As llguidance looks for it, which takes nothing in a name for anything else.
        let path = reference.strip_prefix("#/");
        let target = path.and_then(|path| path.split('/').try_fold(schema, part));
        n += target.map_or(of_all, levels);
        if n > MAX_LEVELS {
            let reason = format!("its references can lead through more than {MAX_LEVELS} levels");
            return Err(GrammarError::TooComplex(reason));
        }
    }
    Ok(())
}

/// What has this name, or this number, in a value.
fn part<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    match value {
        Value::Array(array) => array.get(name.parse::<usize>().ok()?),
        value => value.get(name),
    }
}

/// How deep a value is. Values are read 127 deep at most.
fn levels(value: &Value) -> usize {
    let of_parts = match value {
        Value::Object(object) => object.values().map(levels).max(),
        Value::Array(array) => array.iter().map(levels).max(),
        _ => None,
    };
    1 + of_parts.unwrap_or(0)
}

fn find_references<'a>(value: &'a Value, references: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(target) if key == "$ref" => {
                        references.insert(target);
                    }
                    value => find_references(value, references),
                }
            }
        }
        Value::Array(array) => {
            for value in array {
                find_references(value, references);
            }
        }
        _ => {}
    }
}

/// A compiled grammar, not yet begun. A copy is cheap.
#[derive(Clone)]
pub struct Grammar(Arc<Matcher>);

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").finish_non_exhaustive()
    }
}

impl Grammar {
    /// What holds one answer to it.
    pub fn constraint(&self) -> Constraint {
        Framed::alone(self.clone()).constraint()
    }

    fn begin(&self) -> Matcher {
        self.0.deep_clone()
    }
}

/// A grammar, with tokens that stand before and after it.
#[derive(Clone, Debug)]
pub struct Framed {
    /// Before it.
    pub begin: Vec<u32>,
    /// What comes between.
    pub grammar: Grammar,
    /// After it.
    pub end: Vec<u32>,
}

impl Framed {
    /// A grammar alone.
    pub fn alone(grammar: Grammar) -> Framed {
        Framed {
            begin: Vec::new(),
            grammar,
            end: Vec::new(),
        }
    }

    /// What holds an answer to it.
    pub fn constraint(&self) -> Constraint {
        self.steps(self.grammar.begin(), &self.begin)
    }

    /// What holds the rest of an answer to it that has this text of the grammar already; `None` where that is no
    /// beginning of it.
    pub fn go_on_from(&self, text: &str) -> Option<Constraint> {
        if text.is_empty() {
            return Some(self.constraint());
        }
        let mut matcher = self.grammar.begin();
        let env = matcher.tok_env().ok()?;
        let tokens = env.tokenize_bytes(text.as_bytes());
        matcher.consume_tokens(&tokens).ok()?;
        Some(self.steps(matcher, &[]))
    }

    fn steps(&self, matcher: Matcher, begin: &[u32]) -> Constraint {
        let steps = [
            Step::Tokens(begin.iter().copied().collect()),
            Step::Grammar(Box::new(matcher)),
            Step::Tokens(self.end.iter().copied().collect()),
        ];
        Constraint {
            steps: steps.into(),
        }
    }
}

/// The vocabulary as the grammars want it: the bytes of each token, those of control tokens marked.
fn token_env(tokenizer: &Tokenizer) -> Result<TokEnv, TokenizerError> {
    let vocab = tokenizer.vocab();
    let ids = 0..vocab.n_tokens() as u32;
    let words = ids.map(|id| {
        let bytes = vocab.token_bytes(id, ControlTokens::Show)?;
        let is_text = matches!(
            vocab.kind(id),
            Some(TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte)
        );
        Ok(match is_text && !vocab.is_end_of_generation(id) {
            true => bytes,
            false => [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat(),
        })
    });
    let words = words.collect::<Result<Vec<_>, TokenizerError>>()?;
    let end = (0..words.len() as u32).find(|id| vocab.is_end_of_generation(*id));
    let info = TokRxInfo {
        vocab_size: words.len() as u32,
        tok_eos: vocab.eot().or(vocab.eos()).or(end).unwrap_or(0),
        tok_bos: vocab.bos(),
        tok_pad: None,
        tok_unk: None,
        tok_end_of_turn: None,
    };
    Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(
        &info, &words,
    ))))
}

/// What the rest of an answer must be: one step after the other, then it is over.
pub struct Constraint {
    steps: VecDeque<Step>,
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

enum Step {
    /// These tokens.
    Tokens(VecDeque<u32>),
    /// A text of a grammar.
    Grammar(Box<Matcher>),
}

impl TokenFilter for Constraint {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<bool, String> {
        while let Some(step) = self.steps.front_mut() {
            match step {
                Step::Tokens(tokens) => {
                    if let Some(token) = tokens.front() {
                        let place = *token as usize;
                        let kept = logits.get(place).copied().unwrap_or(0.0);
                        logits.fill(f32::NEG_INFINITY);
                        if let Some(logit) = logits.get_mut(place) {
                            *logit = if kept.is_finite() { kept } else { 0.0 };
                        }
                        return Ok(true);
                    }
                }
                Step::Grammar(matcher) => {
                    if !matcher.is_stopped() {
                        let mask = matcher.compute_mask_or_eos();
                        let mask = mask.map_err(|error| error.to_string())?;
                        let end = matcher.tok_env().map_err(|error| error.to_string())?;
                        let end = end.tok_trie().eos_token();
                        if mask.num_set() > usize::from(mask.is_allowed(end)) {
                            for (id, logit) in logits.iter_mut().enumerate() {
                                if id >= mask.len() || !mask.get(id) {
                                    *logit = f32::NEG_INFINITY;
                                }
                            }
                            return Ok(true);
                        }
                    }
                }
            }
            self.steps.pop_front();
        }
        Ok(false)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        match self.steps.front_mut() {
            None => Ok(()),
            Some(Step::Tokens(tokens)) => {
                tokens.pop_front();
                Ok(())
            }
            Some(Step::Grammar(matcher)) => {
                let taken = matcher.consume_token(token);
                taken.map_err(|error| error.to_string())
            }
        }
    }
}
