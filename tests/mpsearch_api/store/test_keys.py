"""API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from mpsearch.errors import InputError, UnknownNameError
from mpsearch_api.store import Store
from mpsearch_api.store.contract import SetClock
from mpsearch_api.store.keys import Keys
from mpsearch_api.store.tables import keys as table


@pytest.fixture
def keys(clocked_store: Store) -> Keys:
    return clocked_store.keys


def test_a_token_is_checked_and_tells_who_asks(keys: Keys) -> None:
    record, token = keys.create("laptop", ["write", "trusted"])
    principal = keys.check(token)
    assert principal is not None
    assert (principal.key_id, principal.tenant) == (record.id, record.tenant)
    assert principal.scopes == {"read", "write", "trusted"}
    assert not principal.open_mode
    assert record.scopes == ("write", "trusted")


@pytest.mark.parametrize(
    ("given_scopes", "allowed"),
    [
        (["read"], {"read"}),
        (["write"], {"read", "write"}),
        (["admin"], {"read", "write", "admin"}),
        (["trusted"], {"trusted"}),
    ],
)
def test_scopes_imply_the_smaller_ones(keys: Keys, given_scopes, allowed) -> None:
    _, token = keys.create("k", given_scopes)
    assert keys.check(token).scopes == allowed


def test_the_secret_is_nowhere_in_the_database(clocked_store: Store) -> None:
    _, token = clocked_store.keys.create("k", ["read"])
    secret = token.rpartition("_")[2]
    assert len(bytes.fromhex(secret)) == 32
    with clocked_store.database.read() as connection:
        rows = connection.execute(select(table)).all()
    assert secret not in repr(rows)
    assert secret not in repr(clocked_store.keys.list())


def test_every_key_is_a_tenant_of_its_own_unless_told(keys: Keys) -> None:
    first, _ = keys.create("a", ["read"])
    second, _ = keys.create("b", ["read"])
    assert first.tenant != second.tenant
    shared, token = keys.create("c", ["read"], tenant=first.tenant)
    assert keys.check(token).tenant == shared.tenant == first.tenant


def test_an_expired_key_is_none(keys: Keys, clock: SetClock) -> None:
    end = datetime.fromtimestamp(clock.now, UTC) + timedelta(hours=1)
    record, token = keys.create("k", ["read"], end)
    assert record.expires == end
    clock.advance(3599)
    assert keys.check(token) is not None
    clock.advance(1)
    assert keys.check(token) is None


def test_a_revoked_key_is_none_at_once(keys: Keys) -> None:
    record, token = keys.create("k", ["read"])
    _, other = keys.create("k", ["read"])
    assert keys.revoke(record.id)
    assert keys.check(token) is None
    assert keys.check(other) is not None
    assert not keys.revoke(record.id)
    assert not keys.revoke("key_00000000000000000000000000")
    assert not keys.revoke("\0")
    assert {key.id for key in keys.list() if key.revoked is not None} == {record.id}


def test_a_key_with_anothers_secret_is_none(keys: Keys) -> None:
    _, first = keys.create("a", ["read"])
    _, second = keys.create("b", ["read"])
    mixed = first.rpartition("_")[0] + "_" + second.rpartition("_")[2]
    assert keys.check(mixed) is None


@given(token=st.text(max_size=120))
@settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_other_text_is_a_token(keys: Keys, token: str) -> None:
    assert keys.check(token) is None
    assert keys.check(f"mps_{'0' * 26}_{'0' * 64}") is None


def test_open_mode_ends_with_the_first_key(keys: Keys) -> None:
    assert not keys.any()
    record, _ = keys.create("k", ["read"])
    assert keys.any()
    keys.revoke(record.id)
    assert keys.any()


def test_what_makes_no_key_is_refused(keys: Keys, clock: SetClock) -> None:
    with pytest.raises(UnknownNameError, match="wirte"):
        keys.create("k", ["wirte"])
    with pytest.raises(InputError, match="needs a scope"):
        keys.create("k", [])
    with pytest.raises(InputError, match="characters"):
        keys.create(" ", ["read"])
    with pytest.raises(InputError, match="tenant"):
        keys.create("k", ["read"], tenant="../x")
    with pytest.raises(InputError, match="time zone"):
        keys.create("k", ["read"], datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(InputError, match="past"):
        keys.create("k", ["read"], datetime.fromtimestamp(clock.now, UTC))
    assert keys.list() == []
