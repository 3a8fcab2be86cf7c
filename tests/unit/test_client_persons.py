"""Unit `person`: ids never leave, all of a person's records are one contribution, clipped once."""

import gzip
import hmac
import json
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from client import trainer
from client.dataset import read_examples
from client.errors import ClientError
from client.persons import PersonRule, Roll, silo_key
from client.plan import TrainingPlan
from client.policy import Policy, judge
from client.pricing import terms_of
from client.serving import Seat, Service
from client.session import Identity, Session
from client.trainer import train_round
from client.watching import LineWatcher
from client.wire import FrozenManifest
from client.workbench import Workbench
from engines.privacy.clipping import clip_per_sample
from engines.privacy.mechanism import noised_sum
from engines.privacy.noise import NoiseStream
from modelling.adapters import build_model, load_adapter
from modelling.cache import CachedExamples, build_cache
from modelling.gradients import per_example_gradients, per_example_hooks, per_person_gradients
from modelling.spec import ModelSpec, TaskSpec
from modelling.trained import TrainedPart
from tests.client_folders import TERMS, manifest, profile_in
from tests.contracts.sources import ROOT
from tests.recording import PlayedRun, RecordingServer, canonical
from tests.unit.tiny_model import manifest_of, shaken, texts_and_labels, trained_part_of, write_tiny_bert

TASK = TaskSpec(
    labels=("ham", "spam"), text_fields=("body",), label_field="label", max_tokens=64, pooling="mean"
)
PERSON = {"id_field": "author", "records_cap": 8, "silos": 1}
RECORDS = 8
"""How many records the person has who is replaced below."""


def written(folder: Path, *authors: Any) -> Path:
    path = folder / "mails.jsonl"
    mails = [
        {"body": "text", "label": ("ham", "spam")[number % 2]}
        | ({} if author is None else {"author": author})
        for number, author in enumerate(authors)
    ]
    path.write_text("".join(json.dumps(mail) + "\n" for mail in mails), encoding="utf-8")
    return path


def rule(cap: int = 8, *, key: bytes = bytes(32)) -> PersonRule:
    return PersonRule(id_field="author", records_cap=cap, key=key)


def refusal(path: Path, **options: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        read_examples(path, TASK, rule=rule(**options))
    return caught.value


# --- reading ----------------------------------------------------------------------------------------


def test_records_of_one_id_are_one_persons(tmp_path: Path) -> None:
    path = written(tmp_path, "ann", "bob", "ann", 7, "7", "Ann")
    assert read_examples(path, TASK, rule=rule()).persons == (0, 1, 0, 2, 2, 3)


@pytest.mark.parametrize("missing", [None, "", "  ", True, 1.5, ["ann"], {"a": 1}])
def test_a_record_without_a_person_is_refused_with_its_line(tmp_path: Path, missing: Any) -> None:
    error = refusal(written(tmp_path, "ann", "bob", missing))
    assert (error.code, error.members) == ("person_missing", {"line": 3, "field": "author"})


def test_a_person_over_the_cap_is_refused_by_the_cap_and_not_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "ann", "bob", "ann", "ann-with-three")
    assert read_examples(path, TASK, rule=rule(2)).persons == (0, 1, 0, 2)
    error = refusal(path, cap=1)
    assert (error.code, error.members) == ("person_over_cap", {"cap": 1})
    assert "ann" not in str(error)


def test_not_even_the_memory_of_reading_holds_an_id() -> None:
    roll = Roll(rule())
    assert [roll.number_of(name, line=1) for name in ("canary-ann", "canary-bob")] == [0, 1]
    assert "canary" not in str(vars(roll))
    assert hmac.new(bytes(32), b"canary-ann", "sha256").digest() in vars(roll)["_numbers"]


def test_a_run_of_another_unit_reads_no_ids(tmp_path: Path) -> None:
    assert read_examples(written(tmp_path, None, None), TASK).persons is None


def test_half_a_character_in_an_id_quotes_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, "\ud83d", "bob")
    assert read_examples(path, TASK, rule=rule()).persons == (0, 1)


def test_the_silos_secret_is_made_once_for_this_account_alone(tmp_path: Path) -> None:
    key = silo_key(tmp_path / "ledger")
    path = tmp_path / "ledger" / "person.key"
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    assert silo_key(tmp_path / "ledger") == key != silo_key(tmp_path / "other")
    path.chmod(0o644)
    with pytest.raises(ClientError) as refused:
        silo_key(tmp_path / "ledger")
    assert refused.value.code == "key_exposed"
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ClientError) as refused:
        silo_key(tmp_path / "ledger")
    assert refused.value.code == "no_key"


