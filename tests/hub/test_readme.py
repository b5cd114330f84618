"""What README and guides say of the Hub works as they say it; their other blocks are in tests/test_guides.py."""

import re

import numpy as np
from conftest import tiny_extractor, tiny_model
from test_guides import ON_A_HUB, PAGES, blocks_of

from spectrafm_hf.hub import push


def test_python_that_names_a_repository_reads_a_pushed_model(hub, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_extractor().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# A model\n")
    blocks = [one for page in PAGES for one in blocks_of(page) if one.language == "python" and ON_A_HUB in one.text]
    assert len(blocks) >= 2
    for name in sorted({name for one in blocks for name in re.findall(rf'"({ON_A_HUB}[^"]+)"', one.text)}):
        push(tmp_path / "model", name.replace("my-name", "astro"))
    for one in blocks:
        told = {"flux": np.ones(800), "wavelength": np.linspace(5000, 5400, 800)}
        exec(compile(one.text.replace("my-name", "astro"), one.where, "exec"), told)
        if "table" in told:
            assert set(told["table"]["label"]) == set(tiny_extractor().label_names)
            assert len(told["table"]["revision"][0]) == 40  # a commit
    assert re.search(
        r"'value': -?[0-9.]+, 'sigma': [0-9.]+, 'interval68': \[.*'interval95': \[.*'unit': 'dex'",
        capsys.readouterr().out,
    )
