"""Run one stage from one recipe: `python training/train.py training/recipes/1-synthetic.yaml --output runs/mine`.

On several processes: `accelerate launch training/train.py RECIPE --output FOLDER`, or torchrun.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging as transformers_logging

from spectrafm_hf.publishing import publish
from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError
from spectrafm_hf.recipe import read_recipe
from spectrafm_hf.stages import leave_process_group, run_stage


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a page of YAML, see training/recipes/")
    parser.add_argument("--output", type=Path, help="folder of the stage (default: runs/STAGE)")
    parser.add_argument("--model", help="parent folder or Hub repository, over the recipe's")
    parser.add_argument("--seed", type=int, help="over the recipe's")
    parser.add_argument("--n-spectra", type=int, help="budget, over the recipe's")
    parser.add_argument("--push-to", metavar="NAMESPACE", help="publish the stage there, user or organisation; private")
    parser.add_argument("--public", action="store_true", help="make a new repository of --push-to public")
    parser.add_argument("--again", action="store_true", help="repeat the stage although it is done")
    asked = parser.parse_args()
    changes: dict[str, Any] = {
        "output_dir": asked.output and str(asked.output),
        "model": asked.model,
        "seed": asked.seed,
        "n_spectra": asked.n_spectra,
    }
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("spectrafm_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()  # of saving and loading; the stage has a bar of its own
    try:
        folder = run_stage(
            *read_recipe(asked.recipe, **{key: value for key, value in changes.items() if value is not None}),
            again=asked.again,
        )
        if asked.push_to and PartialState().is_main_process:
            publish(folder, asked.push_to, private=not asked.public)
    except (ValueError, OSError, LibrariesUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        leave_process_group()
    print(f"saved to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
