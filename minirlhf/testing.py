"""Checks for the tests of a plugin: a component keeps its contract, on batches that show what usually goes wrong.

    from minirlhf.testing import assert_sound

    def test_brevity():
        assert_sound("reward", brevity, target=12)

`assert_sound` raises AssertionError with every check that fails and what to do about it. For single findings, as
`minirlhf plugins check` prints them:

    from minirlhf.testing import check, prepare

    for finding in check(prepare(component, {"target": 12})):
        print(finding.name, finding.holds, finding.found, finding.todo)

Rewards get texts of all kinds (empty, long, in any writing), in one batch, in another order and one at a time;
estimators get ragged masks with NaN behind them; observers watch three steps. The checks are in minirlhf/authoring.
Not here: whether an estimator estimates what it should (`minirlhf audit`).
"""

from minirlhf.authoring.check import assert_sound, check
from minirlhf.authoring.finding import Finding
from minirlhf.authoring.options import prepare

__all__ = ["Finding", "assert_sound", "check", "prepare"]
