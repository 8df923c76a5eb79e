"""Plain tables for a terminal."""

from __future__ import annotations


def show(title: str, head: list[str], rows: list[list[str]], *, notes: list[str] | None = None) -> None:
    """Print a table, its first column to the left and the others to the right, and lines below it."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(cells: list[str]) -> str:
        return "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))).rstrip()

    print(f"\n{title}")
    print(line(head))
    print("  ".join("-" * width for width in widths))
    for row in rows:
        print(line(row))
    for note in notes or []:
        print(note)
    print(flush=True)


def against(ratio: float, target: float, *, at_most: bool = False) -> str:
    """A ratio beside what it should be.

    >>> against(16.2, 15)
    '16.2 (target: at least 15): met'
    >>> against(1.41, 1.3, at_most=True)
    '1.41 (target: at most 1.3): missed'
    """
    met = ratio <= target if at_most else ratio >= target
    return f"{ratio:.3g} (target: {'at most' if at_most else 'at least'} {target:g}): {'met' if met else 'missed'}"
