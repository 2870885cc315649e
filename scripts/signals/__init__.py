# SPDX-License-Identifier: AGPL-3.0-or-later
"""Networks that are not trained, and what the package's instruments measure of them; a file for each family."""
