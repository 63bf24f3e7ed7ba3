"""One patch out of several: side by side on the same base, or a stack folded into one."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

from dft_cluster.errors import InputError
from dft_cluster.patch import record
from dft_cluster.patch.atomic import apart, new_file
from dft_cluster.patch.encoding import encode
from dft_cluster.patch.fingerprint import (
    Block,
    block_digest,
    blocks,
    fingerprint,
    tensor_digest,
)
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.header import DTYPES
from dft_cluster.patch.merge import RULES, Values, beside, stacked
from dft_cluster.patch.reader import Patch
from dft_cluster.patch.record import Record
from dft_cluster.patch.writer import Change, PatchSummary, PatchWriter


def compose(
    patches: Sequence[Path | str | Patch],
    out: Path | str,
    rule: str | None = None,
    chain: bool = False,
    base: Path | str | None = None,
) -> PatchSummary:
    """One patch out of several of the same base, or, with `chain`, out of a stack, the lowest first.

    Where patches of one base do not agree a `rule` (`merge.RULES`) is needed. The base's folder, if given,
    supplies the old bits that patches leave out and the digests of tensors that several of them change.
    """
    if len(patches) < 2:
        raise InputError("composing needs two patches at least")
    if rule is not None and (chain or rule not in RULES):
        advice = "a stack needs none" if chain else f"use one of {', '.join(RULES)}"
        raise InputError(f"rule {rule!r}: {advice}")
    with ExitStack() as files:
        opened = [files.enter_context(Patch.opened(patch)) for patch in patches]
        (_require_stack if chain else _require_same_base)(opened)
        folder = None if base is None else _require_base(Folder(base), opened[0])
        apart(Path(out), *(patch.path for patch in opened), *([folder.path] if folder else []))
        return _Composition(opened, rule, chain, folder).write(Path(out))


class _Composition:
    def __init__(self, patches: list[Patch], rule: str | None, chain: bool, folder: Folder | None) -> None:
        self.patches = patches
        self.rule = rule
        self.chain = chain
        self.folder = folder
        self.old_bits = all(patch.has_old_bits for patch in patches)
        self.disputed: dict[str, int] = {}

    def write(self, out: Path) -> PatchSummary:
        forms, below = self.patches[0].records, self.patches[0].below
        records: dict[str, Record] = {}
        with new_file(out) as file:
            writer = PatchWriter(file, forms, self._metadata(), below, self.old_bits)
            for name, form in forms.items():
                records[name], changes = self._tensor(name, form)
                if records[name].changed:
                    writer.add(name, form, changes)
            self._require_agreement()
            return writer.seal(records, below, out)

    def _tensor(self, name: str, form: Record) -> tuple[Record, list[Change]]:
        involved = [patch for patch in self.patches if name in patch.parts]
        changes: list[Change] = []
        changed = 0
        after: list[bytes] = []
        result = self._result(name, involved)
        for block in blocks(name, form.numel) if involved else ():
            values = self._merged(block, involved)
            changes.append(_encoded(values, block.numel, self.old_bits))
            changed += len(values.positions)
            if not result and self.folder is not None:
                bits = self.folder.bits(name, block.start, block.stop)
                bits[values.positions] = values.new
                after.append(block_digest(bits))
        if not changed:
            return Record(form.dtype, form.shape, form.base, form.base, 0), []
        result = result or (tensor_digest(after) if after else "")
        if not result and not self.old_bits:
            raise InputError(f"{name} is changed by patches without old bits; name the base's folder too")
        return Record(form.dtype, form.shape, form.base, result, changed), changes

    def _merged(self, block: Block, involved: list[Patch]) -> Values:
        parts = [self._values(patch, block) for patch in involved]
        if self.chain:
            merged = parts[0]
            for part in parts[1:]:
                merged = stacked(merged, part)
            return merged.changed()
        try:
            merged, disputed = beside(parts, DTYPES[self.patches[0].records[block.name].dtype], self.rule)
        except InputError as error:
            raise InputError(f"{block.name}: {error}") from error
        if disputed:
            self.disputed[block.name] = self.disputed.get(block.name, 0) + disputed
        return merged.changed()

    def _values(self, patch: Patch, block: Block) -> Values:
        part = patch.parts[block.name]
        positions, new = patch.positions(part, block.number), patch.new(part, block.number)
        if patch.has_old_bits:
            return Values(positions, patch.old(part, block.number), new).changed()
        if self.folder is None or self.chain:
            return Values(positions, None, new)
        return Values(positions, self.folder.bits(block.name, block.start, block.stop)[positions], new)

    def _result(self, name: str, involved: list[Patch]) -> str:
        """The tensor's digest afterwards, as far as the patches themselves know it."""
        if self.chain:
            return self.patches[-1].records[name].result
        return involved[0].records[name].result if len(involved) == 1 else ""

    def _require_agreement(self) -> None:
        if self.disputed and self.rule is None:
            listed = "; ".join(f"{count} elements of {name}" for name, count in self.disputed.items())
            files = ", ".join(str(patch.path) for patch in self.patches)
            raise InputError(f"{files} do not agree: {listed}. Choose a rule: {', '.join(RULES)}")

    def _metadata(self) -> dict[str, str]:
        parts = [{"checksum": patch.checksum, **record.described(patch.metadata)} for patch in self.patches]
        rule = "chain" if self.chain else self.rule or "none"
        return {"method": "compose", "rule": rule, "composed_of": json.dumps(parts)}


def _encoded(values: Values, numel: int, old_bits: bool) -> Change:
    places = encode(values.positions, numel, values.new.itemsize * (2 if old_bits else 1), dense=False)
    return Change(places, values.old if old_bits else None, values.new)


def _require_same_base(patches: Sequence[Patch]) -> None:
    first = patches[0]
    for patch in patches[1:]:
        if patch.base_fingerprint != first.base_fingerprint:
            sides = f"{first.path} is for {first.base_fingerprint}, {patch.path} for {patch.base_fingerprint}"
            hint = "; they are a stack: use --chain" if _order(patches) else ""
            raise InputError(f"only patches of the same base go side by side: {sides}{hint}")


def _require_stack(patches: Sequence[Patch]) -> None:
    for lower, upper in pairwise(patches):
        if not _linked(lower, upper):
            gives = f"{lower.path} gives {lower.result_fingerprint or 'a model it cannot name'}"
            order = ", then ".join(str(patch.path) for patch in _order(patches))
            hint = f"; this order works: {order}" if order else ""
            raise InputError(f"no stack: {gives}, and {upper.path} is for {upper.base_fingerprint}{hint}")


def _linked(lower: Patch, upper: Patch) -> bool:
    if lower.result_fingerprint:
        return lower.result_fingerprint == upper.base_fingerprint
    return bool(upper.below) and upper.below[-1].checksum == lower.checksum


def _order(patches: Sequence[Patch]) -> list[Patch]:
    """The patches in an order in which each lies on the one before; nothing where there is none."""
    for start in patches:
        order, left = [start], [patch for patch in patches if patch is not start]
        while upper := next((patch for patch in left if _linked(order[-1], patch)), None):
            order.append(upper)
            left.remove(upper)
        if not left:
            return order
    return []


def _require_base(folder: Folder, patch: Patch) -> Folder:
    found = fingerprint(folder)
    if found != patch.base_fingerprint:
        raise InputError(f"{patch.path} is for the base {patch.base_fingerprint}, and {folder.path} is {found}")
    return folder
