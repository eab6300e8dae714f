"""What simulated models say: deterministic text, JSON and vectors.

Every reply says that it is simulated. The same model, prompt and seed give the same
reply on every machine and Python version, which is why the generator is our own.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from typing import Any

_SENTENCES = (
    "A request waits in the queue until an engine has a free slot for its model.",
    "Loading weights takes as long as the disk and the bus need for that many bytes.",
    "Each token depends on all the tokens before it, so a reply cannot be computed at once.",
    "The key and value cache grows with every token and is freed when the reply ends.",
    "A model that is already in memory answers sooner than one that has to be loaded.",
    "When two models do not fit together, the one that was used longest ago makes room.",
    "Several requests can share one pass over the weights, which costs each a little speed.",
    "The prompt is read in large batches, the reply is written one token at a time.",
    "Memory bandwidth, not arithmetic, usually limits how fast a reply appears.",
    "A smaller quantization saves memory and costs some of the quality.",
    "Utilisation tells how often the device was busy, not how much work it did.",
    "A client that closes its connection frees the slot for the next request.",
    "Longer contexts need more memory, even before the first token is read.",
    "Power follows the load within a moment, temperature follows it within a minute.",
    "The first token tells how long the queue and the prompt were, the rest tells the speed.",
    "Splitting a model over two devices buys memory, it does not make one reply faster.",
    "Measure first: the slow part is seldom where it seems to be.",
    "An idle model stays in memory for a while, in case somebody asks again.",
    "Embeddings place similar texts near each other, so that a search can find them.",
    "A good error message names what happened, where, and what to do next.",
    "Batches fill the device when many people ask at the same time.",
    "If the engine stops, the request is tried elsewhere as long as nothing was sent.",
    "A fixed seed gives the same words again, which makes a comparison fair.",
    "The numbers at the end of a reply are counted, not estimated.",
)
_THOUGHTS = (
    "This is a simulated thought, so there is nothing to work out.",
    "The question is short; a short and honest answer will do.",
    "I should say at once that no model is running here.",
    "Then a few sentences of plausible length, and an end.",
)
_PIECE = re.compile(r"\s?[^\W_]{1,7}|\s?[^\w\s]|_|\s")
_WORD = re.compile(r"[^\W_]+")
_MASK = (1 << 64) - 1


class Dice:
    """splitmix64: small, fast, the same everywhere."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & _MASK

    def next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """An integer of low..high, both included."""
        return low + self.next() % (high - low + 1)


def seed_of(*parts: object) -> int:
    """A seed from any values, stable across processes."""
    raw = "\x00".join(str(part) for part in parts).encode("utf-8", "surrogatepass")
    return zlib.crc32(raw) << 32 | zlib.adler32(raw)


def pieces(text: str) -> list[str]:
    """Text cut into token-like pieces; joined they are the text again."""
    return _PIECE.findall(text)


def count_tokens(text: str) -> int:
    """How many tokens a text counts as."""
    return len(_PIECE.findall(text))


def thinking(dice: Dice) -> list[str]:
    """The pieces of a short simulated train of thought."""
    return pieces(" ".join(_THOUGHTS[: dice.between(2, len(_THOUGHTS))]))


def reply(model: str, prompt: str, dice: Dice, tokens: int) -> list[str]:
    """The pieces of a reply of about `tokens` tokens that ends with a whole sentence."""
    words = _WORD.findall(prompt[-400:])[-8:]
    about = ' You asked: "{}".'.format(" ".join(words)) if words else ""
    out = pieces(f"This is a simulated reply of {model}; no model ran.{about}")
    while len(out) < tokens:
        out.extend(pieces(" " + _SENTENCES[dice.next() % len(_SENTENCES)]))
    return out


def json_reply(model: str, prompt: str, dice: Dice, schema: dict[str, Any] | None) -> list[str]:
    """The pieces of a valid JSON document: by the schema, or a small object without one."""
    if schema is None:
        value: Any = {
            "simulated": True,
            "model": model,
            "answer": _SENTENCES[dice.next() % len(_SENTENCES)],
            "confidence": dice.between(50, 99) / 100,
        }
    else:
        value = _by_schema(schema, schema, dice, 0)
    return pieces(json.dumps(value, ensure_ascii=False))


def cut_at_stop(tokens: list[str], stops: list[str]) -> list[str]:
    """The pieces up to the first stop sequence, which is left out."""
    text = "".join(tokens)
    ends = [at for at in (text.find(stop) for stop in stops if stop) if at >= 0]
    return pieces(text[: min(ends)]) if ends else tokens


def embedding(text: str, length: int) -> list[float]:
    """A unit vector; texts that share words point in similar directions."""
    # A faint dense part of its own keeps every prefix of the vector meaningful.
    raw = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(length)
    vector = [(byte - 127.5) / 1275 for byte in raw]
    words = _WORD.findall(text.lower()) or [text]
    for word in words:
        dice = Dice(seed_of("embedding", word))
        for _ in range(24):
            draw = dice.next()
            vector[draw % length] += 1.0 if draw >> 63 else -1.0
    return unit(vector)


def unit(vector: list[float]) -> list[float]:
    """The vector scaled to length one; a null vector becomes the first axis."""
    norm = sum(v * v for v in vector) ** 0.5
    if norm == 0:
        return [1.0] + [0.0] * (len(vector) - 1)
    return [round(v / norm, 9) for v in vector]


def _by_schema(schema: Any, root: dict[str, Any], dice: Dice, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > 12:
        return None
    if "$ref" in schema:
        return _by_schema(_resolve(schema["$ref"], root), root, dice, depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][dice.next() % len(schema["enum"])]
    for union in ("anyOf", "oneOf", "allOf"):
        if schema.get(union):
            return _by_schema(schema[union][0], root, dice, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object" or "properties" in schema:
        properties = schema.get("properties") or {}
        return {k: _by_schema(v, root, dice, depth + 1) for k, v in properties.items()}
    if kind == "array":
        low = int(schema.get("minItems", 1))
        count = dice.between(low, max(low, min(int(schema.get("maxItems", low + 2)), low + 2)))
        return [_by_schema(schema.get("items"), root, dice, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        low = int(schema.get("minimum", 0))
        value = dice.between(low, max(low, int(schema.get("maximum", low + 99))))
        return value if kind == "integer" else float(value)
    if kind == "boolean":
        return bool(dice.next() & 1)
    if kind == "string":
        text = _SENTENCES[dice.next() % len(_SENTENCES)]
        text = text * (int(schema.get("minLength", 0)) // len(text) + 1)
        return text[: int(schema.get("maxLength", len(text)))]
    return None


def _resolve(reference: Any, root: dict[str, Any]) -> Any:
    node: Any = root
    for part in str(reference).lstrip("#/").split("/"):
        node = node.get(part) if isinstance(node, dict) else None
    return node
