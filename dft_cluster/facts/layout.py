"""How a prompt and its answer become tokens: one layout for training and evaluation alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from dft_cluster.errors import InputError

ALPACA = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and answer; positions `start` to `stop` are the answer, then comes at most an EOS."""

    ids: tuple[int, ...]
    start: int
    stop: int

    @property
    def answer(self) -> tuple[int, ...]:
        return self.ids[self.start : self.stop]

    @property
    def targets(self) -> int:
        """Tokens that carry loss: the answer and its EOS."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Layout:
    """A tokenizer with a template.

    `plain` is the prompt, a space and the answer, after whatever the tokenizer puts before every text (a BOS, or
    nothing). `alpaca` is the instruction form without input. `chat` is the tokenizer's own chat template with
    the prompt as the user's turn.
    """

    tokenizer: Any
    template: Literal["plain", "alpaca", "chat"] = "plain"
    eos: bool = True

    def __post_init__(self) -> None:
        if self.template == "chat" and not getattr(self.tokenizer, "chat_template", None):
            raise InputError(
                "train.template: chat needs a tokenizer with a chat template, and this one has none (use plain or alpaca)"
            )
        if self.eos and self.tokenizer.eos_token_id is None:
            raise InputError("train.eos: this tokenizer has no end-of-sequence token (set train.eos=false)")

    @property
    def pad(self) -> int:
        """Any id will do under the attention mask. A tokenizer's own may lie beyond the model's vocabulary."""
        return 0

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens at which greedy decoding stops: EOS, and a line's end where that is one token."""
        line = self._ids("\n")
        eos = self.tokenizer.eos_token_id
        return tuple(i for i in (eos, line[0] if len(line) == 1 else None) if i is not None)

    def prompt(self, prompt: str) -> tuple[int, ...]:
        """The tokens after which an answer begins."""
        if self.template == "chat":
            return self._ids(self.chat(prompt))
        text = ALPACA.format(prompt=prompt) if self.template == "alpaca" else prompt
        return (*self._prefix(), *self._ids(text))

    def chat(self, prompt: str) -> str:
        """The prompt as the user's turn. A template is a program, which runs in transformers' sandbox."""
        turns = [{"role": "user", "content": prompt}]
        try:
            return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise InputError(
                f"train.template: the tokenizer's chat template fails with {type(error).__name__}: {error}; right would be "
                "plain, alpaca, or another chat template"
            ) from error

    def example(
        self, prompt: str, answer: str, *, key: str | None = None, place: int | None = None, eos: bool | None = None
    ) -> Example:
        """Prompt and answer together; `eos` overrides the layout's own setting.

        With `key`, a span of the answer (at `place`, else where it first stands), only that span counts as the answer:
        what lies before it belongs to the question, and what comes after it is left out.
        """
        before = self.prompt(prompt)
        if not before:
            raise InputError(f"the prompt {prompt!r} with the answer {answer!r} has no tokens")
        after = self._answer(answer)
        if not after:
            raise InputError(f"the answer {answer!r} to {prompt!r} has no tokens")
        if key is not None and key != answer:
            first, last = self._span(answer, key, answer.index(key) if place is None else place, after)
            return Example((*before, *after[:last]), len(before) + first, len(before) + last)
        end = (int(self.tokenizer.eos_token_id),) if (self.eos if eos is None else eos) else ()
        return Example((*before, *after, *end), len(before), len(before) + len(after))

    def _answer(self, answer: str) -> tuple[int, ...]:
        if self.template != "plain":
            return self._ids(answer)
        # Some tokenizers (SentencePiece's) put the space before every text themselves; a second one would be a word.
        joined = self._ids("a a")
        adds_space = joined != self._ids("a") + self._ids(" a") and joined == self._ids("a") * 2
        return self._ids(answer if adds_space else f" {answer}")

    def _span(self, answer: str, key: str, place: int, whole: tuple[int, ...]) -> tuple[int, int]:
        """The tokens of `whole` that carry the key: those after what they share with the text before it."""
        first = _shared(whole, self._answer(answer[:place].rstrip()) if place else ())
        return first, max(first + 1, _shared(whole, self._answer(answer[: place + len(key)])))

    def text(self, ids: Sequence[int]) -> str:
        return self._said(ids).strip()

    def line(self, ids: Sequence[int]) -> str:
        """What stands before the first line's end; nothing where they begin with one, whatever token brings it."""
        return self._said(ids).partition("\n")[0].strip()

    def holds_a_line(self, ids: Sequence[int]) -> bool:
        return "\n" in self._said(ids)

    def _said(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _prefix(self) -> tuple[int, ...]:
        with_special, without = self.tokenizer("a")["input_ids"], self._ids("a")
        place = next((i for i in range(len(with_special)) if tuple(with_special[i : i + len(without)]) == without), 0)
        return tuple(with_special[:place])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
