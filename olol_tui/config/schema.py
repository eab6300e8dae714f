"""The tables of `cluster.toml` as frozen models.

No I/O. Field descriptions are what an error names as expected, and what the README lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from olol_tui.models.names import canonical
from olol_tui.units import parse_size

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]*$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=64)]
Size = Annotated[int, BeforeValidator(parse_size)]
Vram = Annotated[Size, Field(ge=2**20)]
"""Below a MiB a unit was forgotten: `vram = 24`."""
Port = Annotated[int, Field(ge=0, le=65535)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Role = Literal["ollama", "shared", "rpc", "off"]
"""What a GPU is for: an engine of its own, part of one engine over several GPUs, a worker of
split models, nothing."""


PolicyName = Literal["expected", "least-busy", "round-robin", "sticky"]
"""How the engine of a request is chosen."""


def _path(text: str, info: ValidationInfo) -> str:
    """`~` is the user's home; a relative path lies beside the file that names it."""
    if not text:
        return text
    path = Path(text).expanduser()
    base = (info.context or {}).get("base")
    return str(Path(base, path)) if base is not None else str(path)


FilePath = Annotated[str, AfterValidator(_path)]


def _path_there(text: str) -> str:
    """A path on another machine: nothing here can complete it."""
    if text and not text.startswith(("/", "~/")):
        raise ValueError(f"expected a path such as /scratch/ops or ~/ops, got {text!r}")
    return text


def _archive(text: str, info: ValidationInfo) -> str:
    """A URL as it is, anything else as a path."""
    if "://" not in text:
        return _path(text, info)
    if urlsplit(text).scheme not in ("http", "https"):
        raise ValueError(f"expected a path or an http(s) URL, got {text!r}")
    return text


ArchiveSource = Annotated[str, AfterValidator(_archive)]


def _source(given: Any, info: ValidationInfo) -> bool | str:
    """As an archive, or whether to take the one that is known."""
    if isinstance(given, bool):
        return given
    if not isinstance(given, str) or ("://" in given and not given.startswith("http")):
        raise ValueError(f"expected true, or a path or an http(s) URL, got {given!r}")
    return _archive(given, info) or False


def _sha256(text: str) -> str:
    if text and (len(text) != 64 or set(text.lower()) - set("0123456789abcdef")):
        raise ValueError(f"expected the 64 hexadecimal digits of a sha256, got {text!r}")
    return text.lower()


def _device_key(key: str) -> str:
    if key.isascii() and (key.isdigit() or ("-" in key and key.isprintable() and " " not in key)):
        return key
    raise ValueError(f"expected a GPU's index or UUID such as 1 or GPU-5f, got {key!r}")


DeviceKey = Annotated[str, AfterValidator(_device_key)]


def _url(text: str) -> str:
    """`http://host:port` without a trailing slash."""
    example = "expected a URL such as http://10.0.0.9:11434"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{example}, got {text!r} ({error})") from None
    if parts.scheme != "http" or not parts.hostname or "@" in parts.netloc:
        raise ValueError(f"{example}, got {text!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{example} without a path, got {text!r}")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"http://{host}:{port or 80}"


def _origin(text: str) -> str:
    """As browsers send it: scheme and host in small letters, no path."""
    parts = urlsplit(text.lower())
    plain = f"{parts.scheme}://{parts.netloc}"
    if text != "*" and (not parts.netloc or text.lower() not in (plain, plain + "/")):
        raise ValueError(f"expected an origin such as https://chat.example.org, got {text!r}")
    return text if text == "*" else plain


Origin = Annotated[str, AfterValidator(_origin)]


def _problem(told: str, *at: str) -> PydanticCustomError:
    """An error of a whole table that belongs to one of its keys: `load` reads `at`."""
    return PydanticCustomError("misplaced", "{told}", {"told": told, "at": at})


