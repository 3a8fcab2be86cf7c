"""New keys for old ones: what is stored stays as it is, only its keys are wrapped anew.

Whoever had copied a former key and the rows under it keeps what they open; bytes whose key may be known to
others have to be put again.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from app.core.i18n import _
from app.custody import keys, wraps
from app.custody.errors import BlobDamaged
from app.custody.models import BlobKey, RegionKey, TenantKey
from app.custody.wraps import Root, WrapBroken


def rotate(session: Session, root: Root) -> int:
    """Give the region and each of its tenants a new key; returns of how many tenants.

    From now on everything new is under the new ones; `rewrap` moves what is there.
    """
    session.execute(
        sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"custody/{root.region}", 0)))
    )
    former = session.scalars(
        sa.select(TenantKey)
        .where(TenantKey.region == root.region, TenantKey.retired_at.is_(None))
        .with_for_update()
    ).all()
    for model in (RegionKey, TenantKey):
        session.execute(
            sa.update(model)
            .where(model.region == root.region, model.retired_at.is_(None))
            .values(retired_at=sa.func.now())
        )
    current = keys.region_key_of(session, root)
    oldest = sa.select(sa.func.min(RegionKey.since)).where(RegionKey.region == root.region)
    current.since = session.scalars(oldest).one()
    for tenant in sorted({key.tenant_id for key in former}):
        keys.tenant_key_of(session, root, tenant)
    return len(former)


def rewrap(session: Session, root: Root, *, most: int = 1000) -> int:
    """Wrap the keys of some objects under their tenants' current keys; returns how many there were.

    The objects themselves are not touched. Keys that nothing is wrapped under any more are deleted.
    """
    rows = session.execute(
        sa.select(BlobKey, TenantKey)
        .join(TenantKey, TenantKey.id == BlobKey.tenant_key_id)
        .where(TenantKey.region == root.region, TenantKey.retired_at.is_not(None))
        .order_by(BlobKey.object_id)
        .limit(most)
        .with_for_update(of=BlobKey, skip_locked=True)
    ).all()
    for row, tenant_key in rows:
        located = keys.located_at(row, keys.opened(session, root, tenant_key))
        current = keys.tenant_key_of(session, root, row.tenant_id)
        use = wraps.of_object(located.place, sha256=row.sha256, size_bytes=row.size_bytes)
        row.tenant_key_id, row.wrapped_key = (
            current.id,
            wraps.wrap(keys.opened(session, root, current), located.key, use),
        )
    moved = _rewrap_tenants(session, root)
    session.flush()
    if not rows and not moved:
        _drop_retired(session, root)
    return len(rows)


def _rewrap_tenants(session: Session, root: Root) -> int:
    """Wrap tenants' keys that are under a retired key of the region under its current one."""
    rows = session.execute(
        sa.select(TenantKey, RegionKey)
        .join(RegionKey, RegionKey.id == TenantKey.region_key_id)
        .where(TenantKey.region == root.region, RegionKey.retired_at.is_not(None))
        .with_for_update(of=TenantKey, skip_locked=True)
    ).all()
    for row, _former in rows:
        current = keys.region_key_of(session, root)
        use = wraps.of_tenant(row.tenant_id, row.id, row.region)
        key = keys.opened(session, root, row)
        row.region_key_id, row.wrapped_key = current.id, keys.wrapped_under(root, current, key, use)
    return len(rows)


def _drop_retired(session: Session, root: Root) -> None:
    """Delete retired keys that nothing is under. One that is used meanwhile makes this fail; it stays."""
    used_tenants = sa.select(BlobKey.tenant_key_id)
    session.execute(
        sa.delete(TenantKey).where(
            TenantKey.region == root.region,
            TenantKey.retired_at.is_not(None),
            TenantKey.id.not_in(used_tenants),
        )
    )
    used_regions = sa.select(TenantKey.region_key_id)
    session.execute(
        sa.delete(RegionKey).where(
            RegionKey.region == root.region,
            RegionKey.retired_at.is_not(None),
            RegionKey.id.not_in(used_regions),
        )
    )


def rewrap_regions(session: Session, former: Root, root: Root) -> int:
    """Move the region's keys from a former root to the present one; returns how many."""
    rows = session.scalars(
        sa.select(RegionKey).where(RegionKey.region == root.region).with_for_update()
    ).all()
    for row in rows:
        try:
            row.wrapped_key = root.wrap(row.id, former.unwrap(row.id, row.wrapped_key))
        except WrapBroken as error:
            raise BlobDamaged(_("the former root is not the one of this region's keys")) from error
    return len(rows)
