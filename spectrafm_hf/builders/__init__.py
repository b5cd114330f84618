"""From libraries to datasets: which stars, which split, and what each cut cost."""
