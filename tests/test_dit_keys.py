"""The key map between the original DiT checkpoint's layout and diffusers'."""

import pytest
import torch

from dm_kd.errors import UserError
from dm_kd.generators import dit, dit_weights


def small_dit() -> dit.DiT:
    torch.manual_seed(0)
    model = dit.DiT(8, 2, 1, width=32, depth=3, heads=4, num_classes=10)
    for parameter in model.parameters():  # adaLN-Zero starts at zero: no block would count
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_there_and_back_gives_the_same_weights():
    state = small_dit().state_dict()
    back = dit_weights.from_diffusers(dit_weights.to_diffusers(state))
    assert back.keys() == state.keys() - {"pos_embed"}  # computed in diffusers
    assert all(torch.equal(value, state[key]) for key, value in back.items())


def test_converted_weights_share_no_memory():
    pointers = [v.data_ptr() for v in dit_weights.to_diffusers(small_dit().state_dict()).values()]
    assert len(set(pointers)) == len(pointers)


def test_embedding_tables_that_differ_between_blocks_are_refused():
    state = dit_weights.to_diffusers(small_dit().state_dict())
    state["transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"][3] += 1
    with pytest.raises(UserError, match="tables differ"):
        dit_weights.from_diffusers(state)


@pytest.mark.parametrize("change", ["missing", "unknown", "empty"])
def test_other_keys_are_refused(change):
    state = dit_weights.to_diffusers(small_dit().state_dict())
    if change == "missing":
        del state["proj_out_2.bias"]
    elif change == "unknown":
        state["transformer_blocks.0.attn2.to_q.weight"] = torch.zeros(1)
    else:
        state = {}
    with pytest.raises(UserError, match="DiTTransformer2DModel"):
        dit_weights.from_diffusers(state)


def test_diffusers_gives_the_same_output_after_its_two_known_patches():
    pytest.importorskip("diffusers")
    from dm_kd.bench import synthesis

    model = small_dit()
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 9, 10])
    t = torch.tensor([0, 10, 500, 990])
    with torch.no_grad():
        ours = model(x, t, labels)
        rival = synthesis.make_rival(model)
        plain = rival(x, timestep=t, class_labels=labels).sample
        patched = synthesis.patch(rival)(x, timestep=t, class_labels=labels).sample
    assert (patched - ours).abs().max() < 1e-5 * ours.abs().max()
    assert (plain - ours).abs().max() > 1e-4 * ours.abs().max()  # the patches are needed
