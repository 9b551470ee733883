"""Tables, figures and one self-contained page of finished runs: report.html, results.md,
results.csv, results.json and the figures as SVG files.

    python -m dm_kd.report --runs save/student_model --out save/report --baseline kd_real

Runs whose paths differ only in seedN, foldN, genN or setN are repetitions of one row. With
--published instead of --baseline: the numbers of the papers with the command that remakes each,
and beside them those of the runs that correspond.
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
    parser.add_argument("--published", action="store_true",
                        help="write the published tables, with the runs' numbers where there are "
                             "any")
    run.add_common_arguments(parser)
    return run.parse(parser, argv)


def body(argv: list[str]) -> None:
    args = parse(argv)
    if args.dry_run:
        print(f"would report on {args.runs or 'the published numbers'} in {args.out}")
        return
    if args.runs and not args.runs.exists():
        raise UserError(f"--runs {args.runs} does not exist", "a folder with finished runs")
    order = [name for name in args.rows.split(",") if name]
    rows, skipped = collect.rows(args.runs, order) if args.runs else ([], [])
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    if args.published:
        run.write_file(args.out / "published_tables.md", tables.published_tables(rows))
        print(args.out / "published_tables.md")
        return
    if not rows:
        raise UserError(f"no finished and evaluated run in {args.runs}",
                        "a folder with runs of distill or train_teacher")
    names = [row.name for row in rows]
    if args.baseline not in (None, *names):
        raise UserError(f"no row {args.baseline} in {args.runs}", nearest(args.baseline, names))
    for name in order:
        if name not in names:
            print(f"no row {name} yet", file=sys.stderr)
    sets = collect.inspections(args.runs)
    made = tables.records(rows, args.baseline, sets)
    answer = conclude(made, args.baseline, bool(order))
    drawn = figures.draw_all(rows, made, args.baseline, sets)
    samples = figures.draw_samples(rows)
    kept = {"results.json": record(args, made, answer, rows), "results.csv": tables.as_csv(made),
            **{f"{name}.svg": drawing for name, (drawing, _) in drawn.items()},
            **({"samples.png": samples[0]} if samples else {})}
    for folder in filter(None, (args.out, args.record)):
        for name, content in kept.items():
            run.write_file(folder / name, content)
    table = tables.results(made, args.baseline)
    run.write_file(args.out / "results.md", f"# {args.title}\n\n{answer}\n\n" + (
        f"{tables.markdown_table(table)}\n\n{tables.caption(made, args.baseline)}\n"))
    run.write_file(args.out / "report.html", page(args, made, answer, rows, skipped, drawn,
                                                  samples))
    print(f"{tables.plain_text(table)}\n\n{answer}\npage: {args.out / 'report.html'}")


def record(args: argparse.Namespace, made: list[dict], answer: str, rows: list[collect.Row]) -> str:
    """results.json: the rows with the accuracy of each run, and where they were made."""
    results = [r.result for row in rows for r in row.runs]
    return json.dumps({
        "title": args.title, "answer": answer, "baseline": args.baseline,
        "caption": tables.caption(made, args.baseline),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commits": sorted({str(r.get("commit")) for r in results}),
        "versions": results[0].get("versions"), "hardware": results[0].get("hardware"),
        "rows": made}, indent=1) + "\n"


def conclude(made: list[dict], baseline: str | None, ordered: bool) -> str:
    """One sentence about the first row without real images: of the order given, else the best."""
    synthetic = [e for e in made if e["method"] not in ("real", "alone", "folder")]
    entry = (synthetic or made)[0]
    best = "" if ordered or len(synthetic) < 2 else f", the best of {len(synthetic)} such rows"
    text = "Without real images, " if synthetic else ""
    text += f"{entry['row']} reaches {tables.accuracy(entry)} % (n = {entry['n']}{best})"
    if entry["difference"] is None:
        return text + "."
    text += (f", {abs(entry['difference']):.2f} points "
             f"{'below' if entry['difference'] < 0 else 'above'} {baseline}")
    low, high = entry["difference_low"], entry["difference_high"]
    return text + ("." if low is None else
                   f" (95 % interval of the difference: {low:+.2f} to {high:+.2f}).")


def page(args: argparse.Namespace, made: list[dict], answer: str, rows: list[collect.Row],
         skipped: list[str], drawn: dict, samples: tuple | None) -> str:
    """The self-contained page: every figure is inline."""
    import jinja2

    if samples:
        data = base64.b64encode(samples[0]).decode()
        image = f'<img alt="sample images" src="data:image/png;base64,{data}">'
        first, *others = drawn.items()
        drawn = dict([first, ("samples", (image, samples[1])), *others])
    first = made[0]["task"], time.strftime("%Y-%m-%d", time.gmtime())
    template = jinja2.Environment(autoescape=True).from_string(
        Path(tables.__file__).with_name("page.html.j2").read_text())
    return template.render(
        title=args.title, answer=answer, rows=made, baseline=args.baseline, figures=drawn,
        tables=tables, last=[line[-1] for line in tables.results(made, args.baseline)],
        caption=tables.caption(made, args.baseline), skipped=skipped,
        commands=collect.commands(rows, args.runs), facts="task {}, {}".format(*first),
        commits=sorted({str(r.result.get("commit")) for row in rows for r in row.runs}),
        machine={**(rows[0].first.result.get("hardware") or {}),
                 **(rows[0].first.result.get("versions") or {})})


def main(argv: list[str] | None = None) -> int:
    return run.main(body, argv)


if __name__ == "__main__":
    sys.exit(main())
