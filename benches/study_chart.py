"""The study's bar chart, as SVG."""

import statistics
from xml.sax.saxutils import escape

from study_page import METHODS, of_method

COLOURS = {"plain": "#9aa5b1", "costly": "#c9a227", "learned": "#1f77b4"}
LEGEND = {
    "plain": "nothing learned for the composition, one inference",
    "costly": "two inferences, or a whole adapter for the composition",
    "learned": "a calibration of at most 5 % of an adapter, one inference",
}
# Pixels.
LABELS, PANEL, GAP, ROW, TOP = 200, 330, 30, 24, 58


def text(x, y, words, anchor="start", size=13, weight="normal", fill="#222"):
    style = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def chart(results):
    """Horizontal bars of ROUGE-L, a panel a task; the mean over the seeds, a dot for each seed and
    the 95 % interval over the examples (of the first seed)."""
    tasks = results["tasks"]
    rows = {(method, task): of_method(results, task, method) for method, _, _ in METHODS for task in tasks}
    shown = [(m, label, group) for m, label, group in METHODS if group in COLOURS and any(rows[m, t] for t in tasks)]
    largest = max(r["rougeL"]["high"] for found in rows.values() for r in found)
    step = 5 if largest <= 40 else 10
    limit = step * (int(largest) // step + 1)
    bottom = TOP + ROW * len(shown)
    width = LABELS + len(tasks) * (PANEL + GAP)
    height = bottom + 50 + 20 * len(LEGEND)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>ROUGE-L of all ways to do two tasks at once</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for i, (_, label, group) in enumerate(shown):
        weight = "bold" if group == "learned" else "normal"
        out.append(text(LABELS - 8, TOP + ROW * i + 16, label, "end", weight=weight))
    for panel, (name, task) in enumerate(tasks.items()):
        left = LABELS + panel * (PANEL + GAP)

        def x(score):
            return left + score / limit * PANEL

        title = f"{name}: {task['label']}"
        out.append(text(left, 24, title, size=15, weight="bold"))
        for tick in range(0, limit + 1, step):
            out.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="#ddd"/>')
            out.append(text(x(tick), TOP - 12, str(tick), "middle", 11, fill="#666"))
        for i, (method, _, group) in enumerate(shown):
            found = rows[method, name]
            if not found:
                continue
            y = TOP + ROW * i + 4
            scores = [r["rougeL"]["mean"] for r in found]
            mean = statistics.mean(scores)
            low, high = found[0]["rougeL"]["low"], found[0]["rougeL"]["high"]
            middle = y + 8
            out.append(
                f'<rect x="{left}" y="{y}" width="{x(mean) - left:.1f}" height="16" fill="{COLOURS[group]}"/>'
                f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}" stroke="#333"/>'
            )
            if len(scores) > 1:
                out += [f'<circle cx="{x(s):.1f}" cy="{middle}" r="2.5" fill="#fff" stroke="#333"/>' for s in scores]
            out.append(text(x(high) + 5, y + 13, f"{mean:.1f}", size=12))
        out.append(f'<line x1="{left}" x2="{left}" y1="{TOP - 6}" y2="{bottom}" stroke="#333"/>')
        axis = "ROUGE-L, % (lines: 95 % interval; dots: seeds)"
        out.append(text(left, bottom + 18, axis, size=11, fill="#666"))
    for i, (group, words) in enumerate(LEGEND.items()):
        y = bottom + 40 + 20 * i
        out.append(f'<rect x="{LABELS}" y="{y}" width="12" height="12" fill="{COLOURS[group]}"/>')
        out.append(text(LABELS + 18, y + 11, words, size=12))
    return "\n".join([*out, "</svg>"]) + "\n"
