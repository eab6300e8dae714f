"""https from PEM files, and new ones without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from olol_tui.config import FieldProblem, GatewayConfig, parse
from olol_tui.errors import ConfigError
from olol_tui.fleet.snapshot import Fleet
from olol_tui.gateway.gateway import Gateway
from olol_tui.gateway.tls import TlsFiles
from tests.contract.gateway_rig import HandFleet, engine_node
from tests.contract.sim_process import sim_engine

MODEL = "llama3.2:3b"


def make(directory: Path, name: str) -> tuple[bytes, bytes]:
    """(certificate, key) of 127.0.0.1, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    for path, content in zip((cert, key), make(tmp_path, "first"), strict=True):
        path.write_bytes(content)
    return cert, key


@contextlib.asynccontextmanager
async def served(files: tuple[Path, Path], address: str = "127.0.0.1:9") -> AsyncIterator[Gateway]:
    config = GatewayConfig(port=0, tls_cert=str(files[0]), tls_key=str(files[1]))
    gateway = Gateway(config, HandFleet(Fleet(nodes=(engine_node("n1", address, MODEL),))))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()


async def common_name(gateway: Gateway) -> str:
    """Of the certificate that a new connection gets."""
    port = int(gateway.address.rpartition(":")[2])
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    raw = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        await writer.wait_closed()
    names = x509.load_der_x509_certificate(raw).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value)


async def test_a_stream_comes_over_https(files: tuple[Path, Path]) -> None:
    async with sim_engine(load_bytes_s=1e12) as engine:
        await engine.load(MODEL)
        async with served(files, engine.address) as gateway:
            assert gateway.address.startswith("https://127.0.0.1:")
            context = ssl.create_default_context(cafile=str(files[0]))
            url = gateway.address.replace("127.0.0.1", "localhost")
            async with httpx.AsyncClient(verify=context, base_url=url, trust_env=False) as client:
                body = {"model": MODEL, "prompt": "a", "options": {"num_predict": 3}}
                reply = await client.post("/api/generate", json=body)
                assert '"done":true' in reply.text.splitlines()[-1]


async def test_plain_http_and_old_tls_are_refused(files: tuple[Path, Path]) -> None:
    async with served(files) as gateway:
        port = int(gateway.address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /api/tags HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"models" not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        assert (
            TlsFiles(str(files[0]), str(files[1])).context.minimum_version == ssl.TLSVersion.TLSv1_2
        )


async def test_new_files_are_used_without_a_restart_and_half_a_pair_is_not(
    files: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(files) as gateway:
        assert await common_name(gateway) == "first"
        new = make(tmp_path, "second")
        files[0].write_bytes(new[0])
        await asyncio.sleep(2.2)
        # Certificate and key do not fit now: the old pair still serves.
        assert await common_name(gateway) == "first"
        assert [r.message for r in caplog.records].count("the old TLS files stay in use") == 1
        files[1].write_bytes(new[1])
        async with asyncio.timeout(10):
            while await common_name(gateway) != "second":
                await asyncio.sleep(0.05)


async def test_other_files_are_looked_at_before_they_are_used(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    async with served(files) as gateway:
        settings = gateway.settings
        other = tmp_path / "other.pem", tmp_path / "other.key"
        config = settings.config.model_copy(
            update={"tls_cert": str(other[0]), "tls_key": str(other[1]), "max_body_bytes": 5}
        )
        with pytest.raises(FieldProblem, match="cannot be used") as caught:
            settings.prepare(config, gateway)
        assert caught.value.field == ("gateway", "tls_cert")
        assert gateway.limits.body_bytes != 5 and await common_name(gateway) == "first"
        for path, content in zip(other, make(tmp_path, "other"), strict=True):
            path.write_bytes(content)
        settle = settings.prepare(config, gateway)
        assert await common_name(gateway) == "first", "looked at, not used"
        assert settle() == ()
        assert gateway.limits.body_bytes == 5 and await common_name(gateway) == "other"
        plain = config.model_copy(update={"tls_cert": "", "tls_key": "", "port": 1})
        told = settings.prepare(plain, gateway)()
        assert any("plain http from the next start" in one for one in told)
        assert any("gateway.port = 1 holds from the next start" in one for one in told)
        assert await common_name(gateway) == "other"


@pytest.mark.parametrize("harm", ["missing", "nonsense", "other key"])
async def test_files_that_cannot_be_used_stop_the_start(
    files: tuple[Path, Path], tmp_path: Path, harm: str
) -> None:
    if harm == "missing":
        files[1].unlink()
    else:
        files[1].write_bytes(b"x" if harm == "nonsense" else make(tmp_path, "other")[1])
    with pytest.raises(ConfigError, match="cannot be used"):
        TlsFiles(str(files[0]), str(files[1]))


def test_one_of_the_two_is_a_mistake_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tls_cert and tls_key together"):
        parse(b'[gateway]\ntls_cert = "a.pem"\n', tmp_path / "cluster.toml")
