# SPDX-License-Identifier: AGPL-3.0-or-later
"""A person's own ablation: a function that a study names as ``package.module:function``."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from yolo_gradstudy.ablations.spec import AblationSpec


def is_own(name: object) -> bool:
    """Whether a name means a person's own function."""
    return isinstance(name, str) and ":" in name


def own_ablation(name: str) -> AblationSpec:
    """The ablation that calls a person's function.

    Args:
        name: ``package.module:function``. The function takes the model, an ``nn.Module``, changes it in place, and
            returns the names of the modules that it changed. It may draw from torch's global generator, which is
            seeded with the run's seed before, and afterwards is as it was.

    Raises:
        ValueError: There is no such module or function.
    """
    function = _find(name)

    def surgery(model: nn.Module, seed: int) -> list[str]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            changed = function(model)
        if not isinstance(changed, list | tuple) or not all(isinstance(n, str) for n in changed):
            raise ValueError(
                f"ablations: {name!r} returned {type(changed).__name__}; it must return the names of the modules that "
                "it changed, a list of text."
            )
        return list(changed)

    summary = " ".join((function.__doc__ or "A person's own ablation.").strip().split("\n")[0].split())
    return AblationSpec(name, "own", summary, source=name, surgery=surgery)


def _find(name: str) -> Callable[[nn.Module], Any]:
    module_name, _, function_name = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except Exception as error:  # whatever a person's module does when it is imported
        raise ValueError(
            f"ablations: {name!r} names the module {module_name!r}, which can't be imported ({error}); it must be "
            "installed, or lie in the folder that the command is started in or on PYTHONPATH."
        ) from error
    function = getattr(found, function_name, None)
    if not callable(function):
        names = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=1, cutoff=0.0)
        hint = f"; the nearest is '{module_name}:{near[0]}'" if near else ""
        raise ValueError(f"ablations: {name!r} names no function of {module_name!r}{hint}.")
    return function  # type: ignore[no-any-return]
