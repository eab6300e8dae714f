"""Embeddings: Ollama's two routes over llama-server's one."""

from __future__ import annotations

import json
import math

import pytest
from dialect_fakes import STEP_NS, recorded, translation

from olol_tui.gateway.dialects.errors import BadRequest, TranslationError

EMBED = {"model": "smollm2:135m", "input": ["one two three", "four"]}


def test_vectors_come_in_order_and_untouched():
    way = translation("/api/embed", EMBED)
    data = recorded("embeddings.json")
    assert way.feed(data[:5000]) + way.feed(data[5000:]) == b""
    reply = json.loads(way.finish())
    rows = json.loads(data)["data"]
    assert reply["embeddings"] == [row["embedding"] for row in rows]
    assert (reply["model"], reply["prompt_eval_count"]) == ("smollm2:135m", 4)
    assert (reply["total_duration"], reply["load_duration"]) == (STEP_NS, 0)
    assert way.prompt_tokens == 4


def test_rows_out_of_order_are_sorted():
    way = translation("/api/embed", EMBED)
    way.feed(b'{"data":[{"embedding":[2],"index":1},{"embedding":[1],"index":0}]}')
    assert json.loads(way.finish())["embeddings"] == [[1], [2]]


def test_fewer_dimensions_are_cut_and_normalised_again():
    way = translation("/api/embed", EMBED | {"dimensions": 3})
    way.feed(recorded("embeddings.json"))
    for vector in json.loads(way.finish())["embeddings"]:
        assert len(vector) == 3
        assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-9)


def test_the_legacy_route_answers_one_vector():
    way = translation("/api/embeddings", {"model": "m", "prompt": "hi"})
    assert json.loads(way.body) == {"input": ["hi"]}
    way.feed(recorded("embeddings.json"))
    assert list(json.loads(way.finish())) == ["embedding"]


def test_one_text_is_sent_as_a_list_of_one():
    assert json.loads(translation("/api/embed", EMBED | {"input": "x"}).body) == {"input": ["x"]}


@pytest.mark.parametrize("given", [3, {"a": 1}, ["x", 1], True])
def test_other_inputs_are_refused_as_ollama_does(given):
    with pytest.raises(BadRequest, match=r"^invalid input type$"):
        translation("/api/embed", EMBED | {"input": given})


def test_an_input_that_is_too_long_is_the_clients_error():
    way = translation("/api/embed", EMBED)
    assert way.error(500, recorded("input_too_long.json")) == (
        400,
        b'{"error":"the input length exceeds the context length"}',
    )


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (501, "This server does not support embeddings. Start it with `--embeddings`"),
        (400, "Pooling type 'none' is not OAI compatible. Please use a different pooling type"),
    ],
)
def test_an_engine_without_embeddings_says_so_in_ollamas_words(status, message):
    body = json.dumps({"error": {"code": status, "message": message}}).encode()
    got, reply = translation("/api/embed", EMBED).error(status, body)
    assert got == 400
    assert json.loads(reply)["error"] == '"smollm2:135m" does not support embeddings'


@pytest.mark.parametrize("data", [b"", b'{"data":[]}', b"{", b'{"data":[{"index":0}]}'])
def test_a_broken_reply_is_an_error(data):
    way = translation("/api/embed", EMBED)
    way.feed(data)
    with pytest.raises(TranslationError):
        way.finish()
