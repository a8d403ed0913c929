from __future__ import annotations

import base64
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OKPKey, RSAKey

from vauban.access.jwt import MAX_TOKEN_CHARS, JwtVerifier, parse_jwks
from vauban.access.refusal import CredentialRefused, Refusal
from vauban.errors import ConfigError
from vauban.policy import IdentityPolicy
from vauban.types import PrincipalKind, RateLimit

pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")

ISSUER = "https://id.example"
AUDIENCE = "vauban"
NOW = 1_800_000_000.0

RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
STRANGER = RSAKey.generate_key(2048, {"kid": "rsa"})


def jwks_of(*keys: Key) -> bytes:
    return json.dumps({"keys": [key.as_dict(private=False) for key in keys]}).encode()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def policy_of(path: Path, **fields: Any) -> IdentityPolicy:
    return IdentityPolicy(
        **{"jwks_file": path, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **fields}
    )


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> JwtVerifier:
    path = tmp_path_factory.mktemp("jwks") / "jwks.json"
    write(path, jwks_of(RSA, EC, ED))
    policy = policy_of(path, requests_per_min=5)
    return JwtVerifier(policy, monotonic=lambda: 0.0)


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims; a change to None removes the claim."""
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "iat": int(NOW) - 10,
        "exp": int(NOW) + 600,
        "scope": "chat feature:tools",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def token(
    payload: dict[str, Any] | None = None,
    *,
    key: Key = RSA,
    alg: str = "RS256",
    **header: Any,
) -> str:
    head = {"alg": alg, "kid": key.kid, **header}
    return jwt.encode(head, claims() if payload is None else payload, key, algorithms=[alg])


def encode(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def resigned(header: object, payload: object) -> str:
    """A token whose RS256 signature is right for whatever header and payload it has."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    signing_input = f"{encode(header)}.{encode(payload)}"
    private = RSA.private_key
    assert private is not None
    signature = private.sign(signing_input.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signing_input}.{encode(signature)}"


def reason_of(verifier: JwtVerifier, text: str, now: float = NOW) -> Refusal:
    with pytest.raises(CredentialRefused) as caught:
        verifier.verify(text, now)
    # Neither the message nor what it was raised from may repeat the token.
    assert str(caught.value) == caught.value.reason.value
    assert caught.value.__cause__ is None
    return caught.value.reason


@pytest.mark.parametrize(
    ("key", "alg"),
    [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA"), (ED, "Ed25519")],
)
def test_good_tokens_of_every_algorithm(verifier: JwtVerifier, key: Key, alg: str) -> None:
    principal = verifier.verify(token(key=key, alg=alg), NOW)
    assert principal.kind is PrincipalKind.JWT
    assert principal.scopes == {"chat", "feature:tools"}
    assert principal.limit == RateLimit(5, None)
    assert principal.id.startswith("jwt:")
    assert "alice" not in principal.id


def test_ids_are_stable_and_differ_by_subject(verifier: JwtVerifier) -> None:
    ids = [
        verifier.verify(resigned({"alg": "RS256", "kid": "rsa"}, claims(sub=sub, jti=jti)), NOW).id
        for sub, jti in (("alice", "1"), ("alice", "2"), ("bob", "3"), ("\ud800", "4"))
    ]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("chat openid profile", {"chat"}),
        (["chat", "models", 5, None], {"chat", "models"}),
        ("", set()),
        (None, set()),
        (7, set()),
        ({"chat": True}, set()),
        ("*", {"*"}),
        ("prompt:system", {"prompt:system"}),
    ],
)
def test_scopes_of_a_token(verifier: JwtVerifier, scope: object, expected: set[str]) -> None:
    assert verifier.verify(token(claims(scope=scope)), NOW).scopes == expected


def test_another_claim_can_hold_the_scopes(tmp_path: Path) -> None:
    write(tmp_path / "jwks", jwks_of(RSA))
    policy = policy_of(tmp_path / "jwks", jwt_scope_claim="roles")
    principal = JwtVerifier(policy, monotonic=lambda: 0.0).verify(
        token(claims(roles=["models"])), NOW
    )
    assert principal.scopes == {"models"}


