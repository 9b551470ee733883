"""Tables, figures and one self-contained page of finished runs: report.html, results.md,
results.csv, results.json and the figures as SVG files.

    python -m dm_kd.report --runs save/student_model --out save/report --baseline kd_real

Runs whose paths differ only in seedN, foldN, genN or setN are repetitions of one row. With
--published instead of --runs: the numbers of the papers with the command that remakes each.
"""

import argparse
import base64
import json
import sys
import time
from pathlib import Path

from dm_kd import run
from dm_kd.analysis import collect, figures, tables
from dm_kd.analysis.collect import Row
from dm_kd.run import UserError, nearest


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("report", __doc__)
    parser.add_argument("--runs", type=Path, metavar="FOLDER", required="--published" not in argv,
                        help="every finished run below it is read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="where the page, the tables and the figures are written")
    parser.add_argument("--baseline", default=None, metavar="ROW",
                        help="row that the others are compared with (default: none)")
    parser.add_argument("--published", action="store_true", help="write the published tables")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


@run.command
def main(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would report on {args.runs or 'the published numbers'} in {args.out}")
        return
    if args.published:
        run.write_file(args.out / "published_tables.md", tables.published_tables())
        return
    rows = collect.rows(args.runs)
    names = [row.name for row in rows]
    if not rows:
        raise UserError(f"no finished and evaluated run in {args.runs}",
                        "a folder with runs of distill or train_teacher")
    if args.baseline and args.baseline not in names:
        raise UserError(f"no row {args.baseline} in {args.runs}", nearest(args.baseline, names))
    entries = tables.records(rows, args.baseline, collect.inspections(args.runs))
    drawn = figures.draw_all(rows, entries, args.baseline)
    record = {
        "title": args.runs.name, "answer": conclude(entries, args.baseline),
        "baseline": args.baseline, "caption": tables.caption(entries, args.baseline),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commits": sorted({r.result["commit"] for row in rows for r in row.runs}),
        **{key: rows[0].first.result[key] for key in ("versions", "hardware")}, "rows": entries}
    table = tables.results(entries, args.baseline)
    files = {
        "results.json": json.dumps(record, indent=1) + "\n", "results.csv": tables.as_csv(entries),
        "results.md": "\n\n".join((f"# {args.runs.name}", record["answer"], table,
                                   record["caption"])) + "\n",
        "report.html": page(record, drawn, rows),
        **{f"{name}.svg": drawing for name, (drawing, _) in drawn.items()}}
    for name, content in files.items():
        run.write_file(args.out / name, content)
    print(f"{table}\n\n{record['answer']}\npage: {args.out / 'report.html'}")


def conclude(entries: list[dict], baseline: str | None) -> str:
    """One sentence about the best row without real images, which of many looks better than it is:
    so the sentence has their number."""
    rows = [e for e in entries if e["method"] not in ("real", "alone", "folder")] or entries
    best = max(rows, key=lambda entry: entry["acc1_mean"])
    cell = tables.cells(best)
    text = "Without real images, " if rows is not entries else ""
    text += best["row"] + (f", the best of {len(rows)} such rows," if len(rows) > 1 else "")
    text += f" reaches {cell['mean']} {cell['std']}".rstrip() + f" % (n = {cell['n']})"
    if best["difference"] is None:
        return text + "."
    side = "below" if best["difference"] < 0 else "above"
    return (f"{text}, {abs(best['difference']):.2f} points {side} {baseline} "
            f"{cell['interval'].replace('(', '(95 % interval: ')}").rstrip() + "."


def page(record: dict, drawn: dict[str, tuple[str, str]], rows: list[Row]) -> str:
    """The self-contained page: every figure is inline, and the samples of the first image set."""
    import jinja2

    template = Path(tables.__file__).with_name("page.html.j2").read_text()
    samples = [row.first.source / "samples.png" for row in rows]
    return jinja2.Environment(autoescape=True).from_string(template).render(
        **record, figures=drawn, tables=tables, commands=collect.commands(rows),
        samples=next((base64.b64encode(path.read_bytes()).decode() for path in samples
                      if path.exists()), ""))


if __name__ == "__main__":
    sys.exit(main())
