//! Models.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString};
use tandem_engine::tokenizer::{ControlTokens, EncodeOptions};
use tandem_engine::{DType, Level};
use tandem_formats::Value;

use crate::arguments::readers;
use crate::bundle::{Adapter, Bundle, Composition, Merge, compose};
use crate::error::{Result, argument};
use crate::floats::{Floats, room};
use crate::interrupt::{Done, interruptible, with_events};
use crate::session::Session;

/// A language model from a GGUF file.
///
/// It may be used from several threads, and in processes forked from this one.
#[pyclass(frozen, module = "tandem")]
pub(crate) struct Model(pub(crate) tandem_engine::Model);

/// An input text: a `str`, or UTF-8 as `bytes`.
pub(crate) fn text_bytes(text: &Bound<'_, PyAny>) -> Result<Vec<u8>> {
    if let Ok(text) = text.cast::<PyString>() {
        return Ok(text.extract::<String>()?.into_bytes());
    }
    if let Ok(bytes) = text.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    argument("a text is a str, or bytes")
}

#[pymethods]
impl Model {
    /// Opens a model (of a split one, its first part). The file is mapped, not copied, and must not change while
    /// the model is in use; `mmap=False` reads it into memory instead (but not a split one).
    #[staticmethod]
    #[pyo3(signature = (path, *, mmap=true))]
    fn open(py: Python<'_>, path: PathBuf, mmap: bool) -> Result<Model> {
        py.detach(|| {
            if mmap {
                return Ok(Model(tandem_engine::Model::open(path)?));
            }
            let read = std::fs::read(&path);
            let bytes = read.map_err(|source| tandem_formats::FileError::Io { path, source })?;
            Ok(Model(tandem_engine::Model::from_bytes(bytes)?))
        })
    }