@pytest.mark.parametrize(
    ("claimed", "service", "group"),
    [
        ({"app": True, "tenant": "acme"}, True, "acme"),
        ({"app": "true", "tenant": 5}, False, ""),
        ({"app": 1, "tenant": ["acme"]}, False, ""),
        ({"tenant": ""}, False, ""),
        ({}, False, ""),
    ],
)
def test_services_and_groups_by_claim(
    tmp_path: Path, claimed: dict[str, Any], service: bool, group: str
) -> None:
    write(tmp_path / "jwks", jwks_of(RSA))
    policy = policy_of(tmp_path / "jwks", jwt_service_claim="app", jwt_group_claim="tenant")
    principal = JwtVerifier(policy, monotonic=lambda: 0.0).verify(token(claims(**claimed)), NOW)
    assert (principal.service, principal.group) == (service, group)


def test_a_group_that_can_not_be_logged_is_named_by_its_hash(
    tmp_path: Path, verifier: JwtVerifier
) -> None:
    write(tmp_path / "jwks", jwks_of(RSA))
    policy = policy_of(tmp_path / "jwks", jwt_group_claim="tenant")
    judge = JwtVerifier(policy, monotonic=lambda: 0.0)
    odd = [
        judge.verify(token(claims(tenant=name)), NOW).group
        for name in ("a\nb", "a\nb", "\x1b[31m", "g" * 500)
    ]
    assert odd[0] == odd[1]
    assert len(set(odd)) == 3
    assert all(group.startswith("sha256:") and len(group) == 39 for group in odd)
    assert verifier.verify(token(claims(tenant="acme")), NOW).group == ""


def unsigned(alg: str) -> str:
    return f"{encode({'alg': alg, 'kid': 'rsa'})}.{encode(claims())}."


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
def test_unsigned_tokens(verifier: JwtVerifier, alg: str) -> None:
    assert reason_of(verifier, unsigned(alg)) is Refusal.BAD_HEADER


@pytest.mark.parametrize("form", ["PEM", "DER", "jwks"])
def test_the_public_key_as_hmac_secret(verifier: JwtVerifier, form: str) -> None:
    secret = {
        "PEM": RSA.as_pem(private=False),
        "DER": RSA.as_der(private=False),
        "jwks": jwks_of(RSA),
    }[form]
    signing_input = f"{encode({'alg': 'HS256', 'kid': 'rsa'})}.{encode(claims())}"
    mac = hmac.digest(secret, signing_input.encode(), "sha256")
    assert reason_of(verifier, f"{signing_input}.{encode(mac)}") is Refusal.BAD_HEADER


@pytest.mark.parametrize("alg", ["HS512", "RS1", "RS512", "ES256K", "RSA-OAEP", "dir"])
def test_other_algorithms(verifier: JwtVerifier, alg: str) -> None:
    assert reason_of(verifier, resigned({"alg": alg, "kid": "rsa"}, claims())) is Refusal.BAD_HEADER


@pytest.mark.parametrize(
    "header",
    [
        {"jwk": STRANGER.as_dict(private=False)},
        {"jku": "https://evil.example/jwks.json"},
        {"x5u": "https://evil.example/cert.pem"},
        {"x5c": ["MIIB"]},
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": 5},
        {"crit": ["b64"], "b64": False},
        {"b64": True},
        {"typ": "logout+jwt"},
        {"typ": "dpop+jwt"},
        {"typ": 5},
        {"kid": 5},
        {"kid": None},
        {"kid": ["rsa"]},
        {"alg": ["RS256"]},
        {"alg": None},
        {"alg": {}},
    ],
)
def test_headers_that_are_refused_under_a_good_signature(
    verifier: JwtVerifier, header: dict[str, Any]
) -> None:
    text = resigned({"alg": "RS256", "kid": "rsa", **header}, claims())
    assert reason_of(verifier, text) in (Refusal.BAD_HEADER, Refusal.MALFORMED)


@pytest.mark.parametrize(
    "header", [{}, {"typ": "JWT"}, {"typ": "at+jwt"}, {"x-new": 1, "cty": "a"}]
)
def test_headers_that_do_no_harm(verifier: JwtVerifier, header: dict[str, Any]) -> None:
    assert verifier.verify(resigned({"alg": "RS256", "kid": "rsa", **header}, claims()), NOW)


@pytest.mark.parametrize(
    "kid",
    [
        "nobody",
        "",
        "../../../../dev/null",
        "rsa' OR '1'='1",
        "rsa\x00",
        "/proc/self/environ",
        "http://evil.example/key",
        "ec",
        "ed",
        "*",
    ],
)
def test_kid_is_a_name_in_the_jwks_and_nothing_else(verifier: JwtVerifier, kid: str) -> None:
    text = resigned({"alg": "RS256", "kid": kid}, claims())
    assert reason_of(verifier, text) is Refusal.BAD_SIGNATURE


