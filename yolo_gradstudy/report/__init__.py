# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tables and figures of a study's folder → CSV, PNG and SVG files and one self-contained HTML page.

Everything is derived from what the runs recorded, at the moment of reading; the same folder gives the same
files, byte for byte. ``drawings`` makes the figures, ``answer`` and ``claims`` the sentences, ``heatmap`` what the
page draws itself, and ``page`` the page; only here files are written.
"""

from __future__ import annotations

from pathlib import Path

from yolo_gradstudy.readings import Judge, write_tables
from yolo_gradstudy.report.drawings import draw
from yolo_gradstudy.report.page import describe_machine, describe_scale, render
from yolo_gradstudy.run_folder import replacing, write_text

__all__ = ["write_report"]


def write_report(study_dir: Path, judge: Judge | None = None, processes: int = 1, refresh_s: int | None = None) -> Path:
    """Write ``results.csv`` and the folder ``report/`` of a study that may be partly finished.

    Args:
        study_dir: The study's folder.
        judge: Gives the verdicts; where None, :class:`yolo_gradstudy.diagnoses.StudyJudge`.
        processes: As :func:`yolo_gradstudy.readings.write_tables`.
        refresh_s: Seconds after which a browser that shows the page reads it again, while runs have not ended.

    Returns:
        The path of ``report/index.html``, which needs no other file.

    Raises:
        ValueError: The folder holds no study.
    """
    tables = write_tables(study_dir, judge, processes)
    folder = tables.reading.folder
    scale, machine = describe_scale(tables), describe_machine(tables.results)
    drawings = draw(tables, {"scale": scale, "machine": machine})
    for drawing in drawings:
        for ending, data in ((".png", drawing.png), (".svg", drawing.svg)):
            with replacing(folder.report_path / f"{drawing.name}{ending}") as file:
                file.write(data)
        if drawing.name not in tables.files:  # a heatmap's table is a file of that name already
            folder.write_csv(folder.report_path / f"{drawing.name}.csv", drawing.data)

    page = folder.report_path / "index.html"
    write_text(page, render(tables, drawings, scale, machine, refresh_s=refresh_s))
    return page
