"""Puts a patch on a model folder, and takes it off: always as a new folder, the given one is only read."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dft_cluster.errors import InputError
from dft_cluster.patch import stack
from dft_cluster.patch.atomic import new_folder
from dft_cluster.patch.fingerprint import fingerprint
from dft_cluster.patch.folder import Folder
from dft_cluster.patch.reader import Patch
from dft_cluster.patch.rewrite import UnlikeError, rewrite


def apply(patch: Path | str | Patch, base: Path | str, out: Path | str) -> str:
    """Write the folder `out`: the base with the new bits, and its other files; gives the new fingerprint."""
    with Patch.opened(patch) as opened:
        folder = Folder(base)
        with _new_model(folder, Path(out)) as target:
            try:
                result = rewrite(opened, folder, target, forward=True)
            except UnlikeError as error:
                raise InputError(_not_the_base(opened, folder, error.name)) from error
            below = stack.below(stack.carried(folder.path), opened.base_fingerprint)
            stack.write(target, [*below, opened.link(result)])
        return result


def revert(patch: Path | str | Patch, patched: Path | str, out: Path | str) -> str:
    """Write the folder `out`: the patched one with the old bits again; gives the base's fingerprint."""
    with Patch.opened(patch) as opened:
        if not opened.has_old_bits:
            raise InputError(f"{opened.path} was made without old bits and cannot be taken back; keep the base")
        folder = Folder(patched)
        with _new_model(folder, Path(out)) as target:
            try:
                result = rewrite(opened, folder, target, forward=False)
            except UnlikeError as error:
                raise InputError(_not_the_patched(opened, folder, error.name)) from error
            stack.write(target, stack.below(stack.carried(folder.path), opened.base_fingerprint))
        return result


@contextmanager
def _new_model(folder: Folder, out: Path) -> Iterator[Path]:
    """A new folder with everything of the given one but its weights and its list of patches."""
    if out.resolve().is_relative_to(folder.path.resolve()):
        raise InputError(f"{out} lies within the model {folder.path}, which stays as it is; name another folder")
    with new_folder(out) as target:
        yield target
        _carry(folder, target)


def _carry(folder: Folder, target: Path) -> None:
    left_out = {*folder.headers, folder.path / stack.RECORD}
    for root, _, files in os.walk(folder.path, onerror=_raise, followlinks=True):
        there = target / Path(root).relative_to(folder.path)
        there.mkdir(exist_ok=True)
        for name in files:
            source = Path(root) / name
            if source not in left_out:
                shutil.copy(source, there / name)


def _raise(error: OSError) -> None:
    raise error


def _not_the_base(patch: Patch, folder: Folder, name: str) -> str:
    found = fingerprint(folder)
    sides = f"{patch.path} is for the base {patch.base_fingerprint}, and {folder.path} is {found}"
    if found == patch.base_fingerprint:
        return f"{patch.path} contradicts itself: it does not give what it says for {name}"
    if found == patch.result_fingerprint:
        return f"{sides}: this patch is in it already"
    for level, link in enumerate(patch.below):
        if link.base_fingerprint == found:
            order = ", then ".join(str(below) for below in patch.below[level:])
            return f"{sides}: it was made on top of other patches; apply {order}, then this one"
    above = [link for link in stack.carried(folder.path) if link.base_fingerprint == patch.base_fingerprint]
    if above:
        return f"{sides}: on that base {above[0]} was applied first; compose the two, or revert to that base"
    return f"{sides}; the first tensor that differs is {name}"


def _not_the_patched(patch: Patch, folder: Folder, name: str) -> str:
    found = fingerprint(folder)
    sides = f"{patch.path} gives {patch.result_fingerprint or 'a patched model'}, and {folder.path} is {found}"
    if found == patch.base_fingerprint:
        return f"{sides}: its base, so this patch is not in it"
    carried = stack.below(stack.carried(folder.path), found)
    names = [link.checksum for link in carried]
    if patch.checksum in names:
        above = carried[names.index(patch.checksum) + 1 :]
        order = ", then ".join(str(link) for link in reversed(above))
        return f"{sides}: other patches lie on top of this one; revert {order}, then this one"
    return f"{sides}; the first tensor that differs is {name}"
