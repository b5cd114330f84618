"""The main job: pre-train, fine-tune, fine-tune on 100 stars, compare, draw. `make transfer` calls this.

    python training/transfer.py                       from the pre-trained model that ships, into runs/transfer
    python training/transfer.py --from scratch        pre-train first: the three stages, about ten minutes
    python training/transfer.py --seeds 5             five draws of the 100 stars
    python training/transfer.py --budget 0.01         a smoke test: 1 % of the spectra

A second call does nothing twice; a killed one goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/transfer"), help="folder of the run")
    parser.add_argument(
        "--from", dest="start", default="spectrafm-small",
        help="pre-trained model: one that ships, a folder, a Hub repository; or `scratch` to pre-train one",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1, help="draws of the 100 stars")
    parser.add_argument("--recipes", type=Path, help="folder with your own recipes")
    parser.add_argument("--budget", type=float, default=1.0, help="factor on every stage's number of spectra")
    parser.add_argument("--push-to", metavar="NAMESPACE", help="publish the models there, private, in a Collection")
    parser.add_argument("--again", action="store_true", help="repeat what is done")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("spectrafm_hf").setLevel(logging.INFO)

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of saving and loading; the stages have bars of their own
    from spectrafm_hf.publishing import publish
    from spectrafm_hf.readers.mangadap_wheel import LibrariesUnavailableError
    from spectrafm_hf.transfer import TransferPlan, results_table, run_transfer

    began = time.monotonic()
    try:
        start = None if asked.start == "scratch" else asked.start
        plan = TransferPlan(asked.output, asked.seeds, asked.recipes, asked.budget, asked.again, start)
        results = run_transfer(plan)
        parent = None
        for name in plan.stage_names if asked.push_to else ():
            parent = publish(asked.output / name, asked.push_to, parent=parent)
    except (ValueError, OSError, LibrariesUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{results_table(results)}\n")
    print(f"models   {asked.output}/{', '.join(plan.stage_names)}")
    print(f"results  {asked.output}/results.json")
    print(f"figures  {asked.output}/figures/")
    print(f"took {(time.monotonic() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