    /// The model in `data`, a GGUF file's bytes, which are copied.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> Result<Model> {
        let data = data.to_vec();
        py.detach(|| Ok(Model(tandem_engine::Model::from_bytes(data)?)))
    }

    /// `general.architecture`.
    #[getter]
    fn architecture(&self) -> &str {
        self.0.config().arch.name()
    }

    /// `general.name`, if the file has one.
    #[getter]
    fn name(&self) -> Option<String> {
        let gguf = self.0.gguf().ok()?;
        gguf.get_str("general.name").ok()?.map(String::from)
    }

    /// Tokens of the vocabulary.
    #[getter]
    fn n_vocab(&self) -> usize {
        self.0.config().n_vocab
    }

    /// The length of a hidden state.
    #[getter]
    fn n_embd(&self) -> usize {
        self.0.config().n_embd
    }

    /// Layers.
    #[getter]
    fn n_layer(&self) -> usize {
        self.0.config().layers.len()
    }

    /// Tokens of the context that it was trained with.
    #[getter]
    fn n_ctx_train(&self) -> usize {
        self.0.config().n_ctx_train
    }

    /// Bytes of its weights.
    #[getter]
    fn n_bytes(&self) -> usize {
        self.0.n_bytes()
    }

    /// The token a text begins with, if there is one.
    #[getter]
    fn bos(&self) -> Result<Option<u32>> {
        Ok(self.0.tokenizer()?.vocab().bos())
    }

    /// The token that ends a text, if there is one.
    #[getter]
    fn eos(&self) -> Result<Option<u32>> {
        Ok(self.0.tokenizer()?.vocab().eos())
    }

    /// Whether the file has a chat template.
    #[getter]
    fn has_chat_template(&self) -> Result<bool> {
        Ok(self.0.chat()?.is_some())
    }

    /// What the file says of itself; of lists of over 1,000 elements, as a vocabulary's, their length alone.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>> {
        let gguf = self.0.gguf().map_err(tandem_engine::ModelError::from)?;
        let metadata = PyDict::new(py);
        for (key, value) in gguf.metadata() {
            metadata.set_item(key, to_python(py, value)?)?;
        }
        Ok(metadata)
    }

    /// A bundle of adapters for this model. The file is mapped, and must not change while it is in use.
    fn bundle(&self, py: Python<'_>, path: PathBuf) -> Result<Bundle> {
        py.detach(|| Ok(Bundle(self.0.bundle(path)?)))
    }

    /// A LoRA adapter for this model: a PEFT directory, or a LoRA file of llama.cpp.
    fn adapter(&self, py: Python<'_>, path: PathBuf) -> Result<Adapter> {
        py.detach(|| Ok(Adapter(self.0.adapter(path)?)))
    }

    /// Adapters with their weights, `[(adapter, 0.5), ...]`, in one composition: their sum, or with `merge` merged
    /// by PEFT's method of that name, or by "slerp" (`density`, `rank`, `seed` are as the command has them). `lora_type` is what
    /// the factors are stored as; where it is not given, what suits the model: "f32" goes with `exact`.
    #[pyo3(signature = (adapters, **options))]
    fn compose(
        &self,
        py: Python<'_>,
        adapters: Vec<(Py<Adapter>, f32)>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Composition> {
        let members = adapters.iter();
        let members: Vec<_> = members.map(|(a, weight)| (&a.get().0, *weight)).collect();
        let merge = Merge::read(options)?;
        py.detach(|| compose(&self.0, &members, &merge))
    }

    /// A session, which answers one text at a time, with a composition or with the model alone.
    ///
    /// `n_ctx`: tokens of prompt and answer together (the model's, at most 4096). `n_batch`: tokens of a prompt
    /// evaluated at once. `threads`: for prompts, and for single tokens unless `threads_decode` says otherwise.
    /// `kv_type`: "f16", "f32" or "q8_0". `exact`: activations stay float32. `level`: instructions to use.
    #[pyo3(signature = (composition=None, **options))]
    fn session(
        &self,
        py: Python<'_>,
        composition: Option<&Composition>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> Result<Session> {
        let mut builder = self.0.session();
        if let Some(composition) = composition {
            builder = builder.composition(&composition.0);
        }
        for read in readers(options)? {
            builder = match &*read.key {
                "n_ctx" => builder.n_ctx(read.positive()?),
                "n_batch" => builder.n_batch(read.positive()?),
                "threads" => builder.threads(read.positive()?),
                "threads_decode" => builder.threads_decode(read.positive()?),
                "kv_type" => {
                    let types = [DType::F16, DType::F32, DType::Q8_0];
                    let name = read.value::<String>()?.to_uppercase();
                    let found = types.into_iter().find(|dtype| dtype.name() == name);
                    builder.kv_type(read.named(found, &["f16", "f32", "q8_0"])?)
                }
                "exact" => builder.exact(read.value()?),
                "level" => {
                    let found = Level::from_name(&read.value::<String>()?);
                    let names = Level::available().map(Level::name).collect::<Vec<_>>();
                    builder.level(read.named(found, &names)?)
                }
                _ => return read.unknown(),
            };
        }
        py.detach(|| Ok(Session::new(builder.build()?)))
    }

    /// The ids of a text. `add_special` adds what the model wants at the ends; `parse_special` takes special
    /// tokens' texts for these tokens.
    #[pyo3(signature = (text, *, add_special=true, parse_special=false))]
    fn tokenize(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<u32>> {
        let text = text_bytes(text)?;
        let options = EncodeOptions {
            add_special,
            parse_special,
        };
        py.detach(|| Ok(self.0.tokenizer()?.encode(text, options)?))
    }

    /// The text of ids; `special` shows special tokens as well.
    #[pyo3(signature = (tokens, *, special=false))]
    fn detokenize(&self, py: Python<'_>, tokens: Vec<u32>, special: bool) -> Result<String> {
        let control = match special {
            true => ControlTokens::Show,
            false => ControlTokens::Hide,
        };
        py.detach(|| {
            let mut decoder = self.0.tokenizer()?.vocab().stream(control);
            let mut text = String::new();
            for id in tokens {
                text += decoder.push(id)?;
            }
            text += decoder.finish();
            Ok(text)
        })
    }

    /// The logits after each token, `[len(tokens), n_vocab]`.
    #[pyo3(signature = (tokens, composition=None, *, exact=false))]
    fn logits(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        composition: Option<&Composition>,
        exact: bool,
    ) -> PyResult<Floats> {
        let n_cols = self.0.config().n_vocab;
        self.evaluated(py, tokens, composition, exact, |session, tokens| {
            let mut data = room(tokens.len(), n_cols)?;
            session.eval_rows(tokens, 0, |_, rows| data.extend_from_slice(rows))?;
            Ok(Floats::rows(data, n_cols))
        })
    }

    /// The hidden state of each token, which the output matrix makes logits of, `[len(tokens), n_embd]`.
    #[pyo3(signature = (tokens, composition=None, *, exact=false))]
    fn hidden_states(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        composition: Option<&Composition>,
        exact: bool,
    ) -> PyResult<Floats> {
        let n_cols = self.0.config().n_embd;
        self.evaluated(py, tokens, composition, exact, |session, tokens| {
            let mut data = room(tokens.len(), n_cols)?;
            session.eval_hidden(tokens, 0, |_, row| data.extend_from_slice(row))?;
            Ok(Floats::rows(data, n_cols))
        })
    }

    /// How well the model predicts a text, as `tandem perplexity` measures it, in chunks of `n_ctx` tokens: a
    /// dictionary of `perplexity`, its standard `error`, `n_tokens`, `n_chunks`. `progress` is called with how
    /// many chunks are done, and of how many.
    #[pyo3(signature = (text, composition=None, *, n_ctx=None, chunks=None, progress=None))]
    fn perplexity<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        composition: Option<&Composition>,
        n_ctx: Option<usize>,
        chunks: Option<usize>,
        progress: Option<Bound<'py, PyAny>>,
    ) -> Result<Bound<'py, PyDict>> {
        let text = text_bytes(text)?;
        if chunks == Some(0) {
            return argument("chunks: a number of at least 1 is wanted");
        }
        let default_ctx = self.0.config().n_ctx_train.min(512);
        let mut builder = self.0.session().n_ctx(n_ctx.unwrap_or(default_ctx));
        if let Some(composition) = composition {
            builder = builder.composition(&composition.0);
        }
        let stop = std::sync::Arc::default();
        let told = |done: Done| done.tell(progress.as_ref());
        let found = with_events(py, &stop, told, |sender| -> Result<_> {
            let mut session = builder.build()?;
            session.set_interrupt(Some(std::sync::Arc::clone(&stop)));
            let pool = rayon::ThreadPoolBuilder::new().build();
            let pool = pool.map_err(anyhow::Error::from)?;
            let n_chunks = chunks.unwrap_or(usize::MAX);
            let advance = &mut |n_done, n| Ok(sender.send(Done { n_done, n })?);
            let found = pool.install(|| {
                tandem_tools::perplexity::perplexity(&mut session, &text, n_chunks, advance)
            });
            Ok(found?)
        })??;
        let report = PyDict::new(py);
        report.set_item("perplexity", found.value)?;
        report.set_item("error", found.error)?;
        report.set_item("n_tokens", found.n_tokens)?;
        report.set_item("n_chunks", found.n_chunks)?;
        Ok(report)
    }

    fn __repr__(&self) -> String {
        format!(
            "<tandem.Model {}, {} layers>",
            self.architecture(),
            self.n_layer()
        )
    }
}

