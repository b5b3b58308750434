"""Made-up sessions of teaching: what is recorded, what is asked for, and how answers are counted."""

import numpy as np
import pytest

from pipelines.action import evaluate_teach
from pipelines.action.evaluate_teach import course_of, judged, sessions
from pipelines.action.local import LocalAction
from pipelines.action.skeletons import ACTIONS
from pipelines.action.train_files import configured
from pipelines.action.weights import build
from tests.action.bodies import body


@pytest.fixture(scope="module")
def made():
    people = [body(action, 3, seed) for action in range(1, 28) for seed in range(4)]
    return sessions(people, 3)


def test_a_session_teaches_one_action_without_a_class_and_asks_for_it_among_others(made):
    for session in made:
        assert session.taught not in ACTIONS and session.taught > 0
        assert len(session.features) == len(session.movements)
        before, after = session.movements[: session.test], session.movements[session.test :]
        assert set(before.tolist()) == {0, session.taught}
        assert session.taught in after and len(set(after.tolist())) > 3
        course = course_of(session)
        assert len(course.repetitions) == 5 and course.idle
        for piece in course.repetitions:
            assert (before[piece.start : len(piece.features)] == session.taught).all()
    assert len({session.taught for session in made}) == 3


def test_answers_are_counted_as_said():
    wanted, called = np.zeros(100, bool), np.zeros(100, bool)
    wanted[10:20] = wanted[40:50] = wanted[70:80] = True
    called[14:18] = True  # found after 0.4 s
    called[51:60] = True  # late, but not too late: 1.1 s
    called[84:90] = called[95:98] = called[2:5] = True  # three others
    found = judged(called, wanted)
    assert found.delays == pytest.approx((0.4, 1.1))
    assert (found.asked, found.wrong) == (3, 3) and found.minutes == pytest.approx(1 / 6)


def test_a_session_is_run_as_a_visitor_would(made):
    """Whatever the network: each chunk of the test is answered, and nothing but repetitions is asked for."""
    backend = LocalAction({"oadtr": build(configured("oadtr")).eval()})
    found = evaluate_teach.run(made[0], backend)
    assert found.asked == evaluate_teach.TESTED
    assert found.minutes == pytest.approx((len(made[0].features) - made[0].test) / 600)


def test_what_the_pupil_says_is_what_is_counted(made, monkeypatch):
    """One that always says the action finds everything at once; one that never does finds nothing."""

    class Says:
        def __init__(self, lessons, backend, brain, weights):
            assert [lesson.name for lesson in lessons] == [evaluate_teach.NAME] and lessons[0].repetitions == 5

        def push(self, features):
            self.action = self.word

    backend = LocalAction({"oadtr": build(configured("oadtr")).eval()})
    monkeypatch.setattr(evaluate_teach, "Pupil", Says)
    for Says.word, delays in (("taught", (0.0,) * evaluate_teach.TESTED), (None, ())):
        found = evaluate_teach.run(made[0], backend)
        assert found.delays == delays and found.wrong == 0
