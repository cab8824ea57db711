"""Signatures are what others verify, and the secrets behind them are kept."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.job import JobKey
from server.job_store import JobStore
from server.signatures import Signatures, standard_signature


@contextmanager
def signing(folder: Path) -> Iterator[Signatures]:
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    try:
        yield Signatures.of(store)
    finally:
        store.close()


def test_a_standard_signature_is_what_others_verify() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    now = int(datetime.now(UTC).timestamp())
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": str(now),
        "webhook-signature": standard_signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", now, body),
    }
    standardwebhooks.Webhook(secret).verify(body, headers)
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(secret).verify(body + b" ", headers)
    # The vector of the specification's own libraries.
    known = standard_signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert known == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_public_key_is_told_as_in_rfc_8037() -> None:
    """Its appendix A has a private key, the public one and its thumbprint."""
    private = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    signatures = Signatures(b"", b"", Ed25519PrivateKey.from_private_bytes(private))
    (key,) = signatures.jwks()["keys"]
    assert (key["kty"], key["crv"]) == ("OKP", "Ed25519")
    assert key["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert key["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_secrets_outlive_the_process_and_are_those_of_one_folder(tmp_path: Path) -> None:
    key = JobKey("replicate", "me", "j")

    def told(folder: Path) -> list[object]:
        folder.mkdir(exist_ok=True)
        with signing(folder) as signatures:
            return [signatures.secret_of(""), signatures.jwks()["keys"], signatures.token(key)]

    first = told(tmp_path / "one")
    assert told(tmp_path / "one") == first
    assert all(ours != theirs for ours, theirs in zip(first, told(tmp_path / "two"), strict=True))


def test_every_owner_and_every_job_has_its_own(tmp_path: Path) -> None:
    with signing(tmp_path) as signatures:
        assert len({signatures.secret_of(owner) for owner in ("", "me", "you")}) == 3
        keys = [JobKey("replicate", *names) for names in (("", "j"), ("me", "j"), ("mej", ""), ("me", "k"))]
        assert len({signatures.token(key) for key in keys}) == 4
