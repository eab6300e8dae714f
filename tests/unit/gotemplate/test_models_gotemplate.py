"""Go templates rendered as a real Ollama rendered them (`record.py`), and what they refuse."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from olol_tui.models.gotemplate import ChatTemplate, TemplateError
from olol_tui.models.gotemplate.chat import Message, Thinking
from olol_tui.models.gotemplate.parse import parse
from olol_tui.models.gotemplate.render import render

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
TODAY = date(2026, 1, 31)


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_prompts_are_what_ollama_makes_of_them(case: dict[str, Any]) -> None:
    template = ChatTemplate.of(case["template"])
    # Ollama lets a model think unless asked not to, where its template knows of it.
    thinking = Thinking(True if "thinking" in template.names else None)
    assert case["prompts"], "recorded"
    for title, expected in case["prompts"].items():
        messages = [Message(**one) for one in RECORDED["conversations"][title]]
        assert template.prompt(messages, thinking, TODAY) == expected, title


def filled(source: str, **data: Any) -> str:
    return render(parse(source), data, TODAY)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a {{- 3 -}} b", "a3b"),
        ("{{ range $i, $x := .L }}{{ $i }}={{ $x }} {{ end }}", "0=a 1=b "),
        ("{{ range 3 }}{{ . }}{{ end }}", "012"),
        ("{{ $n := 1 }}{{ if true }}{{ $n = 2 }}{{ $n := 3 }}{{ end }}{{ $n }}", "2"),
        ("{{ .L }} {{ .M }} {{ .M.k }} {{ json .M }}", 'a[a b] map[k:v] v {"k":"v"}'[1:]),
        ('{{ slice .L 1 }} {{ slice .S 1 3 }} {{ len .S }} {{ index .M "k" }}', "[b] éx"[:4]),
        ("{{ currentDate }} {{ yesterdayDate }} {{ .Gone }}", "2026-01-31 2026-01-30 <no value>"),
        ('{{ block "b" .S }}<{{ . }}>{{ end }}{{ template "b" 1 }}', "<aéx><1>"),
        ("{{ if eq .S nil }}x{{ else if not .Gone }}y{{ else }}z{{ end }}", "y"),
    ],
)
def test_what_templates_may_do(source: str, expected: str) -> None:
    said = filled(source, L=["a", "b"], M={"k": "v"}, S="aéx")
    assert said.startswith(expected)


@pytest.mark.parametrize(
    "source",
    [
        "{{ if .A }}",
        "{{ end }}",
        "{{ .A",
        "{{ unknown 1 }}",
        "{{ $x }}",
        "{{ }}",
        "{{ /* never ends }}",
        '{{ eq 1 "a" }}',
        "{{ index .L 9 }}",
        "{{ slice .L 2 1 }}",
        "{{ .S.Field }}",
        "{{ range .S }}{{ end }}",
        "{{ range 10000000000 }}{{ end }}",
        '{{ define "r" }}{{ template "r" }}{{ end }}{{ template "r" }}',
        '{{ template "none" }}',
        "{{ 1 | 2 }}",
        "{{ break }}",
        "{{ (.A }}",
        "{{ if .A }}" * 100,
    ],
)
def test_what_go_would_refuse_is_refused(source: str) -> None:
    with pytest.raises(TemplateError):
        filled(source, L=["a"], S="text")


@given(st.text(alphabet='{}-. $|():="`a1\nif end range else', max_size=60))
def test_no_text_breaks_the_reader(source: str) -> None:
    with suppress(TemplateError):
        filled(source, a=["x"])