def test_neither_ids_nor_their_secret_can_be_printed() -> None:
    one = rule()
    assert not [form for form in (one.key.hex(), repr(one.key), one.id_field) if form in repr(one)]


# --- the plan ---------------------------------------------------------------------------------------


def person_run(**changed: Any) -> FrozenManifest:
    return FrozenManifest(canonical(manifest(privacy={"unit": "person", "person": PERSON} | changed)))


def test_a_person_run_is_priced_by_its_steps_and_rate() -> None:
    policy = Policy.of(**TERMS, units=["person", "client"], person_field="author", person_records=8)
    judge(person_run().manifest, policy)
    terms = terms_of(person_run(), run_id="r", client_id="c", server="s")
    of_examples = terms_of(FrozenManifest(canonical(manifest())), run_id="r", client_id="c", server="s")
    assert (terms.unit, terms.epsilon) == ("person", of_examples.epsilon)


def test_a_person_run_without_its_rule_is_refused() -> None:
    for plan in (person_run(person=None), person_run(unit="example")):
        with pytest.raises(ClientError) as refused:
            judge(plan.manifest, Policy.of(**TERMS))
        assert refused.value.code == "plan_unsupported"
    with pytest.raises(ClientError) as refused:
        TrainingPlan.from_manifest(person_run(person=None).values)
    assert refused.value.code == "unsupported_plan"


# --- the mechanism, on a real model's gradients -----------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DPFL_BF16", "off")


Ready = tuple[dict[str, Any], TrainedPart, CachedExamples, dict[str, Tensor]]


def ready(folder: Path, *, clip_norm: float = 0.01) -> Ready:
    """One step at rate 1 with next to no noise: what the round moves is the clipped sum itself."""
    values = manifest_of(folder)
    values["privacy"] |= {
        "unit": "person",
        "person": PERSON,
        "examples": {"kind": "all"},
        "clip_norm": clip_norm,
        "noise_multiplier": 1e-6,
        "divisor": 1.0,
    }
    values["training"] |= {"local_steps": 1, "learning_rate": 1.0}
    part, cache, adapter = trained_part_of(values, folder)
    owners = torch.cat([torch.zeros(RECORDS, dtype=torch.int64), torch.arange(1, len(cache) - RECORDS + 1)])
    return values, part, with_persons(cache, owners), shaken(adapter)


def with_persons(cache: CachedExamples, persons: Tensor) -> CachedExamples:
    return CachedExamples(hidden=cache.hidden, mask=cache.mask, labels=cache.labels, persons=persons)


def moved(a: Ready, b: CachedExamples) -> float:
    """By how much a round's sum moves when its examples are `b` instead; in parameter units."""
    values, part, cache, adapter = a
    first, second = (train_round(part, one, adapter, manifest=values) for one in (cache, b))
    return float(torch.cat([(first[name] - second[name]).reshape(-1) for name in first]).norm())


def without_person(cache: CachedExamples, person: int) -> CachedExamples:
    """Zero-out: the person's records are there and count for nothing, as records that are not finite do."""
    hidden = cache.hidden.clone()
    hidden[cache.persons == person] = float("nan")
    return CachedExamples(hidden=hidden, mask=cache.mask, labels=cache.labels, persons=cache.persons)


def with_person_replaced(cache: CachedExamples, person: int) -> CachedExamples:
    """Replace-one: all of the person's records have other texts and the other label."""
    assert cache.persons is not None
    rows = cache.persons == person
    hidden, labels = cache.hidden.clone(), cache.labels.clone()
    hidden[rows] = cache.hidden[-1] * 5
    labels[rows] = 1 - labels[0]
    return CachedExamples(hidden=hidden, mask=cache.mask, labels=labels, persons=cache.persons)


def alike(a: Ready) -> Ready:
    """Give the person eight records that pull the same way: the worst case for a clip a record."""
    values, part, cache, adapter = a
    hidden, mask, labels = cache.hidden.clone(), cache.mask.clone(), cache.labels.clone()
    for row in range(RECORDS):
        hidden[row], mask[row], labels[row] = hidden[0], mask[0], labels[0]
    same = CachedExamples(hidden=hidden, mask=mask, labels=labels, persons=cache.persons)
    return values, part, same, adapter


