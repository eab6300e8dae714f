"""The official `ollama` command against a plain Ollama and against a gateway over one.

Every subcommand, the same words to both, one after the other: what is printed and the exit code
must be equal. What may differ is named: the id of a model made of uploaded files (it holds the
path of the store), times, and what a gateway refuses on purpose.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.at_hand import smollm2
from tests.contract.client_service import serving
from tests.contract.gguf_files import write_gguf
from tests.contract.model_registry import FORBIDDEN, Registry, registry
from tests.contract.ollama_process import plain_ollama, program

pytestmark = pytest.mark.ollama

REPLY_S = 120.0
PLAIN, GATEWAY = "plain", "gateway"
SMALL = """FROM {gguf}
TEMPLATE \"\"\"{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}
{{{{ .Content }}}}<|im_end|>
{{{{ end }}}}<|im_start|>assistant
\"\"\"
PARAMETER temperature 0
PARAMETER num_predict 12
PARAMETER stop <|im_end|>
"""
DERIVED = '''FROM small
SYSTEM """You are brief.
You are kind."""
PARAMETER num_predict 6
PARAMETER seed 7
MESSAGE user What is the capital of France?
MESSAGE assistant Paris.
LICENSE """First licence"""
LICENSE """Second licence"""
'''
FILES = {
    "Modelfile": "FROM ./tiny.gguf\n",
    "derived.txt": DERIVED,
    "template.txt": 'FROM small\nTEMPLATE "{{ .Prompt }}"\n',
    "wrong.txt": "FROM ./tiny.gguf\nNONSENSE yes\n",
    "empty.txt": "",
    "absent.txt": "FROM ./nowhere.gguf\n",
    "unfit.txt": "FROM ./text.gguf\n",
    "text.gguf": "this is no model",
}


@dataclass
class Side:
    """One of the two that are compared."""

    name: str
    url: str
    home: Path
    directory: Path

    @property
    def env(self) -> dict[str, str]:
        settings = {"HOME": str(self.home), "OLLAMA_HOST": self.url, "TERM": "xterm-256color"}
        return {**os.environ, **settings}

    def run(self, argv: tuple[str, ...], given: str) -> tuple[int, str, str]:
        """Exit code, stdout and what stderr shows in the end, without what may differ."""
        done = subprocess.run(
            [program(), *argv],
            input=given,
            capture_output=True,
            text=True,
            timeout=REPLY_S,
            env=self.env,
            cwd=self.directory,
            check=False,
        )
        return done.returncode, self.plain(done.stdout), self.plain(done.stderr)

    def plain(self, text: str) -> str:
        lines: list[str] = []
        for line in re.split(r"[\r\n]|\x1b\[1G", text):
            line = _ESCAPES.sub("", line).rstrip(" " + _SPINNER)
            for pattern, word in _MAY_DIFFER:
                line = pattern.sub(word, line)
            line = line.replace(self.url.removeprefix("http://"), "HOST")
            # Seen only when it takes longer than a glance.
            if line == "gathering model components":
                continue
            if line and (line not in lines or not _PROGRESS.match(line)):
                lines.append(line.rstrip())
        return "\n".join(lines)


_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_ESCAPES = re.compile(r"\x1b\[[?0-9;]*[a-zA-Z]")
_PROGRESS = re.compile(
    r"copying|parsing|using|creating|writing|success|pulling|verifying|quantizing"
    r"|retrieving|pushing|converting"
)
_MAY_DIFFER = [
    (re.compile(r"(/\S+)?/models/(blobs|manifests)"), r"STORE/\2"),
    (re.compile(r"\b[0-9a-f]{12}\b(?!\.\.\.)"), "ID"),
    (re.compile(r"\b\d+ (second|minute)s? ago|(Less than a|About a) \w+ ago"), "AGO"),
    (re.compile(r"(duration:|rate:) +[\d.]+\S*( tokens/s)?"), r"\1 TIME"),
    # Bars are drawn while the work goes on, and a fast one not at all.
    (re.compile(r"^(copying file \S+) \d+%.*"), r"\1"),
    (re.compile(r"^((?:pulling|pushing) \w+\.*): +\d+% .*"), r"\1"),
]


@dataclass(frozen=True)
class Step:
    line: str
    """As typed, without `ollama`; {registry} stands for its address."""
    given: str = ""
    known: str = ""
    """Why a gateway answers otherwise, and what its answer holds."""
    fails: bool = False
    prompt: str | None = field(default=None)
    """A last argument with blanks in it."""


STEPS = [
    # -- what needs no model
    Step("help"),
    *(
        Step(f"{name} --help")
        for name in (
            "serve", "create", "show", "run", "stop", "pull", "push", "signin", "signout",
            "list", "ps", "cp", "rm", "launch",
        )
    ),
    Step("--version"),
    Step("-v"),
    Step("list"),
    Step("ps"),
    Step("nonsense", fails=True),
    Step("serve", fails=True),
    # -- create
    Step("create small -f small.txt"),
    Step("create tiny"),
    Step("create tiny -f Modelfile"),
    Step("create quantized -f Modelfile -q q8_0"),
    Step("create requantized -f small.txt -q q4_K_M", fails=True),
    Step("create quantized -f Modelfile -q q9", fails=True),
    Step("create derived -f derived.txt"),
    Step("create templated -f template.txt"),
    Step("create bad/name/with/too/many -f small.txt", fails=True),
    Step("create x -f wrong.txt", fails=True),
    Step("create x -f empty.txt", fails=True),
    Step("create x -f absent.txt", fails=True),
    Step("create x -f unfit.txt", fails=True),
    Step("create x -f nowhere", fails=True),
    Step("create", fails=True),
    # -- show
    *(
        Step(f"show {model}{flag}")
        for model in ("small", "derived", "templated:latest", "TINY")
        for flag in (
            "", " --license", " --modelfile", " --parameters", " --system", " --template",
            " --verbose",
        )
    ),
    Step("show small --license --system", fails=True),
    Step("show nowhere", fails=True),
    Step("show", fails=True),
    # -- list, cp
    Step("list"),
    Step("ls"),
    Step("list small"),
    Step("list SM"),
    Step("list nowhere"),
    Step("cp small copied"),
    Step("cp small team/copied:v1"),
    Step("cp nowhere copied", fails=True),
    Step("cp small", fails=True),
    Step("cp small bad/name/with/too/many", fails=True),
    Step("list"),
    # -- run, ps, stop
    Step("run small", prompt="What is the capital of France?"),
    Step("ps"),
    Step("run small --verbose", prompt="What is the capital of France?"),
    Step("run small --nowordwrap", prompt="Name a colour."),
    Step("run small --format json", prompt="The capital of France as JSON."),
    Step("run small --format nonsense", prompt="Hi", fails=True),
    Step("run small --keepalive 47m", prompt="Hi"),
    Step("ps"),
    Step("ps small"),
    Step("ps nowhere"),
    Step("run small --keepalive 5", prompt="Hi", fails=True),
    Step("run small --think", prompt="Hi", fails=True),
    Step("run small --think=false", prompt="Hi"),
    Step("run small --think=much", prompt="Hi", fails=True),
    Step("run small --hidethinking", prompt="Hi"),
    Step("run small", given="What is the capital of France?"),
    Step("run small", given="What is the capital\nof France?\nOne word.\n"),
    Step("run small", given="Paris is in France.\n", prompt="Where is Paris?"),
    Step("run small --nonsense", fails=True),
    Step("run copied", prompt="Name a colour."),
    Step("run derived", prompt="Name a colour."),
    Step("run templated", prompt="One two three"),
    Step("ps"),
    Step("stop copied"),
    Step("run small --keepalive -1s", prompt="Hi"),
    Step("ps"),
    Step("stop small"),
    Step("stop small"),
    Step("stop nowhere", fails=True),
    Step("stop", fails=True),
    Step("run", fails=True),
    # -- push, pull
    Step("cp tiny {registry}/team/tiny:v1"),
    Step("push {registry}/team/tiny:v1", fails=True),
    Step("push --insecure {registry}/team/tiny:v1"),
    Step("push --insecure {registry}/team/tiny:v1"),
    Step("cp tiny {registry}/" + FORBIDDEN + "/tiny"),
    Step("push --insecure {registry}/" + FORBIDDEN + "/tiny", fails=True),
    Step("push --insecure {registry}/team/nowhere", known="not found", fails=True),
    Step("push", fails=True),
    Step("rm {registry}/team/tiny:v1 {registry}/" + FORBIDDEN + "/tiny"),
    Step("rm tiny"),
    Step("pull --insecure {registry}/team/tiny:v1"),
    Step("pull --insecure {registry}/team/tiny:v1"),
    Step("pull --insecure {registry}/team/nowhere", fails=True),
    Step("pull bad/name/with/too/many", fails=True),
    Step("pull anything:cloud", known="cloud models are disabled", fails=True),
    Step("pull", fails=True),
    Step("list"),
    Step("show {registry}/team/tiny:v1"),
    Step("create x --insecure", fails=True),
    # -- accounts, integrations
    Step("signout", known="accounts and cloud services are disabled", fails=True),
    Step("launch nonsense", fails=True),
    # -- rm
    Step("rm copied derived"),
    Step("rm nowhere", fails=True),
    Step("rm templated nowhere", fails=True),
    Step("rm", fails=True),
    Step("list"),
    Step("ps"),
]  # fmt: skip


@dataclass
class Both:
    plain: Side
    gateway: Side
    registries: dict[str, Registry]

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.plain, self.gateway

    def argv(self, side: Side, step: Step) -> tuple[str, ...]:
        line = step.line.replace("{registry}", self.registries[side.name].host)
        return (*line.split(), *([] if step.prompt is None else [step.prompt]))


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    with two_sides() as both:
        yield both


@contextlib.contextmanager
def two_sides() -> Iterator[Both]:
    program()
    with contextlib.ExitStack() as stack:
        root = Path(tempfile.mkdtemp(prefix="olol-cli-"))
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        # What is pushed by one must not be there when the other does the same.
        registries = {name: stack.enter_context(registry()) for name in (PLAIN, GATEWAY)}
        directory = root / "work"
        directory.mkdir()
        for name, text in FILES.items():
            (directory / name).write_text(text)
        (directory / "small.txt").write_text(SMALL.format(gguf=smollm2()))
        write_gguf(directory / "tiny.gguf", general__file_type=("I", 1))
        home = root / "gateway"
        home.mkdir()
        server = stack.enter_context(plain_ollama(root / "plain"))
        allowed = f'["registry.ollama.ai", "http://{registries[GATEWAY].host}"]'
        more = f"[gateway]\nregistries = {allowed}\n"
        service = stack.enter_context(serving("ollama", more=more, models=False, HOME=str(home)))
        yield Both(
            Side(PLAIN, server.url, server.home, directory),
            Side(GATEWAY, service.url, home, directory),
            registries,
        )


@pytest.mark.timeout(600)
def test_every_subcommand_says_the_same(both: Both) -> None:
    different = [told for step in STEPS if (told := _difference(both, step))]
    assert not different, "\n\n".join([f"{len(different)} of {len(STEPS)}", *different])


def _difference(both: Both, step: Step) -> str:
    """What is wrong with a step; empty when nothing is."""
    told = {}
    for side in both.sides:
        code, out, err = side.run(both.argv(side, step), step.given)
        host = both.registries[side.name].host
        if step.line.startswith(("show", "list", "ls")):
            # Ollama writes what it holds in a map in any order: parameters, models of one second.
            out = "\n".join(sorted(out.splitlines()))
        told[side.name] = code, out.replace(host, "REGISTRY"), err.replace(host, "REGISTRY")
    plain, gateway = told[PLAIN], told[GATEWAY]
    shown = f"$ ollama {step.line} {step.prompt or ''}\n{_shown(plain)}\n{_shown(gateway)}"
    if bool(plain[0]) != step.fails:
        return f"a plain Ollama has another exit code\n{shown}"
    if step.known:
        is_told = gateway[0] and step.known in gateway[2]
        return "" if plain != gateway and is_told else f"known difference\n{shown}"
    return "" if plain == gateway else shown


def _shown(told: tuple[int, str, str]) -> str:
    code, out, err = told
    return f"  [{code}] {out!r}\n      {err!r}"
