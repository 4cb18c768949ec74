"""Guards: what a run that diverged is told (that the guards stop it: tests/test_ppo.py)."""

from minirlhf.rl.guards import diverged


def test_a_run_that_diverged_is_told_when_and_what_to_try():
    error = str(diverged("kl is not finite", 2))
    assert error.startswith("kl is not finite: iteration 3; the weights are as before this update; try a lower ppo.lr")
