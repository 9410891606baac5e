"""The work of `ptp tune`: the check of the signals, the race, the report on other pictures, and the clock; it can resume."""

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bench.clock import seconds
from ..errors import UnsupportedModelError
from ..evaluation.data import Question
from ..evaluation.own import Asker, Full
from ..methods.parsing import Variant
from ..pruner import Pruner
from ..runtime.vision import resolve
from .candidates import Arm
from .race import Results, Seen, best, places, rounds, survivors
from .rows import GENERIC, Halves
from .signals import Checked, DropTenth, check, signals
from .statistics import Finding, Map, finding

CHECKED = 48
"""Questions that the signals are checked on."""
PASSES = 5
"""Passes of the model that a signal takes with each."""
CLOCK_ROUNDS, CLOCK_SECONDS, LEAST_ROUNDS = 9, 60.0, 3
"""Rounds of whole calls that are timed; after so many seconds no more than the least number."""
Note = dict[str, Any]


class Tuner:
    """Asks one model all that tuning needs.

    Args:
        asker: Of the model, for all arms and `signal_readers`.
        halves: The questions.
        arms: Those that begin the race.
        notes: What an earlier run noted.
        note: Keeps one more.
        progress: Told (what is being done, passes of the model done, passes in all as far as is known).
    """

    def __init__(
        self,
        asker: Asker,
        halves: Halves,
        arms: Sequence[Arm],
        notes: Sequence[Note] = (),
        note: Callable[[Note], None] = lambda note: None,
        progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    ) -> None:
        self.asker, self.halves, self.arms, self._progress = asker, halves, list(arms), progress
        self._known = {(one["kind"], one.get("key")): one for one in notes}
        self._note = note
        self._pruners = {arm: arm.variant.pruner(arm.keep_ratio) for arm in self.arms}
        self.bad = [(one["key"], one["reason"]) for one in notes if one["kind"] == "bad"]
        self._window = next((pruner.window for pruner in self._pruners.values()), Pruner.window)
        self.signals = signals(len(asker.adapter.layers))
        self._done = 0
        self._total = self._signal_passes + self._race_passes() + self._late_passes

    def check_signals(self) -> tuple[list[Finding], dict[str, str]]:
        """What the signals say on this checkpoint; and those that it cannot be asked for, by name, with the reason."""
        found: dict[str, list[Checked]] = {name: [] for name in self.signals}
        refused: dict[str, str] = {}
        for place, row in enumerate(self.halves.choosing[:CHECKED]):
            note = self._known.get(("signals", row.number))
            if note is None:
                note = self._ask(row, "signals", partial(self._signals, row, place, refused))
            if note is not None:
                refused |= note["refused"]
                for name, checked in note["found"].items():
                    found[name].append(_unpacked(checked))
            self._advance("Signals", PASSES * len(self.signals))
        return [_finding(name, own) for name, own in found.items() if own and name not in refused], refused

    def race(self) -> Results:
        """The race on the choosing half: what the finalists did on all of it."""
        alive, entered = self.arms, Counter(arm.share for arm in self.arms)
        results: dict[Arm, list[Seen]] = {arm: [] for arm in alive}
        rows, asked = iter(self.halves.choosing), 0
        ends = rounds(len(self.halves.choosing))
        for number, end in enumerate(ends):
            for row in rows:
                note = self._asked(row, "race", alive)
                self._advance("Race", len(alive))
                if note is None:
                    continue
                for arm in alive:
                    results[arm].append(Seen(*note["seen"][arm.key]))
                asked += 1
                if asked == end:
                    break
            if asked and end != ends[-1]:
                alive = survivors({arm: results[arm] for arm in alive}, entered, number)
        self._total = self._done + self._late_passes
        return {arm: results[arm] for arm in alive} if asked else {}

    def report(self, arms: Sequence[Arm]) -> tuple[dict[Arm, list[Seen]], list[int]]:
        """What some arms do on the reporting half; and the picture of each of its rows."""
        results: dict[Arm, list[Seen]] = {arm: [] for arm in arms}
        groups = []
        for row in self.halves.reporting:
            note = self._asked(row, "report", arms)
            self._advance("Report", len(arms))
            if note is not None:
                groups.append(self.halves.groups[row.number])
                for arm in arms:
                    results[arm].append(Seen(*note["seen"][arm.key]))
        return results, groups

    def clock(self, arms: Sequence[Arm]) -> dict[str, list[float]]:
        """Seconds from the pixels to the first token, whole calls, round by round: of the unpruned model ("full") and each arm.

        A picture of the reporting half a round; in each, everybody in turn, beginning with another one.
        """
        bad = {number for number, _ in self.bad}
        rows = [row for row in self.halves.reporting if row.number not in bad]
        runners: dict[str, Pruner | None] = {"full": None, **{arm.key: self._pruners[arm] for arm in arms}}
        times: dict[str, list[float]] = {name: [] for name in runners}
        spent = 0.0
        for number in range(CLOCK_ROUNDS if rows else 0):
            if spent > CLOCK_SECONDS and number >= LEAST_ROUNDS:
                break
            note = self._known.get(("clock", number))
            if note is None:
                note = {"kind": "clock", "key": number, "seconds": self._round(rows[number % len(rows)], runners, number)}
                self._note(note)
            for name in runners:
                times[name].append(note["seconds"][name])
            spent += sum(note["seconds"].values())
            self._advance("Clock", len(runners))
        return times

    def finalists(self, results: Results) -> list[Arm]:
        """The best arm of each share, most tokens first."""
        return best(results)

    @torch.inference_mode()
    def _round(self, row: Question, runners: Mapping[str, Pruner | None], number: int) -> dict[str, float]:
        model, made = self.asker.model, self.asker.prepare(row)
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
            for name, value in made.items()
            if isinstance(value, Tensor)
        }

        def run() -> None:
            int(model(**inputs, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

        found = {}
        names = list(runners)
        start = number % len(names)
        run()  # a warm-up of this picture's shapes
        for name in [*names[start:], *names[:start]]:
            pruner = runners[name]
            if pruner is None:
                found[name] = seconds(run, model.device)
            else:
                with pruner(model, self.asker.processor):
                    found[name] = seconds(run, model.device)
        return found

    def _asked(self, row: Question, kind: str, arms: Sequence[Arm]) -> Note | None:
        """What some arms did on a question; None where it cannot be asked."""
        known = self._known.get((kind, row.number))
        return known or self._ask(row, kind, lambda full: {"seen": {arm.key: self._seen(full, arm) for arm in arms}})

    def _ask(self, row: Question, kind: str, work: Callable[[Full], dict[str, Any]]) -> Note | None:
        if any(number == row.number for number, _ in self.bad):
            return None
        try:
            inputs = self.asker.prepare(row)
        except ValueError as error:
            self.bad.append((row.number, str(error)))
            self._note({"kind": "bad", "key": row.number, "reason": str(error)})
            return None
        note = {"kind": kind, "key": row.number, **work(self.asker.unpruned(row, inputs))}
        self._note(note)
        return note

    def _seen(self, full: Full, arm: Arm) -> list[Any]:
        led = self.asker.led(full, self._pruners[arm])
        kept = led.trace.visual_tokens[1] / max(full.total, 1)
        ratio = led.steps.first_token / full.steps.first_token
        return [not led.agreement.same, led.agreement.kl, ratio, kept]

    def _signals(self, row: Question, place: int, refused: dict[str, str], full: Full) -> dict[str, Any]:
        """Every signal on one question."""
        others = [one.text for one in self.halves.choosing[place + 1 :] + self.halves.choosing[:place]]
        text = next(one for one in [*others, *GENERIC] if one != row.text)
        asker, reread = self.asker, replace(row, text=text)
        other_words = asker.prepare(reread)
        found, failed = {}, dict[str, str]()
        for name, (signal, layer) in self.signals.items():
            if name in refused:
                continue
            try:
                checked = check(
                    partial(asker.led, full), partial(asker.prefill, full, other_words), signal, layer, self._window
                )
            except UnsupportedModelError as error:
                failed[name] = str(error)
                continue
            found[name] = _packed(checked)
        return {"found": found, "refused": failed}

    @property
    def _signal_passes(self) -> int:
        return PASSES * len(self.signals) * len(self.halves.choosing[:CHECKED])

    def _race_passes(self) -> int:
        """At most, if in every round as many go on as there is room for."""
        entered, total, before = Counter(arm.share for arm in self.arms), 0, 0
        room = dict(entered)
        for number, end in enumerate(rounds(len(self.halves.choosing))):
            total += (end - before) * sum(room.values())
            room = {share: min(count, places(number, entered[share])) for share, count in room.items()}
            before = end
        return total

    @property
    def _late_passes(self) -> int:
        shares = len({arm.share for arm in self.arms})
        return shares * len(self.halves.reporting) + CLOCK_ROUNDS * (shares + 1)

    def _advance(self, what: str, passes: int) -> None:
        self._done += passes
        self._progress(what, self._done, self._total)


def signal_readers(layers: int, window: int) -> list[Pruner]:
    """What an `Asker` must read of the encoder for the check of the signals.

    Args:
        window: As the arms have it.
    """
    return [DropTenth(signal=signal, layer=layer, window=window) for signal, layer in signals(layers).values()]


def fitting(
    model: Any, processor: Any, adapter: Any, variants: Sequence[Variant], ask: Callable[[Pruner], Any] | None = None
) -> tuple[list[Variant], dict[str, str]]:
    """The variants that a model supports; and the others by name, with the reason.

    Args:
        ask: Tries a pruner on a question; None only attaches it.
    """
    found, refused = [], {}
    for variant in variants:
        pruner = variant.pruner(0.5)
        try:
            resolve(adapter, pruner.reads(adapter.vision_depth).vision)
            if ask is None:
                with pruner(model, processor):
                    pass
            else:
                ask(pruner)
            found.append(variant)
        except ValueError as error:  # UnsupportedModelError is one
            refused[variant.name] = str(error)
    return found, refused


def _finding(name: str, checked: Sequence[Checked]) -> Finding:
    maps = [one for own in checked for one in own.maps]
    others = [other for own in checked for other in own.others]
    parts = ("top", "random", "bottom", "other")
    kl = {part: [own.kl[part] for own in checked] for part in parts}
    changed = {part: [own.changed[part] for own in checked] for part in parts}
    return finding(name, maps, others, kl, changed)


def _packed(checked: Checked) -> dict[str, Any]:
    """As JSON holds it."""
    maps = [[_text(one.scores), _text(one.centres), _text(one.whole)] for one in checked.maps]
    return {"maps": maps, "others": [_text(one) for one in checked.others], "kl": checked.kl, "changed": checked.changed}


def _unpacked(packed: dict[str, Any]) -> Checked:
    maps = [
        Map(_array(scores), _array(centres).reshape(-1, 2), _array(whole).astype(bool))
        for scores, centres, whole in packed["maps"]
    ]
    return Checked(maps, [_array(one) for one in packed["others"]], packed["kl"], packed["changed"])


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.asarray(values, dtype="<f4").tobytes()).decode()


def _array(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype="<f4")
