from __future__ import annotations

from os import PathLike
from typing import Any, Callable, Dict, Iterator, Literal, Sequence, TypedDict, Union, final

from typing_extensions import Unpack

from . import errors as errors
from .errors import TandemError as TandemError

__version__: str

_Path = Union[str, PathLike[str]]
_Text = Union[str, bytes]
_Message = Dict[str, Any]
_Json = Union[str, Dict[str, Any]]

class _Perplexity(TypedDict):
    perplexity: float
    error: float
    n_tokens: int
    n_chunks: int

class _Quantized(TypedDict):
    n_bytes: int
    n_bytes_before: int
    n_elements: int
    fallbacks: str | None

class _Trained(TypedDict):
    n_steps: int
    best_step: int | None
    best_loss: float | None

class _Options(TypedDict, total=False):
    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repeat_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_window: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    max_draft: int | None
    json_schema: _Json | None
    regex: str | None
    lark: str | None

class _Training(TypedDict, total=False):
    data: _Path | None
    steps: int | None
    epochs: float | None
    lr: float | None
    batch: int | None
    seed: int | None
    out: _Path | None
    threads: int | None
    checkpoint: _Path | None
    resume: bool | None
    curve: _Path | None

@final
class Model:
    @staticmethod
    def open(path: _Path, *, mmap: bool = True) -> Model: ...
    @staticmethod
    def from_bytes(data: bytes) -> Model: ...
    @property
    def architecture(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_ctx_train(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def eos(self) -> int | None: ...
    @property
    def has_chat_template(self) -> bool: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    def bundle(self, path: _Path) -> Bundle: ...
    def adapter(self, path: _Path) -> Adapter: ...
    def compose(
        self,
        adapters: Sequence[tuple[Adapter, float]],
        *,
        merge: Literal["cat", "svd", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "slerp"] = "cat",
        density: float = 1.0,
        rank: int | None = None,
        seed: int = 0,
        lora_type: Literal["f32", "f16", "q8", "q4"] | None = None,
    ) -> Composition: ...
    def session(
        self,
        composition: Composition | None = None,
        *,
        n_ctx: int | None = None,
        n_batch: int | None = None,
        threads: int | None = None,
        threads_decode: int | None = None,
        kv_type: Literal["f16", "f32", "q8_0"] | None = None,
        exact: bool | None = None,
        level: str | None = None,
    ) -> Session: ...
    def tokenize(self, text: _Text, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...
    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str: ...
    def logits(
        self, tokens: Sequence[int], composition: Composition | None = None, *, exact: bool = False
    ) -> Floats: ...
    def hidden_states(
        self, tokens: Sequence[int], composition: Composition | None = None, *, exact: bool = False
    ) -> Floats: ...
    def perplexity(
        self,
        text: _Text,
        composition: Composition | None = None,
        *,
        n_ctx: int | None = None,
        chunks: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> _Perplexity: ...

@final
class Bundle:
    @property
    def name(self) -> str: ...
    @property
    def compositions(self) -> list[str]: ...
    @property
    def adapters(self) -> list[str]: ...
    @property
    def is_for_this_base(self) -> bool: ...
    def composition(self, name: str) -> Composition: ...
    def adapter(self, name: str) -> Composition: ...

@final
class Adapter:
    @property
    def modules(self) -> list[str]: ...

@final
class Composition:
    @property
    def prompt(self) -> str | None: ...

@final
class Session:
    def generate(
        self,
        prompt: _Text | Sequence[int] | Sequence[_Message],
        *,
        raw: bool = False,
        **options: Unpack[_Options],
    ) -> Generation: ...
    def chat(
        self,
        messages: Sequence[_Message],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        template_args: dict[str, Any] | None = None,
        **options: Unpack[_Options],
    ) -> Generation: ...
    def prompt_ids(self, prompt: _Text | Sequence[int] | Sequence[_Message], *, raw: bool = False) -> list[int]: ...
    def set_composition(self, composition: Composition | None) -> None: ...
    def eval(self, tokens: Sequence[int]) -> Floats: ...
    def rewind(self, n: int) -> int: ...
    @property
    def tokens(self) -> list[int]: ...

@final
class Generation:
    def __iter__(self) -> Iterator[str]: ...
    def __next__(self) -> str: ...
    def __aiter__(self) -> Generation: ...
    async def __anext__(self) -> str: ...
    def read(self) -> str: ...
    def cancel(self) -> None: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def stop_reason(self) -> str | None: ...
    @property
    def stop_string(self) -> str | None: ...
    @property
    def timings(self) -> Timings: ...
    @property
    def seed(self) -> int: ...
    @property
    def tool_calls(self) -> list[dict[str, Any]]: ...

@final
class Timings:
    @property
    def prompt(self) -> float: ...
    @property
    def decode(self) -> float: ...
    @property
    def n_prompt(self) -> int: ...
    @property
    def n_cached(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def tokens_per_second(self) -> float: ...

@final
class Floats:
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def __array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def tolist(self) -> list[Any]: ...

def quantize(
    input: _Path,
    output: _Path,
    type: str,
    *,
    pure: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> _Quantized: ...
def calibrate(
    recipe: _Path,
    *,
    progress: Callable[[dict[str, Any]], object] | None = None,
    kind: Literal["output_bias", "weight_bias", "low_rank", "projection"] | None = None,
    rank: int | None = None,
    **options: Unpack[_Training],
) -> _Trained: ...
def train_lora(
    recipe: _Path,
    *,
    progress: Callable[[dict[str, Any]], object] | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    **options: Unpack[_Training],
) -> _Trained: ...
def create_bundle(recipe: _Path, out: _Path) -> dict[str, Any]: ...
def inspect_bundle(path: _Path) -> dict[str, Any]: ...
def verify_bundle(path: _Path, model: _Path | None = None) -> bool | None: ...
