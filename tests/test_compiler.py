"""Torch's compiler is loaded by the first that needs it, and a training that does without has the same bits."""

from __future__ import annotations

LATER = """
import sys
from kt import compiler

compiler.put_off()
import timm, torch
from torchvision.ops import roi_align

def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    images = torch.randn(5, 3, 8, 8)
    model(images)
    for make in (torch.optim.AdamW, torch.optim.SGD):
        optimiser = make(model.parameters(), lr=0.1, fused=True)
        for _ in range(2):
            model(images).logsumexp(1).sum().backward()
            optimiser.step()
            optimiser.zero_grad()
    return [tensor.clone() for tensor in model.state_dict().values()]

before = trained()
assert "torch._inductor" not in sys.modules and "sympy" not in sys.modules

import torch._dynamo
import torch._dynamo.utils
assert torch._dynamo.config.cache_size_limit > 0, "what it does not know is the compiler's"
assert "torch._inductor" in sys.modules and type(sys.modules["torch._dynamo"]).__name__ == "module"
assert sys.modules["torch._dynamo.utils"].is_compile_supported("cpu") in (True, False)

double = torch.compile(lambda x: x.relu() * 2, backend="eager")
assert double(torch.tensor([-1.0, 3.0])).tolist() == [0.0, 6.0]
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
assert roi_align(torch.ones(1, 1, 8, 8), boxes, 2).shape == (1, 1, 2, 2)
for one, other in zip(before, trained(), strict=True):
    assert torch.equal(one, other)

module = sys.modules["torch._dynamo"]
compiler.put_off()
assert sys.modules["torch._dynamo"] is module, "it stays where it is loaded already"
"""

SUBMODULE = """
from kt import compiler

compiler.put_off()
from torch._dynamo import external_utils, disable
import torch._dynamo.config
assert disable(lambda x: x + 1)(1) == 2 and callable(torch._dynamo.optimize)
"""


def test_the_compiler_waits_until_somebody_needs_it_and_changes_no_bit(python):
    done = python(LATER)
    assert done.returncode == 0, done.stderr


OTHERS = """
import importlib.util
from kt import compiler

compiler.put_off()
assert importlib.util.find_spec("torch._dynamo") is not None
import torch
from torch import nn

layer = torch.compiler.disable(nn.Linear(2, 3))
assert isinstance(layer, nn.Module) and len(list(layer.parameters())) == 2
compiler.put_off()

@torch.compiler.disable
class Base(nn.Module):
    def forward(self, x):
        return x

class Own(Base):
    pass

assert Own()(1) == 1
import torch._dynamo as dynamo
dynamo.mark = 1
assert sys.modules["torch._dynamo"].mark == dynamo.mark == 1
"""


def test_only_functions_are_left_as_they_are(python):
    done = python("import sys" + OTHERS)
    assert done.returncode == 0, done.stderr


def test_parts_of_the_compiler_can_be_imported(python):
    done = python(SUBMODULE)
    assert done.returncode == 0, done.stderr
