//! Models: hyperparameters, linears and weights of a GGUF file.

mod arch;
mod bytes;
mod config;
mod finite;
mod linears;
mod load;
mod tensor;
mod weights;

use alloc::boxed::Box;
#[cfg(feature = "chat")]
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use once_cell::race::OnceBox;
use tandem_formats::bundle::BaseFingerprint;
use tandem_formats::{BundleError, Bytes, Gguf, GgufError};

pub use arch::{Architecture, ModuleName};
use bytes::ModelBytes;
pub use config::{Config, FfnConfig, LayerConfig, MixerConfig, NormKind, RopeConfig};
pub(crate) use linears::{FusedSpec, LinearSpec};
pub use linears::{LinearId, LinearInfo, Linears, TensorParts, ValueHeads};
pub(crate) use load::Tensors;
use load::Weights;
pub use tensor::Tensor;
pub(crate) use weights::RopeFactors;
pub use weights::{Ffn, Layer, Linear, Mixer, Norm};

use crate::blocks::{AltUpEnds, PerLayerEmbeddings};
#[cfg(feature = "chat")]
use crate::chat::Chat;
use crate::chat::PromptForm;
use crate::tokenizer::{Tokenizer, TokenizerError};
use crate::{Adapter, AdapterType, Bundle, Composition, Error, PackedAdapter, SessionBuilder};

/// A model: hyperparameters, weights and vocabulary. It owns its file's bytes, or a map of them, and
/// never changes. A copy is cheap: it is another handle to the same model.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    bytes: ModelBytes,
    config: Config,
    linears: Linears,
    weights: Weights,
    tokenizer: Result<Tokenizer, TokenizerError>,
    #[cfg(feature = "chat")]
    chat_template: Result<Option<String>, GgufError>,
    /// The chat template, read when it is first used.
    #[cfg(feature = "chat")]
    chat: OnceBox<Result<Option<Chat>, crate::chat::PromptError>>,
    fingerprint: OnceBox<Result<BaseFingerprint, BundleError>>,
    /// What makes grammars for the vocabulary, prepared when it is first used.
    #[cfg(feature = "constraint")]
    grammars: OnceBox<Result<crate::constraint::Grammars, crate::constraint::GrammarError>>,
}

impl Model {
    /// Opens a GGUF file, or all parts of a split one, whose first is at `path`. Files are mapped, not
    /// copied: they must not change while the model is in use.
    ///
    /// # Errors
    ///
    /// Files that cannot be opened; what is missing, misshapen or not supported, by name.
    #[cfg(feature = "std")]
    pub fn open(path: impl AsRef<std::path::Path>) -> Result<Model, Error> {
        let files = tandem_formats::GgufFiles::open(path)?;
        // Errors of the format name the part that they are in.
        files.parse()?;
        Ok(Model::from_parts(files.into_bytes())?)
    }

