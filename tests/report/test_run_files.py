"""Files of a run as the pages read them."""

from minirlhf.report.run_files import read_config


def test_a_config_that_an_editor_saved_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.toml").write_text("\ufeff[ppo]\nlr = 0.5\n", encoding="utf-8")
    assert read_config(tmp_path) == {"ppo": {"lr": 0.5}}
