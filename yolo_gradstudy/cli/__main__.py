# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m yolo_gradstudy.cli``."""

from yolo_gradstudy.cli import main

if __name__ == "__main__":
    main()
