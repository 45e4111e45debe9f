"""Gated controls on a plain U-Net: there during a call, gone after it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.attention import GatedSelfAttentionDense
from torch import Tensor

from diffusemble.controls import ControlledUNet, Gligen, Interaction
from diffusemble.controls.gated import gated, transformer_blocks
from diffusemble.controls.interaction import InteractionProjection
from gated_cases import CONDITIONS, HIDDEN, SLOTS, boxes, inputs, opened, relations, things
from tiny import WIDTH, randomised, tiny_unet

KINDS = (Interaction, Gligen)


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny_unet()


def call(unet: Any, controls: list[Any], given: tuple[Any, ...] | None = None, **conditions: Any) -> Tensor:
    guided = conditions.pop("guided", True)
    with torch.no_grad():
        return ControlledUNet(unet, controls, guided)(*(given or inputs()), cross_attention_kwargs=conditions).sample


def plain(unet: Any, given: tuple[Any, ...] | None = None) -> Tensor:
    with torch.no_grad():
        return unet(*(given or inputs())).sample


def state(unet: Any) -> list[Any]:
    return [(name, sorted(vars(module))) for name, module in unet.named_modules()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_control_changes_nothing(unet: Any, kind: Any):
    control = kind.from_unet(unet, hidden=HIDDEN, slots=SLOTS)
    assert torch.equal(call(unet, [control], **{kind.key: CONDITIONS[kind]()}), plain(unet))


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_call_the_network_is_what_it_was(unet: Any, kind: Any):
    before, names, output = state(unet), list(unet.state_dict()), plain(unet)
    control = opened(kind, unet)
    controlled = call(unet, [control], **{kind.key: CONDITIONS[kind]()})
    assert not torch.equal(controlled, output)
    assert state(unet) == before
    assert list(unet.state_dict()) == names
    assert torch.equal(plain(unet), output)
    assert torch.equal(call(unet, [control]), output)  # without a condition it is not attached


def test_modules_and_attention_processors_are_the_same_during_a_call(unet: Any):
    control, during = opened(Interaction, unet), []
    handle = unet.conv_out.register_forward_hook(
        lambda *_: during.append((list(unet.attn_processors), list(unet.state_dict())))
    )
    call(unet, [control], interaction=relations())
    handle.remove()
    assert during == [(list(unet.attn_processors), list(unet.state_dict()))]


def test_after_a_failed_call_the_network_is_what_it_was(unet: Any):
    before = state(unet)
    sample, timestep, text = inputs()
    with pytest.raises(RuntimeError):
        call(unet, [opened(Interaction, unet)], (sample, timestep, text[..., :-1]), interaction=relations())
    assert state(unet) == before


def test_members_share_one_network(unet: Any):
    first, second = opened(Interaction, unet), opened(Interaction, unet, seed=5)
    one, two = ControlledUNet(unet, [first]), ControlledUNet(unet, [second])
    kwargs = {"interaction": relations()}
    with torch.no_grad():
        alone = [member(*inputs(), cross_attention_kwargs=kwargs).sample for member in (one, two)]
        again = [member(*inputs(), cross_attention_kwargs=kwargs).sample for member in (two, one)]
    assert not torch.equal(*alone)
    assert torch.equal(alone[0], again[1])
    assert torch.equal(alone[1], again[0])


def test_two_kinds_act_together_in_their_order(unet: Any):
    interaction, gligen = opened(Interaction, unet), opened(Gligen, unet)
    both = call(unet, [interaction, gligen], interaction=relations(), gligen=things())
    turned = call(unet, [gligen, interaction], interaction=relations(), gligen=things())
    assert not torch.equal(both, turned)
    assert torch.equal(call(unet, [interaction, gligen], gligen=things()), call(unet, [gligen], gligen=things()))
    closed = Gligen.from_unet(unet, hidden=HIDDEN)
    alone = call(unet, [interaction], interaction=relations())
    assert torch.equal(call(unet, [closed, interaction], interaction=relations(), gligen=things()), alone)


def test_a_control_may_have_layers_in_some_blocks_only(unet: Any):
    control = opened(Interaction, unet)
    some = {name: size for name, size in control.sizes.blocks.items() if name.startswith(("mid_block", "up_blocks.1"))}
    partial = Interaction(replace(control.sizes, blocks=some))
    weights = control.state_dict()
    partial.load_state_dict({key: weights[key] for key in partial.state_dict()})
    with torch.no_grad():
        for name in control.sizes.blocks.keys() - some.keys():
            for gate in ("alpha_attn", "alpha_dense"):
                control.get_parameter(f"{name}.fuser.{gate}").zero_()
    condition = relations()
    assert torch.equal(call(unet, [partial], interaction=condition), call(unet, [control], interaction=condition))


def test_a_layer_computes_what_diffusers_computes():
    torch.manual_seed(0)
    layer = randomised(GatedSelfAttentionDense(query_dim=16, context_dim=12, n_heads=4, d_head=4))
    hidden, tokens = torch.randn(2, 9, 16), torch.randn(2, 7, 12)
    assert torch.equal(gated(layer, hidden, tokens), layer(hidden, tokens))
    assert torch.equal(gated(layer, hidden, tokens, scale=0.0), hidden)
    half = copy.deepcopy(layer)
    with torch.no_grad():
        for alpha in (half.alpha_attn, half.alpha_dense):
            alpha.copy_(torch.atanh(alpha.tanh() / 2))
    torch.testing.assert_close(gated(layer, hidden, tokens, scale=0.5), half(hidden, tokens))


def test_scale_nought_is_the_plain_network(unet: Any):
    assert torch.equal(call(unet, [opened(Gligen, unet)], gligen=things(scale=0.0)), plain(unet))


def test_what_lies_in_empty_slots_does_not_matter():
    torch.manual_seed(0)
    net = randomised(InteractionProjection(WIDTH, 12, HIDDEN, SLOTS))
    masks = torch.tensor([[1.0, 1, 0, 0, 0]])
    given = [boxes(5)[None], boxes(5, 1)[None], *torch.randn(3, 1, 5, WIDTH)]
    order = [0, 1, 4, 2, 3]
    turned = [tensor[:, order] for tensor in given]
    assert torch.equal(net(*given[:2], masks, *given[2:]), net(*turned[:2], masks, *turned[2:]))


def test_the_unconditional_half_sees_nothing(unet: Any):
    control = opened(Interaction, unet)
    first, second = (call(unet, [control], interaction=relations(seed=seed)) for seed in (0, 9))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    nothing = call(unet, [control], inputs(1, guided=False), guided=False, interaction=[None])
    assert nothing.shape == (1, 4, 8, 8)


def test_every_picture_may_have_its_own_condition(unet: Any):
    control = opened(Interaction, unet)
    sample, timestep, text = inputs(8)
    conditions = [relations(1), relations(3, seed=4)]
    mixed = call(unet, [control], (sample, timestep, text), interaction=conditions)  # two pictures a prompt
    for row in range(4):
        one = (sample[[row, row]], timestep, text[[row, 4 + row]])
        alone = call(unet, [control], one, interaction=conditions[row // 2])
        torch.testing.assert_close(mixed[[row, 4 + row]], alone, rtol=1e-4, atol=1e-5)


def test_tokens_are_computed_once_and_anew_when_weights_change(unet: Any):
    control, condition, calls = opened(Interaction, unet), relations(), []
    control.position_net.register_forward_hook(lambda *_: calls.append(1))
    first = call(unet, [control], interaction=condition)
    assert torch.equal(call(unet, [control], interaction=condition), first)
    assert len(calls) == 1
    with torch.no_grad():
        control.position_net.linears[0].weight.mul_(2)
    assert not torch.equal(call(unet, [control], interaction=condition), first)
    call(unet, [control.double()], interaction=condition)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(unet: Any, kind: Any, dtype: torch.dtype):
    control = opened(kind, unet)
    exact = call(unet, [control], **{kind.key: CONDITIONS[kind]()})
    low, control = copy.deepcopy(unet).to(dtype), copy.deepcopy(control).to(dtype)
    sample, timestep, text = inputs()
    result = call(low, [control], (sample.to(dtype), timestep, text.to(dtype)), **{kind.key: CONDITIONS[kind]()})
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), exact, rtol=0, atol=0.2 * exact.abs().max().item())
    mixed = call(low, [control.float()], (sample.to(dtype), timestep, text.to(dtype)), **{kind.key: CONDITIONS[kind]()})
    assert mixed.dtype == dtype  # a control in training may be more exact than its U-Net


def gradients(unet: Any, control: Any, condition: Any) -> dict[str, Tensor]:
    control.zero_grad()
    output = ControlledUNet(unet, [control], guided=False)(
        *inputs(guided=False), cross_attention_kwargs={control.key: condition}
    ).sample
    output.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in control.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_control_learns_beside_a_frozen_network(kind: Any):
    unet = tiny_unet().requires_grad_(False)
    control = opened(kind, unet)
    conditions = [CONDITIONS[kind](seed=1), None]
    found = gradients(unet, control, conditions)
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in found.values())
    unet.train().enable_gradient_checkpointing()  # blocks run again in the backward pass, after the call
    saved = gradients(unet, control, conditions)
    for name, gradient in found.items():
        torch.testing.assert_close(saved[name], gradient, msg=name)
    assert torch.equal(plain(unet), plain(tiny_unet()))


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_control_can_learn(unet: Any, kind: Any):
    control = kind.from_unet(unet, hidden=HIDDEN, slots=SLOTS)
    found = gradients(unet, control, CONDITIONS[kind]())
    assert all(found[name].abs() > 0 for name in found if "alpha" in name)


def test_a_gated_network_is_refused():
    gated_unet = tiny_unet(attention_type="gated")
    with pytest.raises(ValueError, match=r"has gated layers of its own .*Attach the control to the plain U-Net"):
        call(gated_unet, [opened(Interaction, tiny_unet())], interaction=relations())


def test_a_network_of_another_shape_is_refused(unet: Any):
    control = opened(Interaction, unet)
    other = tiny_unet(block_out_channels=(16, 16, 32, 64))
    with pytest.raises(ValueError, match=r"gated layer for .* has 32 channels in 4 heads, the U-Net's block 64 in 4"):
        call(other, [control], interaction=relations())
    small = tiny_unet(
        block_out_channels=(16, 32), down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2
    )
    assert len(transformer_blocks(small)) == 1
    with pytest.raises(ValueError, match=r"a gated layer for down_blocks\.0.* which this U-Net does not have"):
        call(small, [control], interaction=relations())


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (relations(SLOTS + 1), "This control has 5 slots; the condition of 'interaction' takes 6. Leave some out"),
        (things(), "takes a InteractionCondition .* got a GligenCondition"),
        ([relations(), relations(scale=0.5)], "need the same scale and until"),
        (relations(width=7), "embeddings of width 32; those of the condition have 7"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(unet: Any, condition: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call(unet, [opened(Interaction, unet)], inputs(4), interaction=condition)


def test_rows_that_are_no_halves_are_refused(unet: Any):
    with pytest.raises(ValueError, match=r"got 2 rows that are not two equal halves.*guided"):
        call(unet, [], inputs(2, guided=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: relations(until=1.5), "until is a share of the schedule, 0 to 1; got 1.5"),
        (lambda: type(things())(boxes(2), torch.zeros(3, WIDTH)), r"phrases is \[3, 32\], expected \[2 d\]"),
        (lambda: type(things())(torch.zeros(2, 5), torch.zeros(2, WIDTH)), r"boxes is \[2, 5\], expected \[2 4\]"),
    ],
)
def test_a_condition_that_is_none_is_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
