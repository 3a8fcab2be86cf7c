"""The rows of keys: made where missing, found with what opens them, and deleted for good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.core.envelope import Place
from app.core.i18n import _
from app.core.ids import new_id
from app.custody import wraps
from app.custody.errors import BlobDamaged, BlobGone, WrongRegion
from app.custody.models import BlobKey, RegionKey, TenantKey
from app.custody.wraps import Root, WrapBroken


class BlobRef(NamedTuple):
    """How everybody names stored bytes: whose they are, and the SHA-256 of the plain bytes, in hex."""

    tenant: UUID
    sha256: str


@dataclass(frozen=True, slots=True)
class Located:
    """An object and what opens it."""

    place: Place
    key: bytes = field(repr=False)
    sha256: str
    size_bytes: int


def keep(session: Session, root: Root, located: Located) -> UUID:
    """Note an object that is in the store; returns the one that is now kept for these bytes.

    That is another where the tenant has had the same bytes before: they are only seen to have come again.
    """
    place = located.place
    tenant_key = tenant_key_of(session, root, place.tenant)
    use = wraps.of_object(place, sha256=located.sha256, size_bytes=located.size_bytes)
    kept: UUID | None = session.scalar(
        insert(BlobKey)
        .values(
            object_id=place.object_id,
            tenant_id=place.tenant,
            region=place.region,
            tenant_key_id=tenant_key.id,
            sha256=located.sha256,
            size_bytes=located.size_bytes,
            wrapped_key=wraps.wrap(opened(session, root, tenant_key), located.key, use),
        )
        .on_conflict_do_update(
            index_elements=[BlobKey.tenant_id, BlobKey.region, BlobKey.sha256],
            set_={"put_at": sa.func.clock_timestamp()},
        )
        .returning(BlobKey.object_id)
    )
    if kept is None:
        raise RuntimeError("an upsert answered without its row")
    return kept


def find(session: Session, root: Root, refs: Sequence[BlobRef]) -> list[Located]:
    """What opens these bytes, in their order.

    Raises:
        BlobGone: there is no key for one of them.
        WrongRegion: one is kept in another region only.
        BlobDamaged: a wrapped key is not what was stored.
    """
    rows = session.execute(
        sa.select(BlobKey, TenantKey)
        .join(TenantKey, TenantKey.id == BlobKey.tenant_key_id)
        .where(sa.tuple_(BlobKey.tenant_id, BlobKey.sha256).in_({(ref.tenant, ref.sha256) for ref in refs}))
        .execution_options(populate_existing=True)
    ).all()
    keys: dict[UUID, bytes] = {}
    found: dict[BlobRef, Located] = {}
    elsewhere = {BlobRef(row.tenant_id, row.sha256) for row, _key in rows if row.region != root.region}
    for row, tenant_key in rows:
        if row.region == root.region:
            if tenant_key.id not in keys:
                keys[tenant_key.id] = opened(session, root, tenant_key)
            found[BlobRef(row.tenant_id, row.sha256)] = located_at(row, keys[tenant_key.id])
    for ref in refs:
        if ref not in found:
            raise (
                WrongRegion(_("the bytes are kept in another region"))
                if ref in elsewhere
                else BlobGone(_("there are no such bytes, or they were erased"))
            )
    return [found[ref] for ref in refs]


def located_at(row: BlobKey, tenant_key: bytes) -> Located:
    """An object and its key out of its row; raises BlobDamaged."""
    place = Place(row.tenant_id, row.object_id, row.region)
    use = wraps.of_object(place, sha256=row.sha256, size_bytes=row.size_bytes)
    try:
        key = wraps.unwrap(tenant_key, row.wrapped_key, use)
    except WrapBroken as error:
        raise BlobDamaged(_("the key of the bytes does not open")) from error
    return Located(place, key, row.sha256, row.size_bytes)


def _ago(seconds: float) -> sa.ColumnElement[datetime]:
    return sa.func.clock_timestamp() - timedelta(seconds=seconds)


def forget(session: Session, root: Root, ref: BlobRef, *, min_age_s: float) -> UUID | None:
    """Delete a key for good, unless the bytes came within the last `min_age_s` seconds; its object."""
    gone: UUID | None = session.scalar(
        sa.delete(BlobKey)
        .where(
            BlobKey.tenant_id == ref.tenant,
            BlobKey.sha256 == ref.sha256,
            BlobKey.region == root.region,
            BlobKey.put_at <= _ago(min_age_s),
        )
        .returning(BlobKey.object_id)
    )
    return gone


def young(session: Session, root: Root, refs: Iterable[BlobRef], *, within_s: float) -> set[BlobRef]:
    """Those that came within the last `within_s` seconds."""
    rows = session.execute(
        sa.select(BlobKey.tenant_id, BlobKey.sha256).where(
            sa.tuple_(BlobKey.tenant_id, BlobKey.sha256).in_({(ref.tenant, ref.sha256) for ref in refs}),
            BlobKey.region == root.region,
            BlobKey.put_at > _ago(within_s),
        )
    )
    return {BlobRef(tenant, sha256) for tenant, sha256 in rows}


def readable(session: Session, refs: Iterable[BlobRef]) -> set[BlobRef]:
    """Those that have a key somewhere; the others were erased."""
    rows = session.execute(
        sa.select(BlobKey.tenant_id, BlobKey.sha256).where(
            sa.tuple_(BlobKey.tenant_id, BlobKey.sha256).in_({(ref.tenant, ref.sha256) for ref in refs})
        )
    )
    return {BlobRef(tenant, sha256) for tenant, sha256 in rows}


def known(session: Session, object_ids: Iterable[UUID]) -> set[UUID]:
    """Those objects that have a key."""
    return set(session.scalars(sa.select(BlobKey.object_id).where(BlobKey.object_id.in_(set(object_ids)))))


def since(session: Session) -> datetime | None:
    """From when on these tables know every object; None: they know of none."""
    oldest: datetime | None = session.scalar(sa.select(sa.func.min(RegionKey.since)))
    return oldest


def shred(session: Session, tenant: UUID) -> list[UUID]:
    """Delete every key of a tenant in every region: nothing of theirs is readable any more, anywhere.

    Returns the objects, whose sealed bytes may be deleted when the transaction is committed.
    """
    session.execute(sa.select(TenantKey.id).where(TenantKey.tenant_id == tenant).with_for_update())
    gone = sa.delete(BlobKey).where(BlobKey.tenant_id == tenant).returning(BlobKey.object_id)
    objects = list(session.scalars(gone))
    session.execute(sa.delete(TenantKey).where(TenantKey.tenant_id == tenant))
    return objects


def opened(session: Session, root: Root, row: TenantKey) -> bytes:
    """A tenant's key in the clear; raises WrongRegion, BlobDamaged."""
    if row.region != root.region:
        raise WrongRegion(_("the bytes are kept in another region"))
    region_key = session.get_one(RegionKey, row.region_key_id)
    use = wraps.of_tenant(row.tenant_id, row.id, row.region)
    try:
        return wraps.unwrap(root.unwrap(region_key.id, region_key.wrapped_key), row.wrapped_key, use)
    except WrapBroken as error:
        raise BlobDamaged(_("the key of the bytes does not open")) from error


