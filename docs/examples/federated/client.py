"""One site of a federated training: trains AE-Flow on its own images, and sends flows and decoder.

`job.py` starts it at every site by NVFlare's client API. Of the rounds the first one sends where the training starts,
the last one only calibrates; between them each is some epochs of training.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ignite.engine import Events
from torch import Tensor, nn

from aeflow_monai import Workflow, config_files
from aeflow_monai.data import prepare_slice_batch

START, CALIBRATION = 1, 1  # rounds without a training

State = dict[str, np.ndarray[Any, Any]]


def travelling_state(network: nn.Module) -> State:
    """What a site sends: the numbers of flows and decoder of an AEFlow, and nothing of its encoder."""
    return {name: value.detach().cpu().numpy() for name, value in _travelling(network).items()}


def load_travelling_state(network: nn.Module, state: State) -> None:
    """Take flows and decoder that a site or the server has sent.

    Raises:
        ValueError: they are those of another network.
    """
    own = _travelling(network)
    shapes = ({name: tuple(value.shape) for name, value in each.items()} for each in (own, state))
    expected, given = shapes
    if expected != given:
        wrong = sorted(name for name in expected | given if expected.get(name) != given.get(name))
        raise ValueError(
            f"Expected {len(expected)} parts of flows and decoder; {len(wrong)} differ, as {wrong[0]}: the site has "
            f"{expected.get(wrong[0])}, and got {given.get(wrong[0])}. Give all sites the same options."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(torch.from_numpy(np.array(state[name])))


def _travelling(network: nn.Module) -> dict[str, Tensor]:
    """Those parts of a state dict; whole numbers, such as counts of batches, are no means of others."""
    state = network.state_dict()
    return {k: v for k, v in state.items() if k.startswith(("flows.", "decoder.")) and v.is_floating_point()}


class Site:
    """The training of one site, round by round.

    Args:
        data: its images, see docs/data.md.
        output: folder of its bundle.
        epochs: of all rounds together.
        options: of train.yaml, and presets under "presets".
    """

    def __init__(self, data: Path, output: Path, epochs: int, options: dict[str, Any], presets: list[str]) -> None:
        given = {"dataset_dir": str(data), "output_dir": str(output), "epochs": epochs, **options}
        self.workflow = Workflow(config_files("train", *presets), workflow_type="train", logging_file=False, **given)
        self.workflow.initialize()
        part = self.workflow.parser.get_parsed_content
        self.network, self.trainer = part("aeflow"), part("train#trainer")
        self.n_slices = len(part("train#slices"))
        # a round is no whole training: it may well end worse than it began, and it writes no bundle
        guard, self.writer = part("train#handlers")[2], part("train#writers")[-1]
        for event, handler in (
            (Events.STARTED, guard.start),
            (Events.COMPLETED, guard.finish),
            (Events.STARTED, self.writer.start),
            (Events.COMPLETED, self.writer),
        ):
            self.trainer.remove_event_handler(handler, event)
        self.writer.start(self.trainer)

    @torch.no_grad()
    def start(self) -> None:
        """Standardise the features by the first batch, as a training does; nothing is trained."""
        batch = next(iter(self.trainer.data_loader))
        image, _, _, options = prepare_slice_batch(batch, self.trainer.state.device)
        self.network.train()
        self.network(image, **options)

    def train(self, epochs: int) -> None:
        """Go on with the training, until it has had so many epochs."""
        self.trainer.state.max_epochs = epochs
        self.trainer.run()

    def finish(self) -> None:
        """Calibrate on this site's held-out normals, and write its bundle."""
        self.writer(self.trainer)
        self.workflow.finalize()


def main() -> None:
    """Take part in a job of NVFlare."""
    import nvflare.client as flare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the images of this site, in its name")
    parser.add_argument("--output", type=Path, required=True, help="folder for its bundle, in its name")
    parser.add_argument("--epochs", type=int, default=1, help="of each round")
    parser.add_argument("--preset", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="an option of train.yaml")
    given = parser.parse_args()
    flare.init()
    name, site = flare.get_site_name(), None
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        last = received.total_rounds - 1
        n_trainings = received.total_rounds - START - CALIBRATION
        if site is None:
            pairs = (each.split("=", 1) for each in given.set)
            options = {option: yaml.safe_load(value) for option, value in pairs}
            site = Site(given.data / name, given.output / name, n_trainings * given.epochs, options, given.preset)
            site.start()
        else:
            load_travelling_state(site.network, received.params)
            if received.current_round < last:
                site.train(received.current_round * given.epochs)
            else:  # before it answers, which ends the job
                site.finish()
        sent = travelling_state(site.network)
        flare.send(flare.FLModel(params=sent, meta={"NUM_STEPS_CURRENT_ROUND": site.n_slices}))


if __name__ == "__main__":
    main()
