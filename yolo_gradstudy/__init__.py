# SPDX-License-Identifier: AGPL-3.0-or-later
"""Records what gradients do while a YOLO model trains, ablates what keeps it stable, and diagnoses runs."""