def _log_path(text: str, info: ValidationInfo) -> str:
    return text if text == "-" else _path(text, info)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class GatewayConfig(_Table):
    """Where clients connect."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 8000
    """0: any free port."""
    max_queue: Annotated[int, Field(ge=0)] = 256
    """Requests waiting for a slot before new ones are told «busy»."""
    policy: PolicyName = "expected"
    """How a request's engine is chosen, for models that say nothing else."""
    model_policies: dict[str, PolicyName] = Field(default_factory=dict)
    """Of the tables of models; not a key of the file."""
    max_queue_per_key: Count | None = None
    """Of these, of one API key; None: half."""
    max_body_bytes: Size = 128 * 2**20
    max_connections: Count = 2000
    max_connections_per_key: Count = 256
    max_header_bytes: Annotated[Size, Field(ge=1024)] = 32 * 1024
    header_timeout_s: Rate = 10.0
    """For a whole request head, once its first byte came."""
    body_timeout_s: Rate = 60.0
    """Between two pieces of a request's body."""
    idle_timeout_s: Rate = 120.0
    """A connection without a request is kept open for so long."""
    first_byte_timeout_s: Rate = 120.0
    """At most, for the first token of a model that is loaded; less where speeds are known."""
    load_timeout_s: Rate = 300.0
    """For the first byte while a model loads, and of a reply that comes in one piece."""
    token_timeout_s: Rate = 60.0
    """Between two pieces of a stream."""
    probe_after_s: Rate = 5.0
    """A silent engine is asked whether it lives after so long; two questions without an answer
    and its requests go elsewhere."""
    registries: list[Annotated[str, StringConstraints(to_lower=True, min_length=1)]] = Field(
        default_factory=lambda: ["registry.ollama.ai", "ollama.com", "hf.co", "huggingface.co"]
    )
    """From where models may be pulled: hosts, `http://HOST` without TLS too, `*` for all."""
    cors_origins: list[Origin] = Field(default_factory=list)
    """Whose pages may ask beside those of this machine: `https://chat.example.org`, `*` for all."""
    tls_cert: FilePath = ""
    """PEM certificate chain: then clients speak https. Read again when it changes."""
    tls_key: FilePath = ""
    """Its PEM key, without a passphrase."""
    access_log: Annotated[str, AfterValidator(_log_path)] = ""
    """File for a JSON line a request, `-` for stderr."""
    records_max: Annotated[int, Field(ge=0)] = 100_000
    """Ended requests of which a record is kept."""
    records_days: Rate = 30.0
    insecure_no_keys: bool = False
    """Listen on an address that others can reach, although nobody has to show a key."""

    @model_validator(mode="after")
    def _both_or_none(self) -> GatewayConfig:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("expected tls_cert and tls_key together, got one of them")
        return self


