"""What lies in a release's folder, held against its certificate: tensors, configuration, base model.

The first thing that differs is named; a tensor by its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cli.documents import ADAPTER, CONFIG, MANIFEST, error, read, section
from cli.i18n import _

_REPEATED = (
    *("trust", "unit", "relation", "cohort", "examples", "clip_norm", "noise_multiplier", "divisor"),
    *("adaptive_clip", "person"),
)
"""Terms that a claim repeats from its run's manifest."""


def bound(folder: Path, certificate: dict[str, Any]) -> list[str]:
    """Hold the folder's files, and the base model that is installed, against the certificate."""
    lines = require_bound(folder, certificate)
    base = section(section(certificate, "release"), "base_model")
    terms = _terms(folder, certificate)
    return [*lines, _("{name}: is the certified one", name=CONFIG), *terms, _base(base)]


def require_bound(folder: Path, certificate: dict[str, Any]) -> list[str]:
    """Refuse an adapter or a configuration that is not the certificate's."""
    release = section(certificate, "release")
    lines = _adapter(folder, release)
    _require_config(folder, release)
    return lines


def _adapter(folder: Path, release: dict[str, Any]) -> list[str]:
    """The tensors first, which tell more than the file's digest does."""
    from client.profile import file_sha256

    digest = file_sha256(folder / ADAPTER)
    certified, lines = release.get("tensors"), []
    if certified is not None:  # a certificate of version 2 has none
        _require_tensors(folder, certified)
        lines = [_("{count} tensors: are the certified ones", count=len(certified))]
    if release.get("adapter_sha256") != digest:
        raise error(
            "adapter_mismatch", _("the adapter in {folder} is not the certified one"), folder=str(folder)
        )
    return [_("adapter {digest}: is the certified one", digest=digest), *lines]


def _require_tensors(folder: Path, certified: Any) -> None:
    """Refuse the first tensor, in the order of names, that is missing, unknown, or another one."""
    from app.releases.tensors import NoTensorFile, tensor_digests

    if not isinstance(certified, list) or not all(isinstance(one, dict) for one in certified):
        raise error("certificate_invalid", _("the certificate does not say {member}"), member="tensors")
    try:
        with (folder / ADAPTER).open("rb") as file:
            found = {str(one["name"]): one for one in tensor_digests(file)}
    except NoTensorFile as failure:
        raise error(
            "adapter_mismatch",
            _("the adapter in {folder} is not readable: {why}"),
            folder=str(folder),
            why=str(failure),
        ) from failure
    wanted = {str(one.get("name")): one for one in certified}
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            raise error("tensor_mismatch", _("{tensor} is certified and not in the adapter"), tensor=name)
        if name not in wanted:
            raise error("tensor_mismatch", _("{tensor} is in the adapter and not certified"), tensor=name)
        if found[name] != wanted[name]:
            raise error("tensor_mismatch", _("{tensor} is not the certified one"), tensor=name)


def _require_config(folder: Path, release: dict[str, Any]) -> None:
    from app.core.canonical import canonical_sha256

    config, base = read(folder / CONFIG), section(release, "base_model")
    if config.get("base_model_name_or_path") != base.get("name"):
        raise error(
            "base_mismatch",
            _("{file} names the base model {found}; the certified one is {name}"),
            file=CONFIG,
            found=str(config.get("base_model_name_or_path")),
            name=str(base.get("name")),
        )
    if release.get("adapter_config_sha256") != canonical_sha256(config):
        raise error(
            "config_mismatch",
            _("{name} in {folder} is not the certified one"),
            name=CONFIG,
            folder=str(folder),
        )


def certified_manifest(folder: Path, certificate: dict[str, Any]) -> dict[str, Any]:
    """The run's manifest, which says what head the model has; refused unless it is the certified one."""
    from app.core.canonical import canonical_sha256

    if not (folder / MANIFEST).is_file():
        raise error("no_manifest", _("{path} holds no manifest: pull the release again"), path=str(folder))
    found = read(folder / MANIFEST)
    if canonical_sha256(found) != certificate.get("manifest_sha256"):
        raise error(
            "manifest_mismatch", _("the manifest in {path} is not the certified one"), path=str(folder)
        )
    if section(found, "base_model") != section(section(certificate, "release"), "base_model"):
        raise error("certificate_invalid", _("certificate and manifest name different base models"))
    return found


def _terms(folder: Path, certificate: dict[str, Any]) -> list[str]:
    """Refuse a claim whose terms are not those of the manifest, where the folder has it."""
    if not (folder / MANIFEST).is_file():
        return []
    planned = _planned(certified_manifest(folder, certificate))
    claim, release = section(certificate, "privacy"), section(certificate, "release")
    claim = (
        {"canaries": 0}
        | claim
        | {
            "rounds": release.get("rounds_planned"),
            "lora_method": release.get("lora_method"),
        }
    )
    differs = next((name for name, value in planned.items() if claim.get(name) != value), None)
    if claim.get("claimed") is True and differs is not None:
        raise error(
            "terms_differ", _("the certificate's {member} is not that of the manifest"), member=differs
        )
    return [_("{name}: is the certified one", name=MANIFEST)]


def _planned(manifest: dict[str, Any]) -> dict[str, Any]:
    """The terms of a manifest as a certificate's claim has to state them; what is drawn from them as well."""
    from app.runs.canaries import seated
    from app.runs.manifest import Manifest

    privacy = section(manifest, "privacy")
    try:
        plan = Manifest.model_validate(manifest)
    except ValueError as failure:
        raise error("terms_differ", _("the manifest is of a form that is not known here")) from failure
    return {name: privacy.get(name) for name in _REPEATED} | {
        "canaries": seated(manifest),
        "canaries_commitment": (privacy.get("audit") or {}).get("commitment"),
        "participations": (manifest.get("buffered") or {}).get("participations"),
        "rounds": manifest.get("rounds"),
        "steps": plan.steps,
        "lora_method": plan.lora.method,
    }


def _base(base: dict[str, Any]) -> str:
    """Compare the base model that is installed here, if it is."""
    from modelling.base import locate_base_model, weights_digest
    from modelling.errors import ModelRefused

    try:
        digest = weights_digest(locate_base_model(str(base.get("locator"))))
    except ModelRefused:
        return _("base model {name}: not installed here, so not compared", name=base.get("name"))
    if digest != base.get("weights_sha256"):
        raise error(
            "base_mismatch",
            _("the base model {name} that is installed here has other weights than the certified one"),
            name=str(base.get("name")),
        )
    return _("base model {name}: is the certified one", name=base.get("name"))
