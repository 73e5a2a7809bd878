"""Weight decay: on weights, not on norms, biases, scales, tokens and position embeddings."""

import pytest
import torchvision
from torch import nn

from fastast.engine.optimizer import build_optimizer, has_weight_decay


def without_decay(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not has_weight_decay(model, name, p)}


@pytest.mark.parametrize(
    ("arch", "fragment", "count"),
    [("convnext_tiny", "layer_scale", 18), ("vit_b_16", "class_token", 1), ("vit_b_16", "pos_embedding", 1)]
    + [("swin_t", "relative_position_bias_table", 12), ("swin_v2_t", "logit_scale", 12)],
)
def test_scales_tokens_and_positions_are_not_decayed(arch, fragment, count):
    model = torchvision.models.get_model(arch, weights=None)
    left = without_decay(model)
    assert sum(fragment in name for name in left) == count
    assert {name for name, p in model.named_parameters() if p.ndim <= 1} <= left
    decayed = {name for name, _ in model.named_parameters()} - left
    assert all(name.endswith(("weight", "in_proj_weight")) for name in decayed)


def test_networks_own_list_is_followed():
    class Listed(nn.Sequential):
        def no_weight_decay(self):
            return {"0.weight"}

    model = Listed(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = build_optimizer(model, momentum=0.9, weight_decay=0.1)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert len(decayed) == 1
    assert decayed[0] is model[1].weight
