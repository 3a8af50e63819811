"""Image files put into folders by class. No file is overwritten, and none is lost if it is interrupted."""

from __future__ import annotations

import errno
import filecmp
import itertools
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from anprompt_peft.files import atomic_file

UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]')
"""Characters that names of folders cannot have on one system or another."""


class Sorter:
    """Copies or moves files into the folders of their classes.

    Args:
        folder (`Path`): where the folders of the classes are made.
        classes (`Iterable[str]`): all answers that can be given.
        move (`bool`): whether files leave their place.

    Raises:
        ValueError: if two classes would share a folder, or the folder is a file.
    """

    def __init__(self, folder: Path, classes: Iterable[str], move: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file. Choose a folder to sort into.")
        self.folder, self.move = folder, move
        self.places = {name: folder / folder_name(name) for name in classes}
        alike = defaultdict(list)
        for name, place in self.places.items():
            alike[str(place).casefold()].append(name)
        if shared := [names for names in alike.values() if len(names) > 1]:
            raise ValueError(f"These classes would share a folder in {folder}: {shared}. Give them other names.")

    def holds(self, path: str) -> bool:
        """Whether a file is within the folder already."""
        return Path(path).resolve().is_relative_to(self.folder.resolve())

    def put(self, path: str, class_name: str) -> Path:
        """Put a file into the folder of a class, and return where it is now.

        A file of the same name and content that is there is taken for an earlier copy, one of other content stays.
        """
        source, place = Path(path), self.places[class_name]
        place.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            target = place / (source.name if number == 1 else f"{source.stem}-{number}{source.suffix}")
            if not self.move and target.is_file() and filecmp.cmp(source, target, shallow=False):
                return target
            try:
                target.touch(exist_ok=False)  # nobody else can take the name from here on
            except FileExistsError:
                continue
            self._fill(source, target)
            return target
        raise AssertionError

    def _fill(self, source: Path, target: Path) -> None:
        """Replace the empty file that holds a name; if that fails, the source stays and the name is free again."""
        try:
            if not (self.move and not source.is_symlink() and _rename(source, target)):
                with atomic_file(target) as fresh:
                    shutil.copy2(source, fresh)
                if self.move:
                    source.unlink()
        except BaseException:
            if source.exists() and target.exists() and not target.stat().st_size:
                target.unlink()
            raise


def folder_name(class_name: str) -> str:
    """Return a class name as the name of one folder, whatever a stranger's adapter calls its classes."""
    return UNSAFE.sub("_", class_name).strip(" .") or "_"


def _rename(source: Path, target: Path) -> bool:
    """Rename a file; return whether both are on the same disk, so that it can be."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True
