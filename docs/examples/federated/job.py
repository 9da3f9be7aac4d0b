"""A federated training of AE-Flow, simulated by NVFlare: a server and sites, each a process of its own on this machine.

    python docs/examples/federated/job.py --data SITES --output OUT --rounds 5

SITES holds a folder for each site, with images as docs/data.md describes them; OUT gets a bundle for each. The server
averages flows and decoder, weighed by the slices of the sites (FedAvg); it needs no image and no aeflow_monai. With
--export FOLDER and --sites the job is written for a real network of sites instead; nothing is trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import FrameworkType, ScriptRunner

CLIENT = Path(__file__).parent / "client.py"


def job_of(sites: list[str], rounds: int, arguments: list[str], python: str = sys.executable) -> FedJob:
    """The job: the server's rounds, and the script that the sites run, each in a process of its own."""
    job = FedJob(name="aeflow", min_clients=len(sites))
    # one more round to start from, and one to calibrate the last average
    job.to_server(FedAvg(num_clients=len(sites), num_rounds=rounds + 2, save_filename="average.fobs"))
    for site in sites:
        runner = ScriptRunner(
            script=str(CLIENT),
            script_args=arguments,
            launch_external_process=True,
            command=[python, "-u"],
            framework=FrameworkType.NUMPY,
        )
        job.to(runner, site)
    return job


def main() -> None:
    """Simulate it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder of images for each site")
    parser.add_argument("--output", type=Path, required=True, help="folder for the bundles")
    parser.add_argument("--export", type=Path, help="folder for the job")
    parser.add_argument("--sites", nargs="+", help="names; those of the folders in --data if not given")
    parser.add_argument("--rounds", type=int, default=5, help="of training")
    parser.add_argument("--epochs", type=int, default=1, help="of each round")
    parser.add_argument("--workspace", type=Path, help="of the simulator; OUT/nvflare if not given")
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of train.yaml")
    given = parser.parse_args()
    sites = given.sites or sorted(path.name for path in given.data.iterdir() if path.is_dir())
    if not sites:
        parser.error(f"expected a folder for each site in {given.data}; there is none")
    words = ["--data", str(given.data.absolute()), "--output", str(given.output.absolute())]
    words += ["--epochs", str(given.epochs)]
    for option in ("preset", "set"):
        words += [word for value in getattr(given, option) for word in (f"--{option}", value)]
    if given.export:
        job_of(sites, given.rounds, words, python="python3").export_job(str(given.export))
        print(f"job: {(given.export / 'aeflow').absolute()}")
        return
    workspace = given.workspace or given.output / "nvflare"
    job = job_of(sites, given.rounds, words)
    status = job.simulator_run(workspace=str(workspace), clients=sites, threads=len(sites))
    missing = [name for name in sites if not (given.output / name / "models/model.pt").is_file()]
    if status or missing:
        parser.exit(1, f"The job ended with {status}; no model of {missing}. See the log.txt below {workspace}.\n")
    for name in sites:
        print(f"{name}: {(given.output / name).absolute()}")


if __name__ == "__main__":
    main()
