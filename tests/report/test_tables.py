from rich.console import Console

from mixkit.mixture import Mixture
from mixkit.report.tables import comparison_table, mixture_table


def text_of(table):
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))
    console.print(table)
    return console.export_text()


def test_a_mixture_shows_every_domain_with_a_bar_in_proportion():
    text = text_of(mixture_table(Mixture({"a": 0.75, "b": 0.25}, {"a": {}, "b": {}})))
    bars = {line.split()[1]: line.count("█") for line in text.splitlines() if "0." in line}
    assert bars == {"a": 24, "b": 8}


def test_the_lower_loss_of_each_row_is_marked():
    losses = {"one": {"a": 2.0, "b": 4.0}, "two": {"a": 3.0, "b": 1.0}}
    weights = {"one": {"a": 0.5, "b": 0.5}, "two": {"a": 0.1, "b": 0.9}}
    rows = {
        line.split()[1]: line for line in text_of(comparison_table(weights, losses, "t")).splitlines() if "." in line
    }
    assert "2.0000*" in rows["a"] and "3.0000*" not in rows["a"]
    assert "1.0000*" in rows["b"]
    assert "3.0000 " in rows["average"] and "2.0000*" in rows["average"]
    assert "4.0000 " in rows["worst"] and "3.0000*" in rows["worst"]