def tenant_key_of(session: Session, root: Root, tenant: UUID) -> TenantKey:
    """A tenant's current key, made where there is none; held against its deletion until the end."""
    statement = (
        sa.select(TenantKey)
        .where(TenantKey.tenant_id == tenant, TenantKey.region == root.region, TenantKey.retired_at.is_(None))
        .with_for_update(key_share=True, read=True)
    )
    row = session.scalar(statement)
    if row is not None:
        return row
    region_key = region_key_of(session, root)
    key_id = new_id()
    session.execute(
        insert(TenantKey)
        .values(
            id=key_id,
            tenant_id=tenant,
            region=root.region,
            region_key_id=region_key.id,
            wrapped_key=wrapped_under(
                root, region_key, wraps.new_key(), wraps.of_tenant(tenant, key_id, root.region)
            ),
        )
        .on_conflict_do_nothing()
    )
    return session.scalars(statement).one()


def wrapped_under(root: Root, region_key: RegionKey, key: bytes, use: bytes) -> bytes:
    """Wrap a key under a region's; raises BlobDamaged where that is under another root."""
    try:
        return wraps.wrap(root.unwrap(region_key.id, region_key.wrapped_key), key, use)
    except WrapBroken as error:
        raise BlobDamaged(_("the key of the region does not open: it has another root")) from error


def region_key_of(session: Session, root: Root) -> RegionKey:
    """The region's current key, made where there is none."""
    statement = (
        sa.select(RegionKey)
        .where(RegionKey.region == root.region, RegionKey.retired_at.is_(None))
        .with_for_update(key_share=True, read=True)
    )
    row = session.scalar(statement)
    if row is not None:
        return row
    key_id = new_id()
    session.execute(
        insert(RegionKey)
        .values(id=key_id, region=root.region, wrapped_key=root.wrap(key_id, wraps.new_key()))
        .on_conflict_do_nothing()
    )
    return session.scalars(statement).one()
