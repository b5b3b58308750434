"""The tab as a whole: its pages, and that nobody's training stands in the queue of the other tabs."""

import threading

import gradio as gr
import torch

from pipelines.common import backends
from pipelines.foundations import one_core, tab


def test_what_is_live_has_a_group_of_its_own():
    with gr.Blocks() as page, gr.Tab("Foundations") as outer:
        tab.build(page, outer)
    groups = {event.api_name: event.concurrency_id for event in page.fns.values() if event.fn is not None}
    assert set(groups.values()) == {"foundations", "light"}
    live = ("margins_train", "margins_all", "attention_costs", "attention_bits", "recurrence", "scale_train",
            "experts_train")  # fmt: skip
    assert {groups[f"foundations_{name}"] for name in (*live, "complete", "nats")} == {"foundations"}


def test_a_step_is_taken_on_one_core_and_lets_others_work():
    torch.set_num_threads(2)
    order = []

    def other():
        with backends.step("cpu"):
            order.append("another tab")

    try:
        with one_core.step():
            thread = threading.Thread(target=other)
            thread.start()
            order.append(torch.get_num_threads())
        thread.join(10)
        assert order == [1, "another tab"] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_first_weights_are_drawn_by_one_training_at_a_time():
    torch.manual_seed(3)
    before, found = torch.get_rng_state(), {}

    def draw(seed):
        with one_core.seeded(seed):
            found[seed] = [float(torch.rand(())), float(torch.rand(()))]

    with one_core.seeded(1):
        first = float(torch.rand(()))
        thread = threading.Thread(target=draw, args=(2,))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # it waits
        mine = [first, float(torch.rand(()))]
    thread.join(10)
    draw(1)
    assert found[1] == mine != found[2] and (torch.get_rng_state() == before).all()