class SimulatedConfig(_Table):
    """Devices and engines that only pretend, for demos, tests and benchmarks."""

    gpus: Annotated[int, Field(ge=1, le=1024)] = 2
    vram: Vram = 24 * 2**30
    """Bytes of each GPU."""
    name: Annotated[str, Field(min_length=1)] = "SIM"
    load_bytes_s: Rate | None = None
    prefill_tps: Rate | None = None
    decode_tps: Rate | None = None
    reply_tokens: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Length of a reply that nothing cuts short; None: some sentences."""
    slots: Count | None = None
    speedup: Rate | None = None
    """How much faster than real everything there happens: for benchmarks."""
    tokens_per_piece: Annotated[float, Field(ge=1)] | None = None
    """How many tokens each one that is written stands for."""


class NodeConfig(_Table):
    """A machine whose engines we run."""

    local: bool = False
    """This machine, without SSH."""
    host: str = ""
    """Address, or a Host of ~/.ssh/config; by default the name of the table."""
    user: str = ""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Of sshd; None: as ~/.ssh/config says, else 22."""
    identity: FilePath = ""
    """Private key file, instead of what ~/.ssh/config and the agent offer."""
    known_hosts: FilePath = ""
    """Host keys to trust, instead of the user's known_hosts."""
    profile: Literal["lan", "wan"] = "lan"
    """How soon a silent link counts as lost: 6 s, or 20 s."""
    transport: Literal["ssh", "direct"] = "ssh"
    """How requests reach the engines; control always goes through SSH."""
    directory: str = ""
    """Where the agent and its engines are kept on the node, instead of
    ~/.local/share/olol-agent: absolute, or `~/…` for the user's home there."""
    engine: Literal["auto", "ollama", "llama-server", "embedded", "simulated"] = "auto"
    gpus: Literal["per-gpu", "shared"] = "per-gpu"
    """One engine a GPU, or one over all."""
    roles: dict[DeviceKey, Role] = Field(default_factory=dict)
    """By index or UUID; a GPU that is not named gets what `gpus` says."""
    simulated: SimulatedConfig | None = None
    binary: str = ""
    """The engine's executable, when it is not on PATH."""
    models_dir: str = ""
    """Ollama's model directory, or a directory of GGUF files."""
    slots: Count | None = None
    """Requests of one model at once in an engine; None: the engine's default."""
    num_ctx: Annotated[int, Field(ge=256)] = 4096
    """Tokens of context of each slot, unless a request asks for more."""
    vram_limit: Vram | dict[DeviceKey, Vram] | None = None
    """Bytes of each GPU that models may take together, or a table of them by index or UUID."""
    llama_server: str = ""
    """llama.cpp's program for heads of splits there, when it is not on PATH; or its directory."""
    rpc_server: str = ""
    """llama.cpp's worker there, when it is neither on PATH nor beside `llama_server`."""
    mesh_host: str = ""
    """Address at which other nodes reach its sshd, when it is not the one that we use."""
    pool: str = ""

    @model_validator(mode="before")
    @classmethod
    def _simulate_something(cls, data: Any) -> Any:
        """Either of `engine = "simulated"` and the table `simulated` says it."""
        if not isinstance(data, dict):
            return data
        if data.get("engine") == "simulated":
            return {**data, "simulated": data.get("simulated") or SimulatedConfig()}
        if data.get("simulated") is not None and data.get("engine", "auto") == "auto":
            return {**data, "engine": "simulated"}
        return data

    @field_validator("binary", "models_dir", "llama_server", "rpc_server", mode="after")
    @classmethod
    def _on_that_machine(cls, text: str, info: ValidationInfo) -> str:
        """`~` and relative paths mean this machine's only where the node is this machine."""
        return _path(text, info) if info.data.get("local") else _path_there(text)

    @field_validator("directory", mode="after")
    @classmethod
    def _directory_there(cls, directory: str) -> str:
        return _path_there(directory)

    @model_validator(mode="after")
    def _one_place(self) -> NodeConfig:
        if self.local and self.host:
            raise ValueError("expected either local = true or host, got both")
        if self.simulated is not None and self.engine != "simulated":
            raise ValueError(
                f'expected engine = "simulated" beside the table simulated, got "{self.engine}"'
            )
        return self


class EnginesConfig(_Table):
    """Where engines come from when a node has none."""

    ollama_archive: ArchiveSource = ""
    """Path or URL of an Ollama release (`.tgz`, `.tar.zst`) with its `sha256sum.txt` beside it;
    `{arch}` stands for amd64 or arm64. Fetched by the console, never by a node."""
    llama_server: str = ""
    """llama.cpp's program for heads of splits on every node, or its directory."""
    rpc_server: str = ""
    llama_archive: ArchiveSource = ""
    """Path or URL of llama.cpp's programs for splits (`.tar.gz`, `.tgz`, `.tar.zst`): llama-server
    and ggml-rpc-server with their .so files; `{arch}` as above. Uploaded where it is wanted."""
    llama_build: Annotated[bool | str, BeforeValidator(_source)] = False
    """Build them on the nodes: true from the package index's source, or path or URL of another."""
    llama_sha256: Annotated[str, AfterValidator(_sha256)] = ""
    """Of that archive or source, in place of a `sha256sum.txt` beside it."""

    @model_validator(mode="after")
    def _one_way(self) -> EnginesConfig:
        if self.llama_archive and self.llama_build:
            raise _problem(
                "expected either llama_archive or llama_build, got both", "engines", "llama_build"
            )
        if self.llama_sha256 and not self.llama_archive and not isinstance(self.llama_build, str):
            told = "expected llama_archive or the source's path as llama_build beside it, got none"
            raise _problem(told, "engines", "llama_sha256")
        if self.llama_sha256 and "{arch}" in self.llama_archive:
            told = "expected no hash of one file beside several (llama_archive has {arch})"
            raise _problem(told, "engines", "llama_sha256")
        return self


