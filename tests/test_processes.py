"""What three processes compute together is what one computes; one has abnormal images alone, and one no target."""

import os
from pathlib import Path

import torch
from forked import ForkServer

from aeflow_monai.processes import gathered, n_processes, process_number, summed, wait_for_all

SCRIPT = """
import torch
from torch import distributed as dist
from torch import nn

from aeflow_monai.network.aeflow import AEFlowOutput
from aeflow_monai.network.feature_norm import FeatureNorm
from aeflow_monai.network.loss import AEFlowLoss, MixtureLoss, MixturePrior
from aeflow_monai.processes import gathered, n_processes, process_number, summed, wait_for_all


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.flow, self.norm = nn.Conv2d(1, 4, 4, stride=4), FeatureNorm(4)
        self.decoder = nn.ConvTranspose2d(4, 1, 4, stride=4)

    def forward(self, image, is_target):
        latent, _ = self.norm(self.flow(image))
        likelihood = -latent.square().mean(dim=1, keepdim=True)
        return AEFlowOutput([latent], [likelihood], self.decoder(latent).sigmoid(), is_target=is_target)


def trained(rows, all_processes):
    torch.manual_seed(0)
    network = Network()
    images, lesions = torch.rand(12, 1, 16, 16), torch.zeros(12, 1, 16, 16)
    for row in (0, 3, 6, 9):
        lesions[row, :, : 4 + row, : 8] = 1
    loss = MixtureLoss(AEFlowLoss(), MixturePrior([4]), all_processes=all_processes)
    output = network(images[rows], torch.tensor([row % 3 == 1 for row in rows]))
    value = loss(output, (images[rows], lesions[rows]))
    value.backward()
    flow = loss.flow_loss(output, (images[rows], lesions[rows]))
    reconstruction = loss.reconstruction_loss(output, (images[rows], lesions[rows]))
    gradients = [p.grad for p in network.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [value.detach(), flow.detach(), reconstruction.detach(), network.norm.mean, network.norm.std, *gradients]


dist.init_process_group("gloo")
own = process_number()
assert (n_processes(), gathered(own), summed(torch.tensor(own)).item()) == (3, [0, 1, 2], 3)
together = [summed(each) / 3 for each in trained(list(range(own, 12, 3)), True)]
wait_for_all()
dist.destroy_process_group()
for each, expected in zip(together, trained(list(range(12)), False)):
    torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-6)
print("same")
"""


def test_processes_together_compute_what_one_does(tmp_path: Path, fork_server: ForkServer) -> None:
    done = fork_server.run(["-c", SCRIPT], tmp_path, {**os.environ, "OMP_NUM_THREADS": "1"}, ranks=3)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same") == 3


def test_a_process_alone_only_tells_itself() -> None:
    wait_for_all()
    assert (n_processes(), process_number(), gathered("part")) == (1, 0, ["part"])
    values = torch.ones(2, requires_grad=True)
    assert not summed(values).requires_grad
    assert torch.equal(summed(values), torch.ones(2))
