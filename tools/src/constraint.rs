//! What an answer must look like: JSON of a schema, calls of tools.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions, TokenKind, TokenizerError};
use tandem_engine::{Model, TokenFilter};

/// The longest schema, in bytes of JSON.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Where less memory is free than this, the vocabulary is prepared in the form that takes less of it.
const LITTLE_MEMORY: usize = 1 << 30;

/// Why answers cannot be held to a form.
#[derive(Debug)]
pub(crate) enum GrammarError {
    /// It is not valid, or has parts that cannot be enforced.
    Invalid(String),
    /// It is too much.
    TooComplex(String),
    /// The vocabulary cannot be prepared for it.
    Vocabulary(String),
}

impl std::fmt::Display for GrammarError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GrammarError::Invalid(reason) => write!(f, "cannot be enforced: {reason}"),
            GrammarError::TooComplex(reason) => write!(f, "is too complex: {reason}"),
            GrammarError::Vocabulary(reason) => {
                write!(f, "cannot be used with this vocabulary: {reason}")
            }
        }
    }
}

impl std::error::Error for GrammarError {}

/// Makes constraints for the vocabulary of a model. What that takes is made when it is first needed.
pub(crate) struct Grammars {
    model: Model,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    pub(crate) fn new(model: &Model) -> Grammars {
        Grammars {
            model: model.clone(),
            factory: OnceLock::new(),
        }
    }

    fn factory(&self) -> Result<&ParserFactory, GrammarError> {
        let factory = self.factory.get_or_init(|| {
            let env = token_env(&self.model).map_err(|error| error.to_string())?;
            let is_short = tandem_engine::free_memory().is_some_and(|free| free < LITTLE_MEMORY);
            let slices = match is_short {
                true => Vec::new(),
                false => SlicedBiasComputer::general_slices(),
            };
            let capabilities = InferenceCapabilities::default();
            let mut factory = ParserFactory::new(&env, capabilities, &slices)
                .map_err(|error| error.to_string())?;
            factory.quiet();
            Ok(factory)
        });
        let failed = |error: &String| GrammarError::Vocabulary(error.clone());
        factory.as_ref().map_err(failed)
    }

    /// A grammar of the JSON values that `schema` allows.
    pub(crate) fn schema(&self, schema: &Value) -> Result<Grammar, GrammarError> {
        let n_bytes = schema.to_string().len();
        if n_bytes > MAX_SCHEMA_BYTES {
            let reason = format!("it has {n_bytes} bytes, {MAX_SCHEMA_BYTES} at most are taken");
            return Err(GrammarError::TooComplex(reason));
        }
        let mut schema = match schema {
            Value::Bool(true) => json!({}),
            Value::Bool(false) => json!({"not": {}}),
            Value::Object(_) => schema.clone(),
            _ => return Err(GrammarError::Invalid("an object is wanted".to_string())),
        };
        // Small models fall into endless white space where any is allowed.
        schema["x-guidance"] = json!({
            "whitespace_flexible": false,
            "item_separator": ", ?",
            "key_separator": ": ?",
        });
        self.grammar(TopLevelGrammar::from_json_schema(schema))
    }

    /// A grammar of the texts that a regular expression allows.
    pub(crate) fn regex(&self, regex: &str) -> Result<Grammar, GrammarError> {
        if regex.len() > MAX_SCHEMA_BYTES {
            let reason = format!("it has more than {MAX_SCHEMA_BYTES} bytes");
            return Err(GrammarError::TooComplex(reason));
        }
        self.grammar(TopLevelGrammar::from_regex(regex))
    }

    fn grammar(&self, grammar: TopLevelGrammar) -> Result<Grammar, GrammarError> {
        let clipped = |error: &dyn std::fmt::Display| error.to_string().chars().take(500).collect();
        let parser = self.factory()?.create_parser(grammar);
        let parser = parser.map_err(|error| GrammarError::Invalid(clipped(&error)))?;
        let mut matcher = Matcher::new(Ok(parser));
        // What is too much shows at the first token as a rule: it is better told before the answer begins.
        match matcher.compute_mask_or_eos() {
            Ok(_) => Ok(Grammar(matcher)),
            Err(error) => Err(GrammarError::TooComplex(clipped(&error))),
        }
    }

    /// The tokens of a text that is written into an answer.
    pub(crate) fn tokens(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let options = EncodeOptions {
            add_special: false,
            parse_special: true,
        };
        self.model.tokenizer()?.encode(text.as_bytes(), options)
    }
}

/// A compiled grammar, not yet begun.
pub(crate) struct Grammar(Matcher);

impl Grammar {
    fn begin(&self) -> Matcher {
        self.0.deep_clone()
    }
}

/// A grammar, with tokens that stand before and after it.
pub(crate) struct Framed {
    pub begin: Vec<u32>,
    pub grammar: Grammar,
    pub end: Vec<u32>,
}

impl Framed {
    /// A grammar alone.
    pub(crate) fn alone(grammar: Grammar) -> Framed {
        Framed {
            begin: Vec::new(),
            grammar,
            end: Vec::new(),
        }
    }

    /// What holds an answer to it.
    pub(crate) fn constraint(&self) -> Constraint {
        self.steps(self.grammar.begin(), &self.begin)
    }

    /// What holds the rest of an answer to it that has this text already, of the grammar or white space before
    /// it; `None` where that is no beginning of it.
    pub(crate) fn go_on_from(&self, text: &str) -> Option<Constraint> {
        if text.is_empty() {
            return Some(self.constraint());
        }
        let mut matcher = self.grammar.begin();
        let env = matcher.tok_env().ok()?;
        let tokens = env.tokenize_bytes(text.trim_start().as_bytes());
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
fn token_env(model: &Model) -> Result<TokEnv, TokenizerError> {
    let vocab = model.tokenizer()?.vocab();
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
pub(crate) struct Constraint {
    steps: VecDeque<Step>,
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
