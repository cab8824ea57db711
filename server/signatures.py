"""What this server signs, with secrets that are made once and kept in its data directory.

Webhook calls, after Standard Webhooks and as fal signs its own, and the addresses of streams, which are asked
for without a key. `server.webhooks` and the dialects call this. Specifications: fal's is
https://docs.fal.ai/model-apis/model-endpoints/webhooks, the other one
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.job import JobKey
from server.job_store import Delivery, JobStore

NOBODY: Final = "anonymous"  # whose calls are signed where there are no keys
TOKEN_CHARS: Final = 32


@dataclass(frozen=True, slots=True)
class Signatures:
    """The secrets of one data directory: `webhooks` and `streams` for HMAC, `fal` for Ed25519."""

    webhooks: bytes
    streams: bytes
    fal: Ed25519PrivateKey

    @classmethod
    def of(cls, store: JobStore) -> "Signatures":
        """Return those that an open store keeps; raises `StorageUnavailable`."""
        kept = {name: store.secret(name, secrets.token_hex(32)) for name in ("webhooks", "streams", "fal")}
        return cls(
            webhooks=kept["webhooks"].encode(),
            streams=kept["streams"].encode(),
            fal=Ed25519PrivateKey.from_private_bytes(bytes.fromhex(kept["fal"])),
        )

    def secret_of(self, owner: str) -> str:
        """Return the key that an owner's calls are signed with: nobody else signs as the server to them.

        All are derived from one.
        """
        return "whsec_" + base64.b64encode(hmac.digest(self.webhooks, owner.encode(), "sha256")).decode()

    def standard_headers(self, delivery: Delivery, body: bytes, *, now: float) -> dict[str, str]:
        """Return what signs a call after Standard Webhooks; `now` is Unix time."""
        secret = self.secret_of(delivery.job.key.owner)
        return {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now)),
            "webhook-signature": standard_signature(secret, delivery.id, int(now), body),
        }

    def fal_headers(self, delivery: Delivery, body: bytes, *, now: float) -> dict[str, str]:
        """Return what signs a call as fal does: with one key for all, whose public half is in `jwks`."""
        named = (delivery.job.key.id, delivery.job.key.owner or NOBODY, str(int(now)))
        signed = "\n".join((*named, hashlib.sha256(body).hexdigest()))
        return {
            "x-fal-webhook-request-id": named[0],
            "x-fal-webhook-user-id": named[1],
            "x-fal-webhook-timestamp": named[2],
            "x-fal-webhook-signature": self.fal.sign(signed.encode()).hex(),
        }

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public key of fal's signatures as a JSON Web Key Set (RFC 8037)."""
        public = _base64url(self.fal.public_key().public_bytes_raw())
        thumbprint = hashlib.sha256(f'{{"crv":"Ed25519","kty":"OKP","x":"{public}"}}'.encode())  # RFC 7638
        key = {"kty": "OKP", "crv": "Ed25519", "x": public, "alg": "EdDSA", "use": "sig"}
        return {"keys": [key | {"kid": _base64url(thumbprint.digest())}]}

    def token(self, key: JobKey) -> str:
        """Return what nobody can guess of a job, for an address that is asked for without a key."""
        named = "\0".join(key).encode()
        return hmac.digest(self.streams, named, "sha256").hex()[:TOKEN_CHARS]


def standard_signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` of a message; `secret` is `whsec_` and base64."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
