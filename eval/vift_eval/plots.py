"""One look for every figure: colours and matplotlib settings."""

LINES = ("#2a7f4f", "#4a78b8", "#b03030", "#e0a030", "#7a4fa0", "#404040")
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 9}