    /// The model of a GGUF file in memory.
    ///
    /// # Errors
    ///
    /// What is missing, misshapen or not supported, by name.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Model, Error> {
        Ok(Model::from_parts(vec![bytes.into()])?)
    }

    /// The model of a GGUF file that is part of the program, or of a machine's memory.
    ///
    /// # Errors
    ///
    /// As [`Model::from_bytes`].
    pub fn from_static(bytes: &'static [u8]) -> Result<Model, Error> {
        Model::from_bytes(bytes)
    }

    fn from_parts(parts: Vec<Bytes>) -> Result<Model, crate::ModelError> {
        let bytes = ModelBytes(parts);
        let gguf = bytes.parse()?;
        let config = Config::from_gguf(&gguf)?;
        let linears = Linears::of(&config);
        let weights = Weights::load(&gguf, &bytes, &config, &linears)?;
        let tokenizer = Tokenizer::read(&gguf, &|data| bytes.keep(data));
        if let Ok(tokenizer) = &tokenizer {
            let n_tokens = tokenizer.vocab().n_tokens();
            if n_tokens != config.n_vocab {
                return Err(crate::ModelError::Vocabulary {
                    n_tokens,
                    n_rows: config.n_vocab,
                });
            }
        }
        #[cfg(feature = "chat")]
        let chat_template = gguf
            .get_str("tokenizer.chat_template")
            .map(|source| source.map(str::to_string));
        drop(gguf);
        Ok(Model(Arc::new(Inner {
            bytes,
            config,
            linears,
            weights,
            tokenizer,
            #[cfg(feature = "chat")]
            chat_template,
            #[cfg(feature = "chat")]
            chat: OnceBox::new(),
            fingerprint: OnceBox::new(),
            #[cfg(feature = "constraint")]
            grammars: OnceBox::new(),
        })))
    }

    /// What makes grammars for the model's vocabulary, to which answers are held. It is prepared when it is first
    /// asked for, which takes time and memory with large vocabularies.
    ///
    /// # Errors
    ///
    /// A model without a vocabulary, or with one that cannot be prepared.
    #[cfg(feature = "constraint")]
    pub fn grammars(
        &self,
    ) -> Result<&crate::constraint::Grammars, crate::constraint::GrammarError> {
        let new = || Box::new(crate::constraint::Grammars::new(self));
        self.0
            .grammars
            .get_or_init(new)
            .as_ref()
            .map_err(Clone::clone)
    }

    /// The hyperparameters.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Every linear: its id, name, shape and input group.
    pub fn linears(&self) -> &Linears {
        &self.0.linears
    }

    /// The layers, first to last.
    pub fn layers(&self) -> &[Layer] {
        &self.0.weights.layers
    }

    /// Embeddings, `[n_vocab, n_embd]`.
    pub fn token_embd(&self) -> &Tensor {
        &self.0.weights.token_embd
    }

    /// What each layer's own inputs are computed from, in models with such.
    pub fn per_layer(&self) -> Option<&PerLayerEmbeddings> {
        self.0.weights.per_layer.as_ref()
    }

    /// Where residual streams part and come together, where there are several.
    pub fn altup(&self) -> Option<&AltUpEnds> {
        self.0.weights.altup.as_ref()
    }

    /// An embedding for each position, `[n_positions, n_embd]`, which is added to the token's; in models with
    /// such, which know no position behind these.
    pub fn position_embd(&self) -> Option<&Tensor> {
        self.0.weights.positions.as_ref()
    }

    /// Normalization after the last layer.
    pub fn output_norm(&self) -> &Norm {
        &self.0.weights.output_norm
    }

    /// Projection to logits, `[n_vocab, n_embd]`; the embeddings where they are tied.
    pub fn output(&self) -> &Linear {
        &self.0.weights.output
    }

    pub(crate) fn rope_factors(&self) -> &RopeFactors {
        &self.0.weights.rope_factors
    }

    /// The frequencies of the model's rope number `rope` for a context of `n_ctx`, in radians a
    /// position, `[n_rot / 2]`, and what turned vectors are multiplied with.
    pub fn rope_frequencies(&self, rope: usize, n_ctx: usize) -> Option<(Vec<f32>, f32)> {
        let rope = self.config().ropes.get(rope)?;
        let found = crate::sequence::Frequencies::of(rope, self.rope_factors(), n_ctx);
        Some((found.inv_freq, found.magnitude))
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// A file without one, one of a kind that is not supported, or a damaged one.
    pub fn tokenizer(&self) -> Result<&Tokenizer, TokenizerError> {
        self.0.tokenizer.as_ref().map_err(Clone::clone)
    }

    /// The form of conversations, or `None` where the file has no chat template.
    ///
    /// # Errors
    ///
    /// A template that cannot be read.
    #[cfg(feature = "chat")]
    pub fn chat(&self) -> Result<Option<&Chat>, crate::chat::PromptError> {
        let chat = self.0.chat.get_or_init(|| Box::new(self.read_chat()));
        chat.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }

    #[cfg(feature = "chat")]
    fn read_chat(&self) -> Result<Option<Chat>, crate::chat::PromptError> {
        let source = self.0.chat_template.as_ref().map_err(Clone::clone)?;
        let vocab = self.tokenizer()?.vocab();
        // An empty template would drop what is said; llama.cpp takes it for none, too.
        let source = source.as_deref().filter(|source| !source.trim().is_empty());
        source.map(|source| Chat::new(source, vocab)).transpose()
    }

    /// The token ids of a prompt for the model alone; see
    /// [`Session::prompt_ids`](crate::Session::prompt_ids).
    ///
    /// # Errors
    ///
    /// A text that the vocabulary cannot express, or that the chat template refuses.
    pub fn prompt_ids<'p>(&self, prompt: impl Into<crate::Prompt<'p>>) -> Result<Vec<u32>, Error> {
        crate::chat::prompt_ids(self, PromptForm::default(), prompt.into())
    }

    /// What tells the model from others, for bundles. It takes milliseconds when first asked for.
    ///
    /// # Errors
    ///
    /// Metadata that lacks what it is made of.
    pub fn fingerprint(&self) -> Result<BaseFingerprint, BundleError> {
        let compute = || BaseFingerprint::of(&self.gguf()?);
        let found = self.0.fingerprint.get_or_init(|| Box::new(compute()));
        found.clone()
    }

    /// The file's metadata and tensors, read again.
    ///
    /// # Errors
    ///
    /// None for bytes that have not changed since the model was opened.
    pub fn gguf(&self) -> Result<Gguf<'_>, GgufError> {
        self.0.bytes.parse()
    }

    /// Bytes of the file, or of all parts of a split one.
    pub fn n_bytes(&self) -> usize {
        self.0.bytes.n_bytes()
    }

    /// Bytes read for one token in decode: all weights but the embeddings, of which one row is read.
    pub fn bytes_per_token(&self) -> usize {
        let linears = self.layers().iter().flat_map(Layer::linears);
        let per_layer = self.per_layer().map(|per_layer| &per_layer.proj);
        let all = linears.chain(per_layer).chain([self.output()]);
        let experts = self.layers().iter().map(|layer| match &layer.ffn {
            Ffn::Experts(experts) => experts.bytes_per_token(),
            Ffn::DenseAndExperts(both) => both.experts.bytes_per_token(),
            _ => 0,
        });
        let altup = self.altup().map_or(0, AltUpEnds::n_bytes);
        let all = all.map(|linear| linear.w.n_bytes());
        all.chain(experts).sum::<usize>() + altup
    }

    /// Whether both are handles to one model.
    pub fn is_same(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A session: the model at work on a text.
    ///
    /// ```no_run
    /// # use tandem_engine::Model;
    /// # let model = Model::open("model.gguf")?;
    /// let session = model.session().n_ctx(2048).threads(2).build()?;
    /// # Ok::<(), tandem_engine::Error>(())
    /// ```
    pub fn session(&self) -> SessionBuilder {
        SessionBuilder::new(self)
    }

    /// Opens a bundle of adapters for this model. The file is mapped, not copied: it must not change
    /// while the bundle, or a composition of it, is in use.
    ///
    /// # Errors
    ///
    /// A file that cannot be opened or is not a bundle; a bundle that is damaged or for another model.
    #[cfg(feature = "std")]
    pub fn bundle(&self, path: impl AsRef<std::path::Path>) -> Result<Bundle, Error> {
        let path = path.as_ref();
        let mapping = tandem_formats::Mapping::open(path).map_err(|source| {
            tandem_formats::FileError::Io {
                path: path.to_path_buf(),
                source,
            }
        })?;
        Bundle::new(self, mapping.into_bytes())
    }

    /// The bundle in memory.
    ///
    /// # Errors
    ///
    /// As [`Bundle::new`].
    pub fn bundle_from_bytes(&self, bytes: impl Into<Bytes>) -> Result<Bundle, Error> {
        Bundle::new(self, bytes)
    }

    /// The sum of adapters, each times its weight.
    ///
    /// ```no_run
    /// # use tandem_engine::Model;
    /// # let model = Model::open("model.gguf")?;
    /// let (reply, witty) = (model.adapter("reply-lora")?, model.adapter("witty.gguf")?);
    /// let both = model.compose([(&reply, 0.5), (&witty, 0.5)])?;
    /// # Ok::<(), tandem_engine::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// An adapter of another model, a weight that is not finite, or more than 64 adapters.
    pub fn compose<'a>(
        &self,
        adapters: impl IntoIterator<Item = (&'a Adapter, f32)>,
    ) -> Result<Composition, Error> {
        let adapter_type = AdapterType::for_model(self, false);
        let mut packed = Vec::new();
        for (adapter, weight) in adapters {
            let adapter = PackedAdapter::pack(self.linears(), adapter, adapter_type)?;
            packed.push((adapter, weight));
        }
        let parts: Vec<_> = packed
            .iter()
            .map(|(part, weight)| (part, *weight))
            .collect();
        Ok(Composition::new(self.linears(), &parts)?)
    }

    /// Reads a LoRA adapter for this model: a PEFT directory or a llama.cpp LoRA file.
    ///
    /// # Errors
    ///
    /// What cannot be read, is not supported, or does not fit the model, by name.
    #[cfg(feature = "std")]
    pub fn adapter(&self, path: impl AsRef<std::path::Path>) -> Result<Adapter, Error> {
        Adapter::open(self.linears(), path.as_ref())
    }
}

impl core::fmt::Debug for Model {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Model")
            .field("arch", &self.config().arch.name())
            .field("n_layer", &self.config().layers.len())
            .field("n_bytes", &self.n_bytes())
            .finish_non_exhaustive()
    }
}
