# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `scripts/bench_overhead.py` is made of.

trainers: Ultralytics' trainer without data. timing: medians of ratios, and the machine. counts: what a step reads.
peers: the tools that are compared. arms: one of them in a process of its own. compare: the table.
"""