impl Model {
    /// What `read` makes of tokens in a session of their length.
    fn evaluated(
        &self,
        py: Python<'_>,
        tokens: Vec<u32>,
        composition: Option<&Composition>,
        exact: bool,
        read: impl FnOnce(&mut tandem_engine::Session, &[u32]) -> Result<Floats> + Send,
    ) -> PyResult<Floats> {
        let mut builder = self.0.session().n_ctx(tokens.len().max(1)).exact(exact);
        if let Some(composition) = composition {
            builder = builder.composition(&composition.0);
        }
        let stop = std::sync::Arc::default();
        let found = interruptible(py, &stop, || {
            let mut session = builder.build()?;
            session.set_interrupt(Some(std::sync::Arc::clone(&stop)));
            read(&mut session, &tokens)
        })?;
        Ok(found?)
    }
}

/// Lists longer than this are told by their length.
const LONG: usize = 1000;

fn to_python<'py>(py: Python<'py>, value: &Value<'_>) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Bool(b) => b.into_pyobject(py)?.to_owned().into_any(),
        Value::Str(text) => PyString::new(py, text).into_any(),
        Value::Bytes(bytes) => PyBytes::new(py, bytes).into_any(),
        Value::F32(x) => x.into_pyobject(py)?.into_any(),
        Value::F64(x) => x.into_pyobject(py)?.into_any(),
        Value::Array(array) if array.len() > LONG => array.len().into_pyobject(py)?.into_any(),
        Value::Array(array) => {
            let values = array.iter_values().into_iter().flatten();
            let values: PyResult<Vec<_>> = values.map(|value| to_python(py, &value)).collect();
            PyList::new(py, values?)?.into_any()
        }
        other => other.as_integer().into_pyobject(py)?.into_any(),
    })
}