def test_a_missing_kid_is_fine_only_with_one_key(verifier: JwtVerifier, tmp_path: Path) -> None:
    text = resigned({"alg": "RS256"}, claims())
    assert reason_of(verifier, text) is Refusal.BAD_SIGNATURE
    write(tmp_path / "jwks", jwks_of(RSA))
    assert JwtVerifier(policy_of(tmp_path / "jwks"), monotonic=lambda: 0.0).verify(text, NOW)


def test_another_signer_with_the_same_kid(verifier: JwtVerifier) -> None:
    assert reason_of(verifier, token(key=STRANGER)) is Refusal.BAD_SIGNATURE


def test_changed_and_cut_tokens(verifier: JwtVerifier) -> None:
    head, body, signature = token().split(".")
    other = encode(claims(sub="root"))
    refused = (Refusal.BAD_SIGNATURE, Refusal.MALFORMED)
    assert reason_of(verifier, f"{head}.{other}.{signature}") in refused
    assert reason_of(verifier, f"{head}.{body}.") in refused
    assert reason_of(verifier, f"{head}..{signature}") in refused
    assert reason_of(verifier, f"{head}.{body}.{signature}=") in refused
    assert reason_of(verifier, f"{head}.{body}.{signature[:-4]}") in refused
    assert reason_of(verifier, f"{head}.{body}.{signature}.{signature}") in refused


def test_the_zero_signature_of_ecdsa(verifier: JwtVerifier) -> None:
    text = f"{encode({'alg': 'ES256', 'kid': 'ec'})}.{encode(claims())}.{encode(bytes(64))}"
    assert reason_of(verifier, text) is Refusal.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"exp": None}, Refusal.BAD_CLAIMS),
        ({"exp": int(NOW)}, Refusal.EXPIRED),
        ({"exp": int(NOW) - 1}, Refusal.EXPIRED),  # the leeway is not for the end
        ({"exp": int(NOW) - 3600}, Refusal.EXPIRED),
        ({"exp": str(int(NOW) + 600)}, Refusal.BAD_CLAIMS),
        ({"exp": True}, Refusal.BAD_CLAIMS),
        ({"exp": [int(NOW) + 600]}, Refusal.BAD_CLAIMS),
        ({"exp": float("nan")}, Refusal.BAD_CLAIMS),
        ({"exp": float("inf")}, Refusal.BAD_CLAIMS),
        ({"nbf": int(NOW) + 31}, Refusal.BAD_CLAIMS),
        ({"iat": int(NOW) + 31}, Refusal.BAD_CLAIMS),
        ({"aud": None}, Refusal.BAD_CLAIMS),
        ({"aud": "other"}, Refusal.BAD_CLAIMS),
        ({"aud": ["other"]}, Refusal.BAD_CLAIMS),
        ({"aud": []}, Refusal.BAD_CLAIMS),
        ({"aud": {"vauban": 1}}, Refusal.BAD_CLAIMS),
        ({"aud": AUDIENCE.upper()}, Refusal.BAD_CLAIMS),
        ({"iss": None}, Refusal.BAD_CLAIMS),
        ({"iss": ISSUER + "/"}, Refusal.BAD_CLAIMS),
        ({"iss": [ISSUER]}, Refusal.BAD_CLAIMS),
        ({"sub": None}, Refusal.BAD_CLAIMS),
        ({"sub": ""}, Refusal.BAD_CLAIMS),
        ({"sub": 5}, Refusal.BAD_CLAIMS),
    ],
)
def test_claims_that_are_refused(
    verifier: JwtVerifier, change: dict[str, Any], reason: Refusal
) -> None:
    assert reason_of(verifier, token(claims(**change))) is reason


@pytest.mark.parametrize(
    "change", [{"nbf": int(NOW) + 30}, {"iat": int(NOW) + 30}, {"aud": ["other", AUDIENCE]}]
)
def test_claims_within_tolerance(verifier: JwtVerifier, change: dict[str, Any]) -> None:
    assert verifier.verify(token(claims(**change)), NOW)


