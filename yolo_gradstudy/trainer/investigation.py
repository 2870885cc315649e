# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the recorder sees that a training went wrong, the step is replayed and the incident told what that shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from ultralytics.utils import LOGGER, RANK
from ultralytics.utils.torch_utils import unwrap_model

from yolo_gradstudy.recorder import KEPT, GradRecorder, Sighting, is_compiled
from yolo_gradstudy.records import ForensicsConfig
from yolo_gradstudy.run_folder import INCIDENTS, IncidentsFolder
from yolo_gradstudy.trainer.forensics import BlackBox, StepInputs, image_files
from yolo_gradstudy.trainer.replay import Save, replay_at_once, replay_later
from yolo_gradstudy.trainer.saved import SNAPSHOT, save_step


class Investigator:
    """Follows a training's batches for the case that an incident must be explained.

    Args:
        trainer: A set-up trainer of this package.
        recorder: Its recorder.
        config: What may be kept.
    """

    def __init__(self, trainer: Any, recorder: GradRecorder, config: ForensicsConfig) -> None:
        self._trainer = trainer
        self._recorder = recorder
        self._files: deque[tuple[int, list[str]]] = deque(maxlen=KEPT)
        self._box: BlackBox | None = None
        self._save = config.save
        if not config.every:
            return
        if RANK != -1:
            self._tell_off("a replay would need every process")
        elif is_compiled(trainer.model):
            self._tell_off("hooks would change what torch.compile compiled")
        else:
            lag = recorder.config.flush_every * recorder.config.every
            self._box = BlackBox(trainer, config, recorder.at_once, lag)

    @property
    def replaying(self) -> bool:
        """Whether a replay runs."""
        return self._box is not None and self._box.replaying

    def begin_batch(self, raw: Mapping[str, Any]) -> None:
        """A batch is on its way; nothing of it is changed yet."""
        step = self._recorder.step + 1
        if not self._files or self._files[-1][0] != step:
            self._files.append((step, []))
        self._files[-1][1].extend(image_files(raw))
        if self._box is not None:
            self._box.begin_batch(raw, step)
            if self._box.off is not None:
                self._tell_off(self._box.off)

    def begin_training(self) -> None:
        """The first batch is on its way, and the weights are those that it will meet."""
        if self._box is not None:
            self._box.begin_training()

    def look(self) -> None:
        """A step was observed and its gradients are still there: replay it where it left its course."""
        if self._box is not None:
            self._box.begin_step(self._trainer.optimizer, getattr(unwrap_model(self._trainer.model), "criterion", None))
        if (sighting := self._recorder.sighting) is not None:
            save = self._saver(sighting)
            self._tell(sighting, self._explained(lambda box: replay_at_once(self._trainer, box, save)))

    def end_batch(self) -> None:
        """A batch is done, and no callback has acted since."""
        if self._box is not None:
            self._box.end_batch(self._recorder.step, self._recorder.went_well)
        self.look_back()

    def look_back(self) -> None:
        """Replay what was seen only now of an earlier step."""
        for sighting in self._recorder.late_sightings():

            def replay(box: BlackBox, sighting: Sighting = sighting) -> dict[str, Any] | None:
                return replay_later(self._trainer, box, sighting.step, sighting.norms, self._saver(sighting))

            self._tell(sighting, self._explained(replay))

    def restart(self) -> None:
        """Forget what does not lead to the next step."""
        if self._box is not None:
            self._box.restart()

    def _saver(self, sighting: Sighting) -> Save | None:
        if not self._save:
            return None
        path = IncidentsFolder(self._trainer.save_dir / INCIDENTS).folder(sighting.number) / SNAPSHOT

        def save(
            weights: Mapping[str, Tensor], before: Mapping[str, Tensor], steps: Sequence[StepInputs], scale: float
        ) -> None:
            save_step(path, self._trainer, weights, before, steps, sighting.norms, scale)

        return save

    def _explained(self, replay: Callable[[BlackBox], dict[str, Any] | None]) -> dict[str, Any]:
        if self._box is None or self._box.off is not None:
            return {}
        try:
            return replay(self._box) or {"replay": {"failed": "what is kept does not go back to the step"}}
        except Exception as error:  # whatever it is, training goes on
            return {"replay": {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}}

    def _tell(self, sighting: Sighting, facts: Mapping[str, Any]) -> None:
        files = {str(step): names for step, names in self._files if names and step <= sighting.step}
        images = files.get(str(sighting.step), [])
        self._recorder.amend(sighting, {"images": images, "files": files, **facts})
        cause = facts.get("cause")
        where = f", {cause['what']} of {cause['parameter'] or cause['module']}" if cause else ""
        LOGGER.warning(
            f"gradstudy: {sighting.kind} at step {sighting.step}{where}, see incidents/{sighting.number:03d}"
        )

    def _tell_off(self, reason: str) -> None:
        self._box = None
        self._recorder.mark("forensics_off", reason=reason)
