"""Splits into training and held-out rows: which groups are held out, and what a split that shares rows is told.

A group is what must not be torn apart: the rows of one prompt, equal texts. The readers and the keys of the groups are
in comparisons.py and corpus.py.
"""

from collections.abc import Collection, Hashable, Sequence


def most_held_out(total: int, groups: int, count: int) -> float:
    """Size that `count` of some groups may have together, if all groups together have the size `total`.

    Twice their fair share, total x count / groups, but no more than half of the total (or the fair share itself, where
    that is more). Groups of equal size always fit.
    """
    fair = total * count / groups
    return max(fair, min(2 * fair, total / 2))


def held_out_groups(sizes: Sequence[int], count: int) -> list[int]:
    """Indices of the first `count` groups that `most_held_out` allows, in the order given; a larger one is passed over.

    sizes: rows, or characters, of two groups or more. One group at least is held out, and one stays.
    """
    limit, taken, together = most_held_out(sum(sizes), len(sizes), count), list[int](), 0
    for index, size in enumerate(sizes):
        if len(taken) < count and together + size <= limit:
            taken.append(index)
            together += size
    return taken


def shared_note(train: Collection[Hashable], heldout: Sequence[Hashable], what: str, todo: str) -> list[str]:
    """One sentence if some of the rows that measure, called `what`, are training rows too; else none."""
    known = set(train)
    both = sum(row in known for row in heldout)
    if not both:
        return []
    return [f"{both:,} of {len(heldout):,} {what} are trained on as well, so they measure memory, too: {todo}"]