@pytest.mark.parametrize("payload", [[], "text", 5, None, b"{", b"\xff", b"[" * 3000, b"1" * 5000])
def test_payloads_that_are_no_claims(verifier: JwtVerifier, payload: object) -> None:
    text = resigned({"alg": "RS256", "kid": "rsa"}, payload)
    assert reason_of(verifier, text) is Refusal.BAD_CLAIMS


@pytest.mark.parametrize("header", [[], "alg b64", 5, None, ["alg"], b"{", b"[" * 1500, b"\xff"])
def test_headers_that_are_no_objects(verifier: JwtVerifier, header: object) -> None:
    refused = (Refusal.MALFORMED, Refusal.BAD_HEADER)
    assert reason_of(verifier, resigned(header, claims())) in refused


def test_oversized_tokens_are_not_parsed(
    verifier: JwtVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resigned({"alg": "RS256", "kid": "rsa"}, claims(pad="a" * MAX_TOKEN_CHARS))

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("parsed")

    monkeypatch.setattr("joserfc.jws.extract_compact", fail)
    assert reason_of(verifier, text) is Refusal.MALFORMED
    assert reason_of(verifier, "a" * 10_000_000) is Refusal.MALFORMED


@given(text=st.one_of(st.text(max_size=200), st.from_regex(r"[\w-]*(\.[\w-]*){2}", fullmatch=True)))
def test_garbage(verifier: JwtVerifier, text: str) -> None:
    with pytest.raises(CredentialRefused):
        verifier.verify(text, NOW)


def test_the_jwks_follows_changes_and_fails_closed(tmp_path: Path, clock) -> None:
    path = tmp_path / "jwks"
    write(path, jwks_of(RSA))
    verifier = JwtVerifier(policy_of(path), monotonic=clock)
    text = token()
    assert verifier.verify(text, NOW)
    write(path, jwks_of(EC, ED))
    clock.advance(1)
    assert reason_of(verifier, text) is Refusal.BAD_SIGNATURE
    write(path, b"{")
    clock.advance(1)
    assert reason_of(verifier, text) is Refusal.STORE_UNUSABLE
    write(path, jwks_of(RSA, EC))
    clock.advance(1)
    assert verifier.verify(text, NOW)


@pytest.mark.parametrize("missing", ["jwt_issuer", "jwt_audience"])
@pytest.mark.parametrize("value", [None, ""])
def test_issuer_and_audience_are_required(tmp_path: Path, missing: str, value: str | None) -> None:
    write(tmp_path / "jwks", jwks_of(RSA))
    with pytest.raises(ConfigError, match=missing):
        JwtVerifier(policy_of(tmp_path / "jwks", **{missing: value}), monotonic=lambda: 0.0)


def keys(*members: object) -> bytes:
    return json.dumps({"keys": list(members)}).encode()


WEAK = {"kty": "RSA", "e": "AQAB", "n": encode(b"\xc1" + b"\x01" * 127)}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"\xff",
        keys(),
        keys("text"),
        keys({}),
        keys({"kty": "oct", "k": "c2VjcmV0"}),
        keys(EC.as_dict(private=False), {"kty": "oct", "k": "c2VjcmV0"}),
        keys(RSA.as_dict(private=True)),
        keys(ED.as_dict(private=True)),
        keys({"kty": "RSA", "n": "AQAB"}),
        keys({"kty": "RSA", "n": 5, "e": "AQAB"}),
        keys({"kty": "RSA", "n": "%%%", "e": "AQAB"}),
        keys({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}),
        keys({"kty": "EC", "crv": "P-999", "x": "AAAA", "y": "AAAA"}),
        keys({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
        keys(RSA.as_dict(private=False), STRANGER.as_dict(private=False)),  # one kid, two keys
        keys({**RSA.as_dict(private=False), "use": "enc"}),
        keys({"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"}),
        keys(*({"kty": "new"} for _ in range(101))),
        pytest.param(keys(WEAK), marks=pytest.mark.filterwarnings("ignore:Key size")),
    ],
)
def test_a_jwks_that_can_not_be_trusted(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_jwks(data)
    assert "c2VjcmV0" not in str(caught.value)


def test_keys_of_unknown_type_or_for_encryption_are_left_out() -> None:
    data = keys(
        {"kty": "AKP", "kid": "new"},
        {**RSA.as_dict(private=False), "use": "enc", "kid": "e"},
        EC.as_dict(private=False),
    )
    assert [key.kid for key in parse_jwks(data).keys] == ["ec"]
