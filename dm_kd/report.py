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
from dm_kd.run import UserError, nearest


def parse(argv: list[str]) -> argparse.Namespace:
    parser = run.Parser("report", __doc__)
    parser.add_argument("--runs", type=Path, metavar="FOLDER", required="--published" not in argv,
                        help="every finished run below it is read")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER",
                        help="where the page, the tables and the figures are written")
    parser.add_argument("--rows", default="", metavar="A,B,C",
                        help="rows to show first, in this order (default: by accuracy)")
    parser.add_argument("--baseline", default=None, metavar="ROW",
                        help="row that the others are compared with (default: none)")
    parser.add_argument("--title", default="Distillation without real images", metavar="TEXT",
                        help="of the page (default: %(default)s)")
    parser.add_argument("--record", type=Path, default=None, metavar="FOLDER",
                        help="also write the tables and figures there (default: nowhere)")
    parser.add_argument("--published", action="store_true", help="write the published tables")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would report on {args.runs or 'the published numbers'} in {args.out}")
        return
    if args.published:
        run.write_file(args.out / "published_tables.md", tables.published_tables())
        print(args.out / "published_tables.md")
        return
    order = [name for name in args.rows.split(",") if name]
    rows, skipped = collect.rows(args.runs, order)
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    names = [row.name for row in rows]
    if not rows:
        raise UserError(f"no finished and evaluated run in {args.runs}",
                        "a folder with runs of distill or train_teacher")
    for name in (*order, *filter(None, [args.baseline])):
        if name not in names:
            raise UserError(f"no row {name} in {args.runs}", nearest(name, names))
    sets = collect.inspections(args.runs)
    entries = tables.records(rows, args.baseline, sets)
    drawn = figures.draw_all(rows, entries, args.baseline, sets)
    samples = figures.draw_samples(rows)
    record = {
        "title": args.title, "answer": conclude(entries, args.baseline, bool(order)),
        "baseline": args.baseline, "caption": tables.caption(entries, args.baseline),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commits": sorted({str(r.result.get("commit")) for row in rows for r in row.runs}),
        **{key: rows[0].first.result.get(key) for key in ("versions", "hardware")},
        "rows": entries}
    files = {"results.json": json.dumps(record, indent=1) + "\n",
             "results.csv": tables.as_csv(entries), "samples.png": samples,
             **{f"{name}.svg": drawing for name, (drawing, _) in drawn.items()}}
    for folder in filter(None, (args.out, args.record)):
        for name, content in files.items():
            if content:
                run.write_file(folder / name, content)
    table = tables.results(entries, args.baseline)
    run.write_file(args.out / "results.md", "\n\n".join(
        (f"# {args.title}", record["answer"], table, record["caption"])) + "\n")
    run.write_file(args.out / "report.html",
                   page(record, drawn, samples, collect.commands(rows), skipped))
    print(f"{table}\n\n{record['answer']}\npage: {args.out / 'report.html'}")


def conclude(entries: list[dict], baseline: str | None, ordered: bool) -> str:
    """One sentence about the first row without real images. It says so if that row is the first
    because of its accuracy (not `ordered`): the best of many rows looks better than it is."""
    synthetic = [e for e in entries if e["method"] not in ("real", "alone", "folder")]
    rows = synthetic or entries
    entry = rows[0]
    text = "Without real images, " if synthetic else ""
    text += entry["row"] + (
        "" if ordered or len(rows) == 1 else f", the best of {len(rows)} such rows,")
    cell = tables.cells(entry)
    text += " ".join((" reaches", cell["mean"], cell["std"])).rstrip() + f" % (n = {cell['n']})"
    if entry["difference"] is None:
        return text + "."
    side = "below" if entry["difference"] < 0 else "above"
    text += f", {abs(entry['difference']):.2f} points {side} {baseline}"
    return text + (cell["interval"] and f" (95 % interval: {cell['interval'][1:]}") + "."


def page(record: dict, drawn: dict[str, tuple[str, str]], samples: bytes | None,
         commands: list[str], skipped: list[str]) -> str:
    """The self-contained page: every figure is inline."""
    import jinja2

    template = Path(tables.__file__).with_name("page.html.j2").read_text()
    return jinja2.Environment(autoescape=True).from_string(template).render(
        **record, figures=drawn, tables=tables, commands=commands, skipped=skipped,
        samples=samples and base64.b64encode(samples).decode())


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