class SplitConfig(_Table):
    """Models over several devices."""

    mesh: Literal["ssh", "relay", "direct"] = "ssh"
    """How a head reaches workers on other nodes: SSH from node to node, through this console,
    or openly on a network that you declare trusted."""
    keep_alive_s: Annotated[float, Field(gt=0)] = 300.0
    """Idle time after which a split gives its devices back."""


class EndpointConfig(_Table):
    """An Ollama that somebody else runs: used, never managed."""

    url: Annotated[str, AfterValidator(_url)]
    slots: Count = 4
    vram: Vram | None = None


class ModelConfig(_Table):
    """What is special about a model: `[models."gemma3:270m"]`."""

    path: FilePath = ""
    """A GGUF file that gets this name."""
    policy: PolicyName | None = None
    """Instead of the gateway's."""
    split: Literal["auto", "never", "always"] = "auto"
    """Whether it may lie on several devices: where one is too small, never, or anyway."""
    chat_template: str = ""
    """Jinja text or the name of a llama.cpp template, in place of the file's own."""

    @model_validator(mode="after")
    def _says_something(self) -> ModelConfig:
        is_about_use = self.policy is not None or "split" in self.model_fields_set
        if not self.path and (self.chat_template or not is_about_use):
            raise ValueError("expected path = the model's GGUF file, a policy, or split")
        return self


class ClusterConfig(_Table):
    """The whole file."""

    name: Annotated[str, Field(min_length=1)] = "local"
    gateway: GatewayConfig = Field(default_factory=GatewayConfig)
    nodes: dict[Name, NodeConfig] = Field(default_factory=dict, validate_default=True)
    """None given: this machine, as `local`."""
    engines: EnginesConfig = Field(default_factory=EnginesConfig)
    endpoints: dict[Name, EndpointConfig] = Field(default_factory=dict)
    split: SplitConfig = Field(default_factory=SplitConfig)
    models: dict[str, ModelConfig] = Field(default_factory=dict)
    """Keys are canonical model names."""
    source: Path | None = None
    """The file it was read from; not a key of the file."""
    given: dict[str, Any] = Field(default_factory=dict)
    """What the command line said of `gateway`, which goes before the file; not a key of it."""

    @field_validator("nodes", mode="after")
    @classmethod
    def _this_machine(cls, nodes: dict[str, NodeConfig]) -> dict[str, NodeConfig]:
        """No node given: this machine. No host given: the name says it."""
        named = {
            name: node if node.local or node.host else node.model_copy(update={"host": name})
            for name, node in nodes.items()
        }
        return named or {"local": NodeConfig(local=True)}

    @field_validator("models", mode="after")
    @classmethod
    def _canonical_names(cls, models: dict[str, ModelConfig]) -> dict[str, ModelConfig]:
        named: dict[str, ModelConfig] = {}
        for name, model in models.items():
            if not name.strip():
                raise _problem(
                    'expected a model name such as "gemma3:270m", got ""', "models", name
                )
            if canonical(name) in named:
                told = f'expected each model once, got "{canonical(name)}" twice'
                raise _problem(told, "models", name)
            named[canonical(name)] = model
        return named

    @model_validator(mode="after")
    def _names_are_unique(self) -> ClusterConfig:
        if twice := sorted(self.nodes.keys() & self.endpoints.keys()):
            told = f'expected a name of its own, got that of the node "{twice[0]}"'
            raise _problem(told, "endpoints", twice[0])
        real = [name for name, node in self.nodes.items() if node.local and not node.simulated]
        if len(real) > 1:
            told = (
                f"expected one local node that is not simulated, got {' and '.join(real)}: "
                "they would share the same GPUs"
            )
            raise _problem(told, "nodes", real[1])
        return self
