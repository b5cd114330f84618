"""The page of the Space: a table of stars in, figures out."""

from pathlib import Path

import evaluate
import numpy as np
from evaluate.utils.gradio import parse_readme

HERE = Path(__file__).parent
COLUMNS = ["predicted", "catalogue", "sigma", "catalogue error"]
LABELS = ["fe_h", "teff", "logg", "mg_fe", "o_fe"]
EXAMPLE = [[-0.48, -0.52, 0.10, 0.05], [0.11, 0.03, 0.08, 0.05], [-1.71, -1.62, 0.15, 0.08], [-0.20, -0.22, 0.07, 0.05]]


def figures(table, label):
    """Figures of one label.

    Args:
        table: Rows of `COLUMNS`, in the unit of the label; a cell may be empty. One without sigma makes that no
            coverage is given.
        label: One of `LABELS`.

    Raises:
        ValueError: No star has both values, or a number is none.
    """
    rows = np.array([[number(value) for value in row] for row in table]).reshape(-1, len(COLUMNS))
    predicted, catalogue, sigma, error = rows[np.isfinite(rows[:, :2]).all(axis=1)].T
    if not len(predicted):
        raise ValueError("at least one star needs both a predicted and a catalogue value.")
    return evaluate.load(str(HERE / "spectra_regression.py"), label).compute(
        predictions=predicted,
        references=catalogue,
        sigma=sigma if np.isfinite(sigma).all() else None,
        references_err=error,
    )


def number(value):
    """What stands in a cell; NaN where it is empty.

    Raises:
        ValueError: It is not a number.
    """
    return np.nan if value is None or not str(value).strip() else float(value)


def page():
    """The page, ready to be launched."""
    import gradio as gr

    return gr.Interface(
        fn=figures,
        inputs=[
            gr.Dataframe(value=EXAMPLE, headers=COLUMNS, datatype="number", type="array", label="one star per row"),
            gr.Dropdown(LABELS, value="fe_h", label="label: teff in K, the others in dex"),
        ],
        outputs=gr.JSON(label="figures, in the unit of the label"),
        title="Metric: labels of stars from spectra",
        article=parse_readme(HERE / "README.md"),
    )


if __name__ == "__main__":
    page().launch(show_error=True)
