"""What the seeds of a comparison share."""

import pytest

from minirlhf.errors import ConfigError
from minirlhf.studies.grid import grid, resolve_cells, variations
from minirlhf.studies.shared import BASE_SEEDS, shared_parts, shared_sentence


def cells(preset, seeded=(), sets=(), vary=()):
    return resolve_cells(grid([preset], variations(vary)), 2, options={}, sets=sets, seeded=seeded)


@pytest.mark.parametrize(
    ("preset", "seeded", "shared", "own"),
    [
        ("tiny", (), ["base", "held-out prompts"], []),
        ("tiny", BASE_SEEDS, ["held-out prompts"], ["base"]),
        ("exact", (), ["base"], []),
        ("exact", BASE_SEEDS, [], ["base"]),
        ("preferences", (), ["base", "SFT model", "reward model", "held-out prompts"], []),
        ("preferences", BASE_SEEDS, ["held-out prompts"], ["base", "SFT model", "reward model"]),
        ("preferences", ("reward_model.seed",), ["base", "SFT model", "held-out prompts"], ["reward model"]),
        ("preferences", ("sft.seed",), ["base", "held-out prompts"], ["SFT model", "reward model"]),
    ],
)
def test_a_part_is_shared_unless_a_seed_that_decides_it_follows_the_run(preset, seeded, shared, own):
    """A reward model begins with the SFT model, and that with the base."""
    assert shared_parts(cells(preset, seeded)) == {"shared": shared, "own": own}


def test_bases_that_differ_between_variants_are_still_shared_by_the_seeds():
    found = shared_parts(cells("tiny", vary=("pretrain.seed=0,1",)))
    assert found == {"shared": ["base", "held-out prompts"], "own": []}


def test_a_run_has_the_seeds_of_its_base_and_another_value_is_refused():
    for cell in cells("preferences", BASE_SEEDS):
        config = cell.config
        assert config.pretrain.seed == config.sft.seed == config.reward_model.seed == config.run.seed == cell.seed
    with pytest.raises(ConfigError, match=r"pretrain\.seed cannot be set here"):
        cells("tiny", BASE_SEEDS, sets=("pretrain.seed=4",))


def test_the_sentence_names_what_is_shared_and_what_to_do():
    said = shared_sentence({"shared": ["base", "SFT model", "held-out prompts"], "own": []})
    assert said == (
        "All seeds share base, SFT model and held-out prompts, so that the intervals do not cover another choice of "
        "these (--vary-base of compare makes another base and SFT model for each seed)."
    )
    said = shared_sentence({"shared": ["held-out prompts"], "own": ["base", "reward model"]})
    assert said == (
        "Each seed has its own base and reward model; all seeds share held-out prompts, so that the intervals do not "
        "cover another choice of these."
    )
    assert shared_sentence({"shared": [], "own": ["base"]}) == "Each seed has its own base."
