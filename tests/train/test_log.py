"""What people see of a run: a bar on a terminal, lines elsewhere."""

import io

from rich.console import Console

from ocl.train.log import Display

LINE = {"loss": 0.5, "samples_per_second": 120.0, "eval/fg_ari[coda]": 0.75}


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    with Display(step=2, steps=10, console=Console(file=out, force_terminal=terminal, width=120)) as display:
        display.step(3)
        display.line(4, LINE)
        display.say("a warning [not markup]")
    return out.getvalue()


def test_a_terminal_shows_a_bar_with_loss_and_rate():
    text = shown(terminal=True)
    for words in ("train", "4/10", "loss 0.5", "120 samples/s", "left", "fg_ari[coda] 0.75", "a warning [not markup]"):
        assert words in text


def test_a_file_gets_plain_lines():
    text = shown(terminal=False)
    assert "step 4/10  loss 0.5 · 120 samples/s" in text
    assert "step 4  fg_ari[coda] 0.75\n" in text
    assert "a warning [not markup]\n" in text
    assert "\x1b" not in text
