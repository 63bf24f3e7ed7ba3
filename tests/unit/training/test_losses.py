import pytest
import torch
from transformers import AutoModelForCausalLM

from dft_cluster.facts.layout import Example
from dft_cluster.training.batches import collate
from dft_cluster.training.losses import answer_logits, each_nll, total_nll
from tests import tiny

EXAMPLES = [
    Example((5, 6, 7, 8, 9, 10, 11), 4, 6),
    Example((12, 13, 14), 1, 3),
    Example((15, 16, 17, 18, 19), 3, 5),
]


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def model(request, tmp_path_factory):
    folder = tiny.architecture(request.param, tmp_path_factory.mktemp(request.param))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def plainly(model, example):
    """−log p of the targets of one example, alone, from all logits."""
    scores = model(input_ids=torch.tensor([example.ids])).logits[0].float().log_softmax(-1)
    return [-scores[place - 1, example.ids[place]] for place in range(example.start, len(example.ids))]


def test_the_loss_is_that_of_each_example_alone(model):
    batch = collate(EXAMPLES, pad=0)
    right = torch.stack([one for e in EXAMPLES for one in plainly(model, e)])
    logits = answer_logits(model, batch)
    assert logits.dtype == torch.float32 and len(logits) == len(batch.targets)
    torch.testing.assert_close(each_nll(logits, batch.targets), right, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(total_nll(logits, batch.targets), right.sum(), rtol=1e-4, atol=1e-4)


def test_the_head_sees_the_answers_alone_and_no_gradient_is_other(model, monkeypatch):
    seen, gradients = [], []
    batch = collate(EXAMPLES, pad=0)
    head = model.get_output_embeddings()
    watching = head.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape[:-1])))
    for known in (True, False):  # a model that does not say which module its head is gives all logits
        if not known:
            monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
        model.zero_grad()
        total_nll(answer_logits(model, batch), batch.targets).backward()
        gradients.append(torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None]))
    watching.remove()
    assert seen == [(1, len(batch.targets)), tuple(batch.ids.shape)]
    assert not head._forward_pre_hooks
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert gradients[0].abs().max() > 0


def test_what_pads_a_batch_says_nothing(model):
    losses = []
    for pad in (0, 3):
        batch = collate(EXAMPLES, pad)
        losses.append(each_nll(answer_logits(model, batch), batch.targets))
    torch.testing.assert_close(*losses)


def test_a_bf16_model_gives_fp32_logits(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny.model(tmp_path, dtype=torch.bfloat16), dtype=torch.bfloat16)
    assert answer_logits(model, collate(EXAMPLES, 0)).dtype == torch.float32
