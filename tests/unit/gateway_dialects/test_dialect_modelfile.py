"""What a store says of a model, applied to requests for its split."""

from __future__ import annotations

from olol_tui.gateway.dialects.modelfile import with_layers

OPTIONS = {"temperature": 0.6, "stop": ["<|end|>"]}


def test_the_clients_own_options_and_system_prompt_come_first() -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}], "options": {"temperature": 0}}
    found = with_layers("/api/chat", chat, "Be brief.", OPTIONS)
    assert found["options"] == {"temperature": 0, "stop": ["<|end|>"]}
    assert found["messages"][0] == {"role": "system", "content": "Be brief."}
    own = {"messages": [{"role": "system", "content": "Be long."}]}
    assert with_layers("/api/chat", own, "Be brief.", {}) == own
    assert chat["options"] == {"temperature": 0}, "the request itself is not touched"


def test_a_raw_prompt_gets_nothing_but_options() -> None:
    found = with_layers("/api/generate", {"prompt": "x", "raw": True}, "Be brief.", OPTIONS)
    assert found == {"prompt": "x", "raw": True, "options": OPTIONS}
    found = with_layers("/api/generate", {"prompt": "x"}, "Be brief.", {})
    assert found["system"] == "Be brief."


def test_what_is_wrong_is_left_to_be_refused() -> None:
    body = {"messages": "x", "options": 3}
    assert with_layers("/api/chat", body, "Be brief.", OPTIONS) == body