SLACK = 1e-4
"""The noise of the tests' multiplier, and float32 in the weights that were moved."""


def test_all_records_of_a_person_move_the_sum_by_at_most_the_clip(tiny: Path) -> None:
    worst = alike(ready(tiny))
    by = moved(worst, without_person(worst[2], 0))
    assert 0.9 * 0.01 < by <= 0.01 * (1 + SLACK) + SLACK * 0.01


def test_all_records_of_a_person_replaced_move_the_sum_by_at_most_twice_the_clip(tiny: Path) -> None:
    worst = alike(ready(tiny))
    by = moved(worst, with_person_replaced(worst[2], 0))
    assert 0.01 < by <= 2 * 0.01 * (1 + SLACK)


def test_a_clip_a_record_instead_of_a_person_is_caught_by_the_same_measure(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_record(
        part: TrainedPart, batch: CachedExamples, *, persons: int, bf16: bool = False
    ) -> list[Tensor]:
        return per_example_gradients(part, batch, bf16=bf16)  # the planted fault

    monkeypatch.setattr(trainer, "per_person_gradients", by_record)
    worst = alike(ready(tiny))
    assert moved(worst, without_person(worst[2], 0)) > 7 * 0.01
    assert moved(worst, with_person_replaced(worst[2], 0)) > 3 * 0.01


def test_a_persons_row_is_the_sum_of_the_gradients_of_their_records(tiny: Path) -> None:
    _values, part, cache, adapter = ready(tiny)
    load_adapter(part.model, adapter)
    with per_example_hooks(part):
        single = per_example_gradients(part, cache)
        summed = per_person_gradients(part, cache, persons=cache.person_count)
    for rows, found in zip(single, summed, strict=True):
        assert found.dtype == torch.float64
        assert torch.allclose(found[0], rows[:RECORDS].double().sum(dim=0), rtol=1e-12, atol=1e-15)
        assert torch.equal(found[1:], rows[RECORDS:].double())


def test_another_person_changes_no_bit_of_a_persons_row(tiny: Path) -> None:
    _values, part, cache, adapter = ready(tiny)
    load_adapter(part.model, adapter)
    with per_example_hooks(part):
        before = per_person_gradients(part, cache, persons=cache.person_count)
        after = per_person_gradients(part, without_person(cache, 3), persons=cache.person_count)
    others = [row for row in range(cache.person_count) if row != 3]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first[others], second[others])
    assert not clip_per_sample(after, 1.0)[3].any()


def test_one_record_that_is_not_finite_makes_its_whole_person_zero(tiny: Path) -> None:
    _values, part, cache, adapter = ready(tiny)
    load_adapter(part.model, adapter)
    hidden = cache.hidden.clone()
    hidden[0] = float("inf")
    broken = CachedExamples(hidden=hidden, mask=cache.mask, labels=cache.labels, persons=cache.persons)
    with per_example_hooks(part):
        rows = clip_per_sample(per_person_gradients(part, broken, persons=cache.person_count), 1.0)
    assert not rows[0].any()
    assert bool(rows[1:].any(dim=1).all())


