"""A LangChain LLM: langchain_llm.py MODEL PROMPT. Needs langchain-core."""

import sys
from typing import Any, Iterator, List, Optional

from langchain_core.language_models.llms import LLM
from langchain_core.outputs import GenerationChunk

import tandem


class Tandem(LLM):
    """A session, with or without a composition."""

    session: Any

    @property
    def _llm_type(self) -> str:
        return "tandem"

    def _call(self, prompt: str, stop: Optional[List[str]] = None, run_manager: Any = None, **options: Any) -> str:
        return self.session.generate(prompt, stop=stop, **options).read()

    def _stream(self, prompt: str, stop: Optional[List[str]] = None, run_manager: Any = None,
                **options: Any) -> Iterator[GenerationChunk]:
        answer = self.session.generate(prompt, stop=stop, **options)
        for piece in answer:
            yield GenerationChunk(text=piece)
        # LangChain takes a stream without a chunk for a failure, but an answer may be empty.
        yield GenerationChunk(text="", generation_info={"stop_reason": answer.stop_reason})


if __name__ == "__main__":
    llm = Tandem(session=tandem.Model.open(sys.argv[1]).session())
    for piece in llm.stream(sys.argv[2], max_tokens=48):
        print(piece, end="", flush=True)
    print()