def test_persons_are_sampled_whole_with_the_plans_rate(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, part, cache, adapter = ready(tiny)
    values["privacy"]["examples"] = {"kind": "poisson", "rate": 0.25}
    values["training"]["local_steps"] = 200
    seen: list[list[int]] = []
    of_persons = CachedExamples.of_persons

    def counting(self: CachedExamples, chosen: Tensor) -> CachedExamples:
        taken = of_persons(self, chosen)
        assert taken.persons is not None
        seen.append(taken.persons.tolist())
        assert (0 in chosen.tolist()) == (len(taken) == len(chosen) + RECORDS - 1)
        return taken

    monkeypatch.setattr(CachedExamples, "of_persons", counting)
    train_round(part, cache, adapter, manifest=values)
    drawn = sum(len(set(persons)) for persons in seen)
    # 200 steps of 17 persons at rate .25: 850 expected, standard deviation sqrt(3400 * .25 * .75) = 25
    assert drawn == pytest.approx(850, abs=4 * 25.3)


def test_a_step_without_persons_still_adds_its_noise(tiny: Path) -> None:
    _values, part, cache, _adapter = ready(tiny)
    with per_example_hooks(part):
        nobody = per_person_gradients(part, cache.of_persons(torch.zeros(0, dtype=torch.int64)), persons=0)
    released = noised_sum(nobody, clip_norm=1.0, noise_multiplier=1.0, stream=NoiseStream.fresh())
    assert all(bool(tensor.any()) for tensor in released)


def test_examples_without_persons_are_not_trained_by_person(tiny: Path) -> None:
    values, part, cache, adapter = ready(tiny)
    anonymous = CachedExamples(hidden=cache.hidden, mask=cache.mask, labels=cache.labels)
    with pytest.raises(ClientError) as refused:
        train_round(part, anonymous, adapter, manifest=values)
    assert refused.value.code == "persons_unknown"
    with pytest.raises(ValueError, match="whose"):
        anonymous.of_persons(torch.zeros(1, dtype=torch.int64))


def test_no_id_and_no_hash_of_one_leaves_or_is_written(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    texts, labels = texts_and_labels(8)
    names = ("ham", "spam")
    authors = [f"canary-{number % 3}@example" for number in range(8)]
    mails = [
        {"subject": "", "body": text, "label": names[label], "author": author}
        for text, label, author in zip(texts, labels, authors, strict=True)
    ]
    (tmp_path / "mails.jsonl").write_text("".join(json.dumps(mail) + "\n" for mail in mails))
    plan = manifest_of(tiny)
    _part, _cache, start = trained_part_of(plan, tiny)
    plan["privacy"] |= {"unit": "person", "person": PERSON, "noise_multiplier": 2.0}
    with RecordingServer(PlayedRun(manifest() | plan, save(start))) as server:
        profile = profile_in(
            tmp_path / "mailbox",
            server=server.url,
            client_id=server.client_id,
            base_model_folders={"tiny": str(tiny)},
            units=["person"],
            person_field=PERSON["id_field"],
            person_records=PERSON["records_cap"],
        )
        identity = Identity(profile.config.client_id, profile.key())
        with Session(server.url, identity=identity, patience_s=5.0) as session:
            seats = [Seat(profile, session)]
            Service(seats, trainer=Workbench(), watcher=LineWatcher(sys.stdout), once=True).run()
        (body,) = server.bodies()
        sent = b"".join(
            str(heard.headers).encode() + heard.path.encode() + heard.body for heard in server.heard
        )
    assert set(load(body)) == set(start)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    del kept[tmp_path / "mails.jsonl"]
    key = silo_key(profile.ledger.folder)
    told = capfd.readouterr()
    ways_out = [sent, *kept.values(), (told.out + told.err + caplog.text).encode()]
    tags = [hmac.new(key, author.encode(), "sha256").digest() for author in authors]
    secrets = [key, *tags]
    forbidden = [b"canary", *secrets, *(one.hex().encode() for one in secrets), *map(b64encode, secrets)]
    assert not [word for way in ways_out for word in forbidden if word in way]


# --- the demo's mails, whose author is the person ---------------------------------------------------


def mails_of_a_silo(folder: Path) -> Path:
    with gzip.open(ROOT / "demo" / "data" / "mails.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    path = folder / "mails.jsonl"
    mails = [row for row in rows if row["split"] == "train" and row["silo"] == 3]
    path.write_text("".join(json.dumps(row) + "\n" for row in mails), encoding="utf-8")
    return path


def test_a_clip_a_record_is_caught_on_the_demos_mails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = mails_of_a_silo(tmp_path)
    by_author = PersonRule(id_field="client", records_cap=22, key=bytes(32))
    with pytest.raises(ClientError) as refused:
        read_examples(path, TASK, rule=PersonRule(id_field="client", records_cap=21, key=bytes(32)))
    assert refused.value.code == "person_over_cap"  # every author of the demo has at most 22 mails

    examples = read_examples(path, TASK, rule=by_author)
    values, part, _cache, adapter = ready(tiny)
    spec = ModelSpec.from_manifest(values)
    cache = build_cache(
        build_model(spec, tiny),
        spec,
        tiny,
        texts=examples.texts,
        labels=examples.labels,
        persons=examples.persons,
    )
    assert cache.persons is not None
    busiest = int(cache.persons.bincount().argmax())
    mine = (values, part, cache, adapter)
    assert moved(mine, without_person(cache, busiest)) <= 0.01 * (1 + SLACK) + SLACK * 0.01
    monkeypatch.setattr(
        trainer,
        "per_person_gradients",
        lambda model, batch, *, persons, bf16=False: per_example_gradients(model, batch, bf16=bf16),
    )
    assert moved(mine, without_person(cache, busiest)) > 3 * 0.01
